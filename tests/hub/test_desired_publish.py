"""What a device should run: a generation for every change of content, and never a step back."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landreeve.trust.anchor import install
from landreeve.trust.verdict import Believed
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.codec import decode
from landreeve.wire.messages import Desired, DesiredModel, Probation, SignedDesired
from landreeve_hub.desired.document import compose, content_hash
from landreeve_hub.desired.publish import Publisher, UnknownDeviceError
from landreeve_hub.signing import keys
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.errors import UnapprovedReleaseError
from landreeve_hub.signing.roots import DIRECTOR, TARGETS, newest_root_text
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store.database import Store
from landreeve_hub.store.tables import assignments, devices, releases
from landreeve_hub.store.upsert import upsert
from sqlalchemy import delete, update

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD, BETTER = "a" * 64, "b" * 64
TOPIC = "lr/1/demo/dn/d-1/desired"


class Desk:
    """A publisher over a real store, with a broker's retained messages as a dict."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.now = NOW
        self.store = Store(state / "hub.db")
        keys.init(state, NOW)
        self.targets = TargetsRepository(state)
        for digest, version in ((GOOD, "1"), (BETTER, "2")):
            self.targets.add_release(digest, 700, "flight-delay", version, "ada", NOW)
        self.retained: dict[str, bytes] = {}
        self.sent: list[int] = []
        self.publisher = Publisher(self.store, Director(state), self.targets, self._publish, lambda: self.now)
        install(state / "box", {name: newest_root_text(state, name) for name in (DIRECTOR, TARGETS)}, NOW)

    def _publish(self, topic: str, payload: bytes, retain: bool) -> None:
        assert retain
        self.retained[topic] = payload
        self.sent.append(decode(payload, SignedDesired).generation)

    async def enrol(self, device: str = "d-1") -> None:
        row = {"id": device, "fleet": "demo", "site": f"site-of-{device}"}
        await self.store.write(lambda c: c.execute(devices.insert().values(row)).rowcount)

    async def register(self, digest: str, version: str, length: int = 700) -> None:
        row = {"digest": digest, "model": "flight-delay", "version": version, "state": "approved"}
        await self.store.write(lambda c: upsert(c, releases, {**row, "manifest_bytes": length}))

    async def assign(self, digest: str, version: str = "1", device: str = "d-1") -> None:
        row = {"device": device, "model": "flight-delay", "digest": digest, "version": version}
        extra = {"rollout": "r-1", "action": "install", "probation": {"min_rows": 7}}
        await self.store.write(lambda c: upsert(c, assignments, {**row, **extra}))

    def seen(self, now: datetime | None = None) -> Desired:
        """What the device believes of the retained message."""
        signed = decode(self.retained[TOPIC], SignedDesired)
        verdict = DesiredVerifier(self.state / "box", "d-1", NOW).verify(signed, now or self.now)
        assert isinstance(verdict, Believed), verdict
        return verdict.desired


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.enrol()
    await desk.register(GOOD, "1")
    await desk.register(BETTER, "2")
    yield desk
    desk.store.close()


async def test_device_believes_what_it_was_assigned(desk: Desk) -> None:
    await desk.assign(GOOD)
    published = await desk.publisher.publish_device("d-1")
    assert (published.generation, published.changed) == (1, True)
    expected = DesiredModel(
        model="flight-delay",
        release=GOOD,
        version="1",
        manifest_bytes=700,
        rollout="r-1",
        probation=Probation(min_rows=7),
    )
    assert desk.seen().models == (expected,)


async def test_same_content_makes_no_new_generation(desk: Desk) -> None:
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    desk.now += timedelta(days=1)
    again = await desk.publisher.publish_device("d-1")
    assert (again.generation, again.changed, desk.sent) == (1, False, [1])


async def test_every_change_is_a_higher_generation_even_back_to_the_old(desk: Desk) -> None:
    for digest, version in ((GOOD, "1"), (BETTER, "2"), (GOOD, "1")):
        await desk.assign(digest, version)
        await desk.publisher.publish_device("d-1")
        assert desk.seen().models[0].release == digest
    assert desk.sent == [1, 2, 3]


