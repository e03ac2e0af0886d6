"""Who the broker lets in, when telling it fails."""

from pathlib import Path

import pytest
from landreeve_hub.broker import child
from landreeve_hub.broker.child import Broker, Kind, Program
from landreeve_hub.broker.plan import BrokerPlan, Guests


async def test_revocation_that_could_not_be_written_is_written_at_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BrokerPlan("main", "127.0.0.1", 1, tmp_path, tmp_path / "ca", tmp_path / "crt", tmp_path / "key")
    broker = Broker(plan, Program(Kind.MOSQUITTO, Path("/bin/true")))
    guests = Guests(revoked=frozenset({"d-1"}))

    def full(path: Path, text: str) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(child, "_write", full)
        with pytest.raises(OSError, match="No space"):
            await broker.admit(guests)
    await broker.admit(guests)
    assert "user d-1\ntopic deny #" in (tmp_path / "acl").read_text()
