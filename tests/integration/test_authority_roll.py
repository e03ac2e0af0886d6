"""The fleet's authority is replaced while three sites go on: nobody touches them, nobody is stranded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from landreeve.trust.certs import describe, parse_all

from tests.integration.hub_site import Box, HubProcess, until


@pytest.fixture(params=["mosquitto", "nats"])
async def hub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HubProcess]:
    hub = HubProcess(tmp_path / "hub", f"broker.kind={request.param}")
    await asyncio.to_thread(hub.start)
    yield hub
    await asyncio.to_thread(hub.stop)


def issuer(box: Box) -> str:
    return describe(box.state.certificate.read_bytes()).issuer


def trusted(box: Box) -> int:
    return len(parse_all((box.state.root / "keys" / "ca.crt").read_bytes()))


@pytest.mark.slow
async def test_three_sites_move_to_a_new_authority_by_themselves(hub: HubProcess, tmp_path: Path) -> None:
    boxes = [Box(tmp_path / site) for site in ("ewr", "jfk", "lga")]
    for box in boxes:
        box.join(await asyncio.to_thread(hub.token, box.state.root.name))
        await box.start()
    try:
        await until(lambda: all(box.connected for box in boxes))
        former = issuer(boxes[0])
        away = boxes[2]
        await away.stop()
        assert hub.post("authority/roll")["rolling"] is True
        await until(lambda: hub.get("authority")["moved"] == 2)
        refused = hub.call("POST", "authority/finish", {})
        assert refused.status_code == 409
        assert "would be stranded: lga" in refused.json()["detail"]
        await away.start()
        await until(lambda: hub.get("authority")["moved"] == 3)
        hub.post("authority/finish")
        await until(lambda: all(trusted(box) == 1 and box.connected for box in boxes))
        assert all(issuer(box) != former for box in boxes)
        # And whoever comes now learns the new one alone.
        newcomer = Box(tmp_path / "new")
        newcomer.join(await asyncio.to_thread(hub.token, "new"))
        assert issuer(newcomer) == issuer(boxes[0])
    finally:
        for box in boxes:
            await box.stop()
