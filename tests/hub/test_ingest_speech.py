"""Each device is spoken to as it can read: compressed only where it said so."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve.wire.codec import READS, decode, encode
from landreeve.wire.messages import Ack, DeviceState, Event, Fact, SignedDesired
from landreeve.wire.topics import Down, DownTopic, SharedBlocksTopic, Up, UpTopic, format_topic
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.line import Message
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.ingest.speech import Speech
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LONG = encode(SignedDesired(generation=1, document="x" * 3000, director={}, targets={}))
TO = {name: format_topic(DownTopic("f", name, Down.DESIRED)) for name in ("d-old", "d-new")}


class Desk:
    def __init__(self, store: Store) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.speech = Speech(lambda topic, payload, _retain: self.sent.append((topic, payload)))
        store.submit_read(self.speech.load).result()
        appliers = standard_appliers(audit=lambda _c, _d, _f: None)
        publish = self.speech.publish
        self.receiver = Receiver(store, "f", appliers, publish, lambda: NOW, listeners=[self.speech.heard])

    def take(self, device: str, channel: Up, payload: bytes) -> None:
        topic = format_topic(UpTopic("f", device, channel))
        self.receiver._process([Message(topic, payload, False, lambda: None)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    for device in TO:
        row = {"id": device, "fleet": "f", "site": device}
        opened.submit(lambda c, row=row: upsert(c, tables.devices, row)).result()
    yield opened
    opened.close()


def state(session: int, *reads: str) -> bytes:
    return encode(DeviceState(session=session, online=True, at="2026-05-01T11:00:00Z", reads=reads))


def fact(seq: int) -> bytes:
    body = Event(name="n", subject="s", cause="c", sentence="It happened.")
    return encode(Fact(epoch=7, seq=seq, at="2026-05-01T11:59:00Z", body=body))


def test_only_a_device_that_says_so_is_sent_zstd_also_after_a_restart_of_the_hub(store: Store) -> None:
    desk = Desk(store)
    desk.take("d-new", Up.STATE, state(1, "zstd"))
    desk.take("d-old", Up.STATE, b'{"v":1,"session":1,"online":true,"at":"2026-05-01T11:00:00Z"}')
    for one in (desk, Desk(store)):
        one.sent.clear()
        for topic in TO.values():
            one.speech.publish(topic, LONG, True)
        by = dict(one.sent)
        assert by[TO["d-new"]] == LONG
        assert by[TO["d-old"]].startswith(b"{")
        assert decode(by[TO["d-old"]], SignedDesired) == decode(LONG, SignedDesired)


def test_a_device_that_came_back_as_an_older_one_is_sent_plain_text(store: Store) -> None:
    desk = Desk(store)
    desk.take("d-new", Up.STATE, state(1, "zstd"))
    desk.take("d-new", Up.STATE, state(2))
    desk.sent.clear()
    desk.speech.publish(TO["d-new"], LONG, True)
    assert desk.sent[0][1].startswith(b"{")


def test_what_goes_to_all_is_left_as_it_is(store: Store) -> None:
    desk = Desk(store)
    desk.speech.publish(format_topic(SharedBlocksTopic("f", "a" * 64)), LONG)
    assert desk.sent[0][1] == LONG


def test_first_acknowledgement_of_a_session_says_what_the_hub_reads(store: Store) -> None:
    desk = Desk(store)
    for payload in (state(1), fact(1), fact(2), state(2), fact(3)):
        desk.take("d-new", Up.STATE if b"session" in payload else Up.EVENT, payload)
    acks = [decode(payload, Ack) for _, payload in desk.sent]
    assert [ack.seq for ack in acks] == [1, 2, 3]
    assert [ack.reads == READS for ack in acks] == [True, False, True]
