"""Certificates are renewed before they end, and after; the old one is dropped only once the new one is proven."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from landreeve.trust.certs import describe
from landreeve.trust.enrolment import RenewalAnswer, RenewalRequest
from landreeve_agent.link.carrier import CarrierError
from landreeve_agent.link.desk import Desk, RefusedError, believing, request_for
from landreeve_agent.link.enrol import Former, JoinError, Patience, Step, join
from landreeve_agent.link.identity import load_identity
from landreeve_agent.link.keyring import Keyring

from tests.integration.hub_site import Box, HubProcess, now, until

Start = Callable[..., HubProcess]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a hub with these settings."""
    running: list[HubProcess] = []

    def begin(*settings: str) -> HubProcess:
        hub = HubProcess(tmp_path / "hub", *settings)
        running.append(hub)
        hub.start()
        return hub

    yield begin
    for hub in running:
        await asyncio.to_thread(hub.stop)


def ask_by_certificate(box: Box) -> RenewalAnswer:
    """Ask for a renewal as a box does that believes its certificate good."""
    keys, identity = box.state.root / "keys", load_identity(box.state.root)
    assert identity is not None
    desk = Desk(identity.hub_url, believing((keys / "ca.crt").read_bytes(), keys))
    csr = request_for(Keyring(keys).prepare(), "x")
    return desk.ask("reenrol", RenewalRequest(csr=csr), RenewalAnswer)


def serial(box: Box) -> str:
    return describe(box.state.certificate.read_bytes()).serial


def renewals(box: Box) -> int:
    return sum(event.name == "certificate.renewed" for event in box.events)


@pytest.mark.slow
async def test_certificate_is_renewed_again_and_again_and_after_it_has_expired(start: Start, tmp_path: Path) -> None:
    """A lifetime of seconds: what else takes 60 days happens at every look."""
    hub = await asyncio.to_thread(start, f"enrolment.certificate_days={8 / 86_400}")
    box = Box(tmp_path / "ewr")
    box.join(await asyncio.to_thread(hub.token, "ewr"))
    first = serial(box)
    await asyncio.sleep(8.5)
    with pytest.raises((httpx2.HTTPError, OSError)):
        await asyncio.to_thread(ask_by_certificate, box)  # TLS itself refuses an expired one
    await box.start()
    try:
        await until(lambda: renewals(box) >= 3 and box.connected)
        assert "after the former one had expired" in box.events[0].sentence
        assert serial(box) != first
        await until(lambda: hub.get("devices")[0]["online"])
        acts = [row["action"] for row in hub.get("audit")["items"]]
        assert {"device.enrol", "certificate.renew", "certificate.recover"} <= set(acts)
    finally:
        await box.stop()


@pytest.mark.slow
async def test_hub_that_is_away_costs_nothing_and_an_unproven_pair_is_not_used(start: Start, tmp_path: Path) -> None:
    hub = await asyncio.to_thread(start)
    box = Box(tmp_path / "ewr")
    box.join(await asyncio.to_thread(hub.token, "ewr"))
    first, keys = serial(box), Keyring(box.state.root / "keys")
    answer = await asyncio.to_thread(ask_by_certificate, box)
    keys.complete(answer.certificate, keys.trusted())
    await asyncio.to_thread(hub.kill)
    await box.start()
    try:
        with pytest.raises(CarrierError):
            await box.renewer.prove(keys.next)
        assert serial(box) == first
        await asyncio.to_thread(hub.start)
        await until(lambda: box.connected)
        await box.renewer.prove(keys.next)
        keys.promote()
        assert serial(box) == describe(answer.certificate.encode()).serial
        await until(lambda: box.connected)
    finally:
        await box.stop()


