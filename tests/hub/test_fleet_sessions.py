"""A doubled identity is held: nothing is ordered for it until one box is gone or a person has dealt with it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landreeve.wire.codec import decode, encode
from landreeve.wire.messages import DeviceState, Presence
from landreeve_hub.desired.publish import DoubledDeviceError, Publisher
from landreeve_hub.fleet import expiry, sessions
from landreeve_hub.fleet.identities import MOST_TOLD_ALONE
from landreeve_hub.incidents.incidents import Incidents, listed
from landreeve_hub.ingest.commit import Arrival, commit_batch
from landreeve_hub.signing import keys
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import insert

from tests.hub.hub_without_broker import Hub

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "hub.db")
    await store.write(
        lambda c: c.execute(insert(tables.devices), [{"id": "d-1", "fleet": "demo", "site": "EWR"}]) and None
    )
    yield store
    store.close()


async def say(store: Store, run: str, session: int, minute: float) -> bool:
    """One state over the ingest; whether it showed that the identity is doubled."""
    now = NOW + timedelta(minutes=minute)
    state = DeviceState(session=session, online=True, at=now.isoformat(), run=run)
    arrival = Arrival("d-1", encode(state), is_state=True)
    outcome = await store.write(lambda c: commit_batch(c, [arrival], [], {}, now))
    return "d-1" in outcome.doubled


async def take_turns(store: Store) -> int:
    for number in range(20):
        if await say(store, "ab"[number % 2], 1 + number // 2, number):
            return number
    raise AssertionError("never found")


async def test_doubled_identity_is_an_incident_and_gets_no_orders(store: Store, tmp_path: Path) -> None:
    assert await take_turns(store) <= 4
    (incident,) = await store.read(listed)
    assert (incident["kind"], incident["severity"], incident["subject"]["site"]) == ("cloned_identity", "error", "EWR")
    assert "landreeve join TOKEN --again" in incident["sentence"]
    keys.init(tmp_path, NOW)
    publisher = Publisher(store, Director(tmp_path), TargetsRepository(tmp_path), lambda *_: None, lambda: NOW)
    with pytest.raises(DoubledDeviceError, match="two boxes speak"):
        await publisher.publish_device("d-1")
    told = await store.write(lambda c: sessions.settle_in(c, NOW + timedelta(minutes=10)))
    assert told["d-1"].doubled
    freed = await store.write(lambda c: sessions.settle_in(c, NOW + timedelta(minutes=45)))
    assert not freed["d-1"].doubled
    assert (await store.read(listed))[0]["state"] == "closed"
    assert (await publisher.publish_device("d-1")).generation == 1


async def test_person_who_closes_the_incident_frees_the_box_at_once(store: Store) -> None:
    found = await take_turns(store)
    (incident,) = await store.read(listed)
    await store.write(lambda c: Incidents().close_in(c, NOW, incident["id"], "ann"))
    freed = await store.write(lambda c: sessions.settle_in(c, NOW + timedelta(minutes=found)))
    assert not freed["d-1"].doubled


async def test_retained_state_of_the_past_is_no_second_box(store: Store) -> None:
    old = encode(DeviceState(session=1, online=True, at=NOW.isoformat(), run="a"))
    for number in range(12):
        await say(store, "b", 2 + number, number)
        arrival = Arrival("d-1", old, is_state=True, retained=True)
        outcome = await store.write(lambda c, a=arrival: commit_batch(c, [a], [], {}, NOW))
        assert not outcome.doubled


@pytest.mark.parametrize(
    ("left_days", "kind", "severity"),
    [
        (40.0, None, ""),
        (20.0, None, ""),
        (15.0, "certificate_expiring", "warning"),
        (5.0, "certificate_expiring", "error"),
        (-3.0, "certificate_expired", "error"),
    ],
)
def test_certificate_that_was_not_renewed_is_told_before_it_ends(
    left_days: float, kind: str | None, severity: str
) -> None:
    expires = NOW + timedelta(days=left_days)
    raised = expiry.judge("d-1", "EWR", (expires - timedelta(days=90), expires), NOW, 180)
    assert (raised.kind if raised else None) == kind
    assert (raised.severity if raised else "") == severity


async def test_incident_of_a_certificate_closes_once_the_device_uses_a_newer_one(store: Store) -> None:
    def issue(serial: str, days: float) -> None:
        row = {"serial": serial, "device": "d-1", "issued": "2026-02-01T00:00:00.000Z"}
        expires = (NOW + timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        store.submit(lambda c: c.execute(insert(tables.certificates), [{**row, "expires": expires}]) and None).result()

    async def use(serial: str) -> None:
        doc = {"certificate_serial": serial}
        await store.write(lambda c: c.execute(tables.devices.update().values(doc=doc)) and None)

    issue("aa", 4)
    issue("bb", 90)
    await use("aa")
    assert await store.write(lambda c: expiry.watch_in(c, NOW, 180)) == 1
    await use("bb")
    assert await store.write(lambda c: expiry.watch_in(c, NOW, 180)) == 0
    assert [row["state"] for row in await store.read(listed)] == ["closed"]


async def test_device_that_is_there_is_told_once_that_it_is_alone(store: Store) -> None:
    """A hub that was set back knows nothing of a double it has told of; the box would hold back its orders for ever."""
    assert not await say(store, "a", 1, 0)
    told = await store.write(lambda c: sessions.settle_in(c, NOW, frozenset()))
    assert not told["d-1"].doubled
    assert await store.write(lambda c: sessions.settle_in(c, NOW, frozenset({"d-1"}))) == {}
    await take_turns(store)
    assert (await store.write(lambda c: sessions.settle_in(c, NOW, frozenset())))["d-1"].doubled


async def test_hub_that_has_started_tells_everyone_who_is_there_in_parts_and_leaves_nothing_at_the_broker(
    tmp_path: Path,
) -> None:
    hub = Hub(tmp_path)
    rows = [{"id": f"d-{n}", "fleet": "demo", "site": f"S{n}", "online": n > 0} for n in range(MOST_TOLD_ALONE + 3)]
    await hub.store.write(lambda c: c.execute(insert(tables.devices), rows) and None)
    seen = []
    for _ in range(3):
        await hub.services.identities.watch(hub.now)
        said = [(topic, payload) for topic, payload, _ in hub.published if topic.endswith("/presence")]
        assert all(decode(payload, Presence).doubled is False for _, payload in said[::2])
        assert {payload for _, payload in said[1::2]} <= {b""}, "what is retained is emptied again"
        assert [topic for topic, _ in said[::2]] == [topic for topic, _ in said[1::2]]
        seen.append(len(said[::2]))
        hub.published.clear()
    assert seen == [MOST_TOLD_ALONE, 2, 0]
    hub.store.close()
