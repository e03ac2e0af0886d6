"""The receiver's promise when one message cannot be stored for a reason nobody foresaw: the others are."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve.wire.codec import encode
from landreeve.wire.messages import AnyBody, Event, Fact, Gap
from landreeve.wire.topics import Up, UpTopic, format_topic
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import Outcome
from landreeve_hub.ingest.line import Message
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import Connection, select

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DEVICES = ("d-1", "d-2", "d-3")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    for device in DEVICES:
        row = {"id": device, "fleet": "f", "site": device}
        opened.submit(lambda c, row=row: upsert(c, tables.devices, row)).result()
    yield opened
    opened.close()


def test_the_one_message_that_breaks_the_batch_is_refused_and_all_others_count(store: Store) -> None:
    broken = threading.Event()

    def gap(_connection: Connection, _device: str, _fact: Fact) -> None:
        if broken.is_set():
            raise ZeroDivisionError("a fault of the hub's own")

    receiver, refused = started(store, gap)
    acknowledged = threading.Semaphore(0)
    send(receiver, acknowledged, "d-1", 1, Gap(first=1, last=1, count=1))
    assert acknowledged.acquire(timeout=10)
    broken.set()
    # A gap that comes again is applied outside the guard that each new fact has.
    for device in DEVICES:
        for seq in range(1, 8):
            send(receiver, acknowledged, device, seq, Event(name=f"n{seq}", subject="s", cause="c", sentence="x"))
    send(receiver, acknowledged, "d-1", 1, Gap(first=1, last=1, count=1))
    for _ in range(len(DEVICES) * 7 + 1):
        assert acknowledged.acquire(timeout=10)
    receiver.stop()
    facts = store.submit_read(lambda c: {(r.device, r.seq) for r in c.execute(select(tables.facts))}).result()
    assert facts == {(device, seq) for device in DEVICES for seq in range(1, 8)}
    reasons = store.submit_read(lambda c: list(c.execute(select(tables.rejections.c.reason)).scalars())).result()
    assert reasons == ["ZeroDivisionError: a fault of the hub's own"]
    assert sum(outcome.refused for outcome in refused) == 1


def started(store: Store, gap: Callable[[Connection, str, Fact], None]) -> tuple[Receiver, list[Outcome]]:
    appliers = standard_appliers(audit=lambda _c, _d, _f: None) | {Gap: gap}
    told: list[Outcome] = []
    receiver = Receiver(store, "f", appliers, lambda *_: None, lambda: NOW, listeners=[told.append])
    receiver.start()
    return receiver, told


def send(receiver: Receiver, acknowledged: threading.Semaphore, device: str, seq: int, body: AnyBody) -> None:
    fact = Fact(epoch=7, seq=seq, at="2026-05-01T11:59:00Z", body=body)
    topic = format_topic(UpTopic("f", device, Up.EVENT))
    receiver.take(Message(topic, encode(fact), False, acknowledged.release))
