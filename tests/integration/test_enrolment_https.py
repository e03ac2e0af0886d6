"""A box joins a hub over real HTTPS; whatever goes wrong is named with its step."""

import asyncio
import base64
import json
import socket
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from landreeve.trust.certs import days_left, describe
from landreeve.trust.document import document_text
from landreeve.trust.token import PREFIX
from landreeve.trust.verdict import Believed
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.messages import Desired, SignedDesired
from landreeve_agent.link.enrol import JoinError, Step, join
from landreeve_agent.link.identity import Identity, keys_folder, load_identity, trust_folder
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.enrolment import Enrolled, mint
from landreeve_hub.fleet.enrolment_api import Desk, FleetFacts, router
from landreeve_hub.signing import keys
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.roots import DIRECTOR, TARGETS, newest_root_text
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store.database import Store

NOW = datetime.now(UTC)


class Hub:
    """The enrolment desk of a hub, served by uvicorn with the fleet's own certificate."""

    def __init__(self, state: Path) -> None:
        state.mkdir()
        self.state = state
        self.now = NOW
        self.enrolled: list[Enrolled] = []
        self.store = Store(state / "hub.db")
        self.authority = Authority(state)
        self.authority.init(NOW)
        keys.init(state, NOW)
        self.audit = AuditLog(self.store, state / "keys")
        self._server = uvicorn.Server(self._config())
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def mint(self, site: str = "ewr") -> str:
        fingerprint = self.authority.ca_fingerprint
        ttl = timedelta(hours=1)
        return asyncio.run(mint(self.store, site, {}, ttl, self.now, url=self.url, ca_fingerprint=fingerprint))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self.store.close()

    def _config(self) -> uvicorn.Config:
        pair = self.authority.issue_server("https", NOW)
        app = FastAPI()
        app.include_router(
            router(Desk(self.store, self.authority, self._facts, self._note, lambda: self.now, self.audit.record_in))
        )
        return uvicorn.Config(app, ssl_keyfile=pair.key, ssl_certfile=pair.certificate, log_config=None, ws="none")

    def _facts(self) -> FleetFacts:
        roots = [newest_root_text(self.state, name) for name in (DIRECTOR, TARGETS)]
        return FleetFacts("demo", "127.0.0.1", 8883, *roots)

    async def _note(self, enrolled: Enrolled) -> None:
        self.enrolled.append(enrolled)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    folder = tmp_path / "a box"
    folder.mkdir()
    return folder


def changed(token: str, **members: str) -> str:
    body = token.removeprefix(PREFIX)
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return PREFIX + base64.urlsafe_b64encode(json.dumps(document | members).encode()).decode()


def refused(box: Path, token: str, step: Step, now: datetime = NOW) -> str:
    with pytest.raises(JoinError) as caught:
        join(box, token, now)
    assert caught.value.step is step
    assert step.value in str(caught.value)
    assert load_identity(box) is None
    return caught.value.sentence


def test_box_joins_and_believes_the_hubs_first_document(hub: Hub, box: Path) -> None:
    identity = join(box, hub.mint(), NOW)
    device = hub.enrolled[0].device
    assert identity == Identity(
        device=device, fleet="demo", site="ewr", hub_url=hub.url, broker_host="127.0.0.1", broker_port=8883
    )
    assert load_identity(box) == identity
    desired = Desired(device=device, generation=1, issued=NOW.isoformat(), models=())
    signed = SignedDesired(
        generation=1,
        document=document_text(desired),
        director=Director(hub.state).sign(device, desired, {}, NOW),
        targets=TargetsRepository(hub.state).metadata(),
    )
    assert DesiredVerifier(trust_folder(box), device, NOW).verify(signed, NOW) == Believed(desired, {}, 1)


def test_files_of_an_identity_are_the_owners_alone(hub: Hub, box: Path) -> None:
    identity = join(box, hub.mint(), NOW)
    folder = keys_folder(box)
    files = [folder / name for name in ("device.key", "device.crt", "ca.crt")] + [box / "identity.json"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert describe((folder / "device.crt").read_bytes()).common_name == identity.device
    assert days_left(folder / "device.crt", NOW) == pytest.approx(90, abs=0.1)
    assert hub.authority.ca_pem == (folder / "ca.crt").read_text()


def test_wrong_authority_fingerprint_stops_before_the_secret_is_sent(hub: Hub, box: Path) -> None:
    token = hub.mint()
    assert "secret was not sent" in refused(box, changed(token, ca="0" * 64), Step.PIN)
    assert not keys_folder(box).exists()
    join(box, token, NOW)


def test_token_used_twice_is_refused_with_its_reason(hub: Hub, box: Path, tmp_path: Path) -> None:
    token = hub.mint()
    join(box, token, NOW)
    second = tmp_path / "second box"
    second.mkdir()
    assert "enrols one box only" in refused(second, token, Step.ENROL)


def test_expired_token_is_refused_with_its_reason(hub: Hub, box: Path) -> None:
    token = hub.mint()
    hub.now = NOW + timedelta(hours=2)
    assert "expired" in refused(box, token, Step.ENROL)


def test_token_of_a_forgotten_secret_is_refused(hub: Hub, box: Path) -> None:
    assert "does not know this token" in refused(box, changed(hub.mint(), secret="guess"), Step.ENROL)


def test_box_that_lost_the_answer_joins_with_the_same_token(hub: Hub, box: Path) -> None:
    token = hub.mint()
    first = join(box, token, NOW)
    (box / "identity.json").unlink()
    assert join(box, token, NOW) == first
    assert [enrolled.again for enrolled in hub.enrolled] == [False, True]


def test_box_joins_only_once(hub: Hub, box: Path) -> None:
    join(box, hub.mint(), NOW)
    with pytest.raises(JoinError, match="read the token: this box has already joined"):
        join(box, hub.mint("jfk"), NOW)


def test_clock_at_1970_is_named_and_the_token_stays_good_for_this_box(hub: Hub, box: Path) -> None:
    token = hub.mint()
    assert "set the clock" in refused(box, token, Step.CHECK, datetime(1970, 1, 1, tzinfo=UTC))
    join(box, token, NOW)


def test_damaged_key_is_named(hub: Hub, box: Path) -> None:
    keys_folder(box).mkdir()
    (keys_folder(box) / "device.key").write_text("-----BEGIN")
    refused(box, hub.mint(), Step.KEY)


def test_hub_that_is_not_there_is_named(hub: Hub, box: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    sentence = refused(box, changed(hub.mint(), url=f"https://127.0.0.1:{port}"), Step.FETCH)
    assert "does not answer" in sentence


def test_request_beyond_all_bounds_is_refused(hub: Hub, box: Path) -> None:
    assert "larger than" in refused(box, changed(hub.mint(), secret="x" * 40_000), Step.ENROL)