@pytest.mark.slow
async def test_revoked_device_gets_no_certificate_by_either_way(start: Start, tmp_path: Path) -> None:
    hub = await asyncio.to_thread(start)
    box = Box(tmp_path / "ewr")
    box.join(await asyncio.to_thread(hub.token, "ewr"))
    hub.post("devices/ewr/revoke", {"reason": "stolen"})
    with pytest.raises(RefusedError, match="was revoked"):
        await asyncio.to_thread(ask_by_certificate, box)
    await box.start()
    try:
        renewer, certificate = box.renewer, box.renewer.keyring.described()
        with pytest.raises(RefusedError, match="was revoked"):
            await asyncio.to_thread(renewer._ask, renewer.keyring.prepare(), expired=True)
        assert certificate.not_after > now()
    finally:
        await box.stop()


async def test_person_lets_a_re_imaged_box_in_and_the_old_identity_is_over(start: Start, tmp_path: Path) -> None:
    """Approval over the API, with the same fingerprint on both ends; the new box goes on in the old one's place."""
    hub = await asyncio.to_thread(start, "enrolment.approval=true")
    old, new = Box(tmp_path / "old"), Box(tmp_path / "new")
    await approved(hub, old, "ewr")
    await old.start()
    await until(lambda: old.connected)
    spare = await asyncio.to_thread(hub.token, "ewr", replaces=True)
    try:
        await approved(hub, new, "ewr", spare)
        await new.start()
        await until(lambda: new.connected and not old.connected)
        row = hub.get("devices/ewr")
        assert (row["id"], row["incarnation"], row["replaces"]) == (new.device, 2, old.device)
        former = hub.get(f"devices/{old.device}")
        assert (former["site"], former["revoked"], former["replaced_by"]) == ("ewr~1", True, new.device)
    finally:
        await old.stop()
        await new.stop()


async def approved(hub: HubProcess, box: Box, site: str, token: str = "") -> None:
    """Join while a person compares the key the box shows with what the hub shows."""
    text = token or await asyncio.to_thread(hub.token, site)
    shown: list[str] = []

    def look(_sentence: str, fingerprint: str) -> None:
        if not shown:
            (waiting,) = hub.get("enrolments")
            assert waiting["fingerprint"] == fingerprint
            hub.post(f"enrolments/{waiting['device']}/approve")
        shown.append(fingerprint)

    patience = Patience(30, look, lambda _: None)
    box.device = (await asyncio.to_thread(join, box.state.root, text, now(), patience=patience)).device
    assert len(shown) == 1


@pytest.mark.slow
async def test_impatient_box_is_told_to_come_again_and_a_denied_one_why(start: Start, tmp_path: Path) -> None:
    hub = await asyncio.to_thread(start, "enrolment.approval=true")
    token = await asyncio.to_thread(hub.token, "ewr")
    box = Box(tmp_path / "ewr")
    with pytest.raises(JoinError, match="Join again with the same token") as caught:
        box.join(token)
    assert caught.value.step is Step.ENROL
    (waiting,) = hub.get("enrolments")
    hub.post(f"enrolments/{waiting['device']}/deny")
    with pytest.raises(JoinError, match="A person at the hub has refused this box"):
        box.join(token)


@pytest.mark.slow
async def test_box_becomes_another_device_and_believes_its_new_documents(start: Start, tmp_path: Path) -> None:
    """The way out of a cloned disk: same folder, new key, a token of its own."""
    hub = await asyncio.to_thread(start)
    box = Box(tmp_path / "ewr")
    first = box.join(await asyncio.to_thread(hub.token, "ewr"))
    hub.post("authority/roll")  # so that it is sent documents
    await box.start()
    await until(lambda: bool(box.believed) and box.connected)
    await box.stop()
    with pytest.raises(JoinError, match="--again"):
        box.join(await asyncio.to_thread(hub.token, "jfk"))
    token, seen = await asyncio.to_thread(hub.token, "jfk"), max(box.believed)
    second = await asyncio.to_thread(join, box.state.root, token, now(), again=Former(seen))
    assert second.device != first
    box.believed.clear()
    hub.call("POST", "authority/finish", {"force": True})
    await box.start()
    try:
        await until(lambda: bool(box.believed) and box.connected)
        assert min(box.believed) > seen
        await until(lambda: {row["site"]: row["online"] for row in hub.get("devices")}["jfk"])
    finally:
        await box.stop()
