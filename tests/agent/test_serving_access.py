"""Who may ask the inference server: nobody from elsewhere without a token, and nobody without TLS."""

import datetime as dt
import ssl
from pathlib import Path

import pytest
from landreeve_agent.config import Serving, StateFolder
from landreeve_agent.console.access import ensure_tokens
from landreeve_agent.serving import certificate
from landreeve_agent.serving.access import Access, is_loopback, read_access
from landreeve_agent.serving.door import Door, door, fingerprint
from landreeve_agent.serving.errors import LoadFailedError, UnauthorizedError

INFER = "/v2/models/delay/infer"
ACCESS = Access((b"app-token", b"api-token"))


@pytest.mark.parametrize(
    "header", [b"", b"app-token", b"Basic app-token", b"Bearer", b"Bearer ", b"Bearer app-toke", b"Bearer app-token x"]
)
def test_whoever_sends_no_token_of_this_box_is_refused(header: bytes) -> None:
    refusal = ACCESS.refuses({b"authorization": header}, INFER)
    assert isinstance(refusal, UnauthorizedError)
    assert "landreeve token show app" in str(refusal)


@pytest.mark.parametrize("header", [b"Bearer app-token", b"bearer api-token", b"Bearer  app-token "])
def test_whoever_sends_one_of_the_tokens_may_ask(header: bytes) -> None:
    assert ACCESS.refuses({b"authorization": header}, INFER) is None


def test_probes_need_no_token_and_metrics_do() -> None:
    assert ACCESS.refuses({}, "/v2/health/live") is None
    assert ACCESS.refuses({}, "/v2/health/ready") is None
    assert ACCESS.refuses({}, "/metrics") is not None


def test_without_tokens_everybody_may_ask() -> None:
    assert Access().refuses({}, INFER) is None


def test_an_empty_token_file_never_opens_the_server(tmp_path: Path) -> None:
    (tmp_path / "app").write_text(" \n")
    with pytest.raises(LoadFailedError, match="empty"):
        read_access([str(tmp_path / "app")])
    with pytest.raises(LoadFailedError, match="No such file"):
        read_access([str(tmp_path / "api")])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST"])
def test_a_loopback_address_is_this_box_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.local", ""])
def test_any_other_address_or_name_may_be_reached_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state")
    state.prepare()
    ensure_tokens(state.tokens)
    return state


def test_on_loopback_there_is_neither_tls_nor_token(state: StateFolder) -> None:
    assert door(Serving(), state) == Door()


def test_beyond_the_box_a_certificate_is_made_once_and_known_by_its_fingerprint(state: StateFolder) -> None:
    first = door(Serving(host="0.0.0.0"), state)
    assert (first.scheme, first.problem) == ("https", "")
    assert first.certificate is not None
    assert first.key is not None
    assert first.key.stat().st_mode & 0o077 == 0
    shown = fingerprint(first.certificate)
    assert any(shown in sentence for sentence in first.sentences())
    assert fingerprint(door(Serving(host="0.0.0.0"), state).certificate or Path()) == shown
    assert first.headers() == {"Authorization": f"Bearer {(state.tokens / 'app').read_text().strip()}"}
    assert isinstance(first.trust(), ssl.SSLContext)


def test_a_certificate_that_cannot_be_used_never_opens_the_server_unprotected(state: StateFolder) -> None:
    made = door(Serving(host="0.0.0.0", tls_cert="/nowhere.pem", tls_key="/nowhere.key"), state)
    assert made.scheme == "https"
    assert len(made.tokens) == 2
    assert made.problem.startswith("serving.tls_cert /nowhere.pem with serving.tls_key /nowhere.key: ")


def test_a_certificate_of_the_settings_is_used(state: StateFolder, tmp_path: Path) -> None:
    certificate.make(tmp_path, ("box.example",), dt.datetime.now(dt.UTC))
    own = Serving(host="0.0.0.0", tls_cert=str(tmp_path / "serving.crt"), tls_key=str(tmp_path / "serving.key"))
    assert door(own, state).certificate == tmp_path / "serving.crt"


def test_an_expired_certificate_or_a_foreign_key_is_made_anew(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    assert not certificate.is_valid(tmp_path, now)
    certificate.make(tmp_path, ("localhost", "10.0.0.1"), now)
    assert certificate.is_valid(tmp_path, now)
    assert not certificate.is_valid(tmp_path, now + dt.timedelta(days=certificate.VALID_DAYS + 1))
    key = (tmp_path / "serving.key").read_bytes()
    certificate.make(tmp_path, ("localhost",), now)
    (tmp_path / "serving.key").write_bytes(key)
    assert not certificate.is_valid(tmp_path, now)
