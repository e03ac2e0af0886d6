"""A device that floods or hoards is held off and named, and the others are heard meanwhile."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve.wire.codec import encode
from landreeve.wire.messages import Event, Fact
from landreeve_hub.incidents.accusing import AGAIN_S, Accusations
from landreeve_hub.incidents.incidents import Incidents, listed
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.bucket import Buckets
from landreeve_hub.ingest.line import Message
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.rooms import accusing
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import func, insert, select

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    rows = [{"id": device, "fleet": "demo", "site": f"shop {device}"} for device in ("d-1", "d-2")]
    opened.submit(lambda c: c.execute(insert(tables.devices), rows)).result()
    yield opened
    opened.close()


def receiver(store: Store, accusations: Accusations, burst: float) -> Receiver:
    return Receiver(
        store, "demo", standard_appliers(audit=lambda _c, _d, _f: None), lambda *_: None, lambda: NOW,
        listeners=[accusing(accusations)], buckets=Buckets(per_s=0.0, burst=burst),
    )  # fmt: skip


def fact(device: str, seq: int, acknowledged: list[str], *, channel: str = "event", retained: bool = False) -> Message:
    event = Event(name="e", subject="s", cause="c", sentence="x")
    body = encode(Fact(epoch=1, seq=seq, at="2026-05-01T00:00:00Z", body=event))
    return Message(f"lr/1/demo/up/{device}/{channel}", body, retained, lambda: acknowledged.append(device))


def counted(store: Store) -> dict[str, int]:
    facts = tables.facts
    query = select(facts.c.device, func.count()).group_by(facts.c.device)
    return dict(store.submit_read(lambda c: [(row[0], row[1]) for row in c.execute(query)]).result())


def test_what_is_beyond_the_bucket_is_not_read_and_the_others_are(store: Store) -> None:
    told = Accusations(store, Incidents(), lambda: NOW, lambda: 0.0)
    acknowledged: list[str] = []
    batch = [fact("d-2", n, acknowledged) for n in range(1, 51)] + [fact("d-1", n, acknowledged) for n in range(1, 6)]
    receiver(store, told, burst=10)._process(batch)
    assert counted(store) == {"d-1": 5, "d-2": 10}
    assert len(acknowledged) == 55  # at the broker, where it would stand in the way of the others
    (incident,) = store.submit(listed).result()  # behind the writing of it
    assert (incident["kind"], incident["subject"]["device"]) == ("device_floods", "d-2")
    assert "device revoke d-2" in incident["sentence"]
    again = [fact("d-2", n, acknowledged) for n in range(11, 51)]
    receiver(store, told, burst=100)._process(again)  # an honest box says again what was not acknowledged to it
    assert counted(store) == {"d-1": 5, "d-2": 50}


def test_what_the_broker_keeps_beside_a_state_is_an_incident(store: Store) -> None:
    told = Accusations(store, Incidents(), lambda: NOW, lambda: 0.0)
    receiver(store, told, burst=10)._process([fact("d-1", 1, [], retained=True), fact("d-2", 1, [])])
    (incident,) = store.submit(listed).result()  # behind the writing of it
    assert (incident["kind"], incident["subject"]["device"]) == ("device_hoards", "d-1")


def test_the_same_harm_is_told_again_only_after_a_while(store: Store) -> None:
    clock = [0.0]
    told = Accusations(store, Incidents(), lambda: NOW, lambda: clock[0])
    assert told.tell({"d-1": "floods"}) is not None
    assert told.tell({"d-1": "floods"}) is None
    assert told.tell({"d-1": "hoards"}) is not None
    clock[0] = AGAIN_S
    assert told.tell({"d-1": "floods"}) is not None
