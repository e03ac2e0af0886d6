"""Tokens are copied by hand from a terminal: what is wrong with one is said, its secret never."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.trust.token import PREFIX, BadTokenError, EnrolmentToken, format_token, parse_token
from landreeve_agent.link.enrol import JoinError, Step, join
from landreeve_agent.link.identity import BadIdentityError, load_identity

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TOKEN = EnrolmentToken(url="https://hub.example:8443", ca="a" * 64, secret="s3cr3t-s3cr3t", site="ewr")


def test_token_survives_its_text() -> None:
    assert parse_token(format_token(TOKEN)) == TOKEN


def test_token_wrapped_by_a_terminal_is_read() -> None:
    text = format_token(TOKEN)
    assert parse_token(f"  {text[:40]}\n{text[40:]}\r\n") == TOKEN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with 'lrt1.'"),
        ("lrt2.abc", "begins with 'lrt1.'"),
        (format_token(TOKEN)[:-9], "damaged or cut off"),
        (PREFIX + "!!!", "damaged or cut off"),
        (format_token(EnrolmentToken(url="http://hub", ca="a" * 64, secret="s", site="ewr")), "no https address"),
        (format_token(EnrolmentToken(url="https://hub", ca="short", secret="s", site="ewr")), "no sha256"),
        (format_token(EnrolmentToken(url="https://hub", ca="a" * 64, secret="s", site="a/b")), "no identifier"),
    ],
)
def test_bad_token_is_named_before_anything_is_touched(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(JoinError, match="could not read the token") as caught:
        join(tmp_path, text, NOW)
    assert caught.value.step is Step.TOKEN
    assert said in caught.value.sentence
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_a_named_error(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(BadTokenError):
            parse_token(candidate)


def test_secret_is_never_in_an_error(tmp_path: Path) -> None:
    token = EnrolmentToken(url="https://127.0.0.1:1", ca="a" * 64, secret="s3cr3t-s3cr3t", site="ewr")
    with pytest.raises(JoinError) as caught:
        join(tmp_path, format_token(token), NOW)
    assert "s3cr3t" not in str(caught.value) + repr(token)


def test_damaged_identity_is_named_and_not_taken_for_none(tmp_path: Path) -> None:
    assert load_identity(tmp_path) is None
    (tmp_path / "identity.json").write_text('{"device": 7}')
    with pytest.raises(BadIdentityError, match=r"identity\.json"):
        load_identity(tmp_path)