async def test_last_assignment_gone_orders_nothing(desk: Desk) -> None:
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    await desk.store.write(lambda c: c.execute(delete(assignments)).rowcount)
    await desk.publisher.publish_device("d-1")
    assert desk.seen().models == ()


async def test_old_signature_is_renewed_under_the_same_generation(desk: Desk) -> None:
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    first = desk.seen()
    for days in (8, 16, 24, 32, 40):
        desk.now = NOW + timedelta(days=days)
        (renewed,) = await desk.publisher.refresh()
        assert (renewed.generation, renewed.changed) == (1, True)
        assert desk.seen() == first


async def test_device_long_away_still_follows(desk: Desk) -> None:
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    desk.seen()
    desk.now = NOW + timedelta(days=200)
    await desk.publisher.refresh()
    await desk.assign(BETTER, "2")
    await desk.publisher.publish_device("d-1")
    assert desk.seen().generation == 2


async def test_replaced_key_signs_every_document_anew(desk: Desk) -> None:
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    desk.seen()
    keys.rotate(desk.state, "director", NOW)
    (renewed,) = await desk.publisher.refresh()
    assert renewed.changed
    assert desk.seen().generation == 1


async def test_unapproved_release_is_never_ordered(desk: Desk) -> None:
    await desk.register("c" * 64, "3")
    await desk.assign("c" * 64, "3")
    with pytest.raises(UnapprovedReleaseError, match="not signed by an approver"):
        await desk.publisher.publish_device("d-1")
    assert desk.retained == {}


async def test_release_that_is_not_registered_is_never_ordered(desk: Desk) -> None:
    await desk.assign("d" * 64)
    with pytest.raises(UnapprovedReleaseError, match="not registered"):
        await desk.publisher.publish_device("d-1")


async def test_registry_that_disagrees_with_the_approval_orders_nothing(desk: Desk) -> None:
    await desk.register(GOOD, "1", length=701)
    await desk.assign(GOOD)
    with pytest.raises(UnapprovedReleaseError, match="approve it again"):
        await desk.publisher.publish_device("d-1")


async def test_unknown_and_revoked_devices_get_nothing(desk: Desk) -> None:
    with pytest.raises(UnknownDeviceError, match="unknown"):
        await desk.publisher.publish_device("d-9")
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    await desk.store.write(lambda c: c.execute(update(devices).values(revoked=True)).rowcount)
    with pytest.raises(UnknownDeviceError, match="revoked"):
        await desk.publisher.publish_device("d-1")
    assert await desk.publisher.republish() == 0


async def test_broker_that_forgot_gets_the_same_bytes_again(desk: Desk) -> None:
    await desk.assign(GOOD)
    await desk.publisher.publish_device("d-1")
    before = dict(desk.retained)
    desk.retained.clear()
    assert await desk.publisher.republish() == 1
    assert desk.retained == before


async def test_one_device_that_cannot_be_signed_for_stops_no_other(desk: Desk) -> None:
    await desk.enrol("d-2")
    await desk.assign(GOOD)
    await desk.assign(BETTER, "2", "d-2")
    for device in ("d-1", "d-2"):
        await desk.publisher.publish_device(device)
    desk.targets.remove_release(GOOD, NOW)
    desk.now += timedelta(days=8)
    assert [published.device for published in await desk.publisher.refresh()] == ["d-2"]


async def test_what_is_retained_last_is_the_highest_generation(desk: Desk) -> None:
    async def change(digest: str, version: str) -> None:
        await desk.assign(digest, version)
        await desk.publisher.publish_device("d-1")

    await asyncio.gather(*(change(digest, version) for digest, version in ((GOOD, "1"), (BETTER, "2")) * 5))
    assert desk.sent == sorted(desk.sent)
    assert decode(desk.retained[TOPIC], SignedDesired).generation == desk.sent[-1]


def test_order_of_assignments_is_no_content() -> None:
    one, two = (
        DesiredModel(model=name, release=GOOD, version="1", manifest_bytes=7, rollout="r") for name in ("a", "b")
    )
    assert compose("d-1", 1, (two, one), None, NOW) == compose("d-1", 1, (one, two), None, NOW)
    assert content_hash((two, one), None) == content_hash((one, two), None)
    assert content_hash((one,), None) != content_hash((one,), 5.0)
