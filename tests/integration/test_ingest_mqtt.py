"""Facts over a real broker into a real hub process, both killed again and again: none lost, none twice."""

import asyncio
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import socket

import paho.mqtt.client as mqtt
import pytest
from landreeve.wire.codec import decode, encode
from landreeve.wire.messages import Ack, DeviceState, Event, Fact
from landreeve.wire.topics import Down, DownTopic, Up, UpTopic, format_topic
from landreeve_hub.broker.child import Broker, Kind, find_program
from landreeve_hub.broker.plan import BrokerPlan, Guests
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.authority import Authority, KeyPair
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import Connection, func, select

from tests.fakes.mqtt_client import part

FLEET = "f"
DEVICE = "d-one"
FACTS = 3000
WINDOW = 50
RESEND_S = 0.6
EPOCH = 1_700_000_000_000_000_000
# What dies once so many facts are acknowledged.
KILLS = ((200, "hub"), (600, "broker"), (1000, "hub"), (1400, "broker"), (1800, "both"), (2200, "hub"), (2600, "both"))

INGEST = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.store.database import Store

database, port, ca, certificate, key = sys.argv[1:]
line = Line(Address("127.0.0.1", int(port), Path(ca), Path(certificate), Path(key)), "f")
appliers = standard_appliers(audit=lambda connection, device, fact: None)
receiver = Receiver(Store(database), "f", appliers, line.publish, lambda: datetime.now(UTC))
line.on_message = receiver.take
receiver.start()
line.start()
time.sleep(600)
"""


class Sender:
    """A device as the contract has it: its own window, repeats until the hub's cumulative acknowledgement."""

    def __init__(self, port: int, ca: Path, pair: KeyPair) -> None:
        self.acknowledged = 0
        self.sent = 0
        self._lock = threading.Lock()
        self._acked = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=secrets.token_hex(8))
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(pair.certificate, pair.key)
        self._client.tls_set_context(context)
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.on_connect = lambda client, *_: client.subscribe(_down(Down.ACK), qos=1)
        self._client.on_message = self._heard
        self._client.connect_async("127.0.0.1", port, keepalive=10)
        self._client.loop_start()

    def run(self, count: int, deadline: float) -> None:
        """Until every fact is acknowledged."""
        while self.acknowledged < count:
            assert time.monotonic() < deadline, f"{self.acknowledged} of {count} facts acknowledged"
            self._acked.clear()
            if self._client.is_connected():
                self._send(count)
            self._acked.wait(RESEND_S)

    def close(self) -> None:
        part(self._client)

    def _send(self, count: int) -> None:
        """The whole window and the last acknowledged fact again: harsher than a device that waits."""
        done = self.acknowledged
        for seq in range(max(done, 1), min(done + WINDOW, count) + 1):
            body = Event(name=f"n{seq}", subject="s", cause="c", sentence="It happened.")
            fact = Fact(epoch=EPOCH, seq=seq, at="2026-05-01T12:00:00Z", body=body)
            self._client.publish(format_topic(UpTopic(FLEET, DEVICE, Up.EVENT)), encode(fact), qos=1)
            self.sent += 1

    def _heard(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        ack = decode(bytes(message.payload), Ack)
        with self._lock:
            self.acknowledged = max(self.acknowledged, ack.seq)
        self._acked.set()


def _down(channel: Down) -> str:
    return format_topic(DownTopic(FLEET, DEVICE, channel))


@dataclass
class Site:
    """A broker, the hub's ingest beside it, and what they share."""

    folder: Path
    authority: Authority
    broker: Broker
    ingest: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path:
        return self.folder / "hub.db"

    def client(self, name: str) -> KeyPair:
        return self.authority.issue_client(name, datetime.now(UTC))

    def start_ingest(self) -> None:
        pair = self.client("hub")
        places = [self.database, self.broker.port, self.authority.ca_path, pair.certificate, pair.key]
        self.ingest = subprocess.Popen([sys.executable, "-c", INGEST, *map(str, places)])

    def kill_ingest(self) -> None:
        if self.ingest is not None:
            self.ingest.kill()
            self.ingest.wait()

    async def strike(self, victim: str) -> None:
        """Kill without warning; the hub stays away for a moment, the broker is brought back by its watcher."""
        if victim in {"hub", "both"}:
            self.kill_ingest()
        if victim in {"broker", "both"}:
            before, pid = self.broker.generation, self.broker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            while self.broker.generation == before:  # noqa: ASYNC110  another process comes back
                await asyncio.sleep(0.05)
        if victim in {"hub", "both"}:
            await asyncio.sleep(0.3)
            self.start_ingest()


@pytest.fixture(params=list(Kind))
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    try:
        program = find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    authority = Authority(tmp_path)
    authority.init(datetime.now(UTC))
    pair = authority.issue_server("broker", datetime.now(UTC))
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tmp_path / "broker"
    plan = BrokerPlan(FLEET, "127.0.0.1", port, folder, authority.ca_path, pair.certificate, pair.key)
    broker = Broker(plan, program, Guests(frozenset({DEVICE})))
    await broker.start()
    watching = asyncio.create_task(broker.watch())
    made = Site(tmp_path, authority, broker)
    _enrol(made.database)
    try:
        yield made
    finally:
        made.kill_ingest()
        await broker.stop()
        await watching


def _enrol(database: Path) -> None:
    store = Store(database)
    store.submit(lambda c: upsert(c, tables.devices, {"id": DEVICE, "fleet": FLEET, "site": "one"})).result()
    store.close()


@pytest.fixture
def sender(site: Site) -> Iterator[Sender]:
    made = Sender(site.broker.port, site.authority.ca_path, site.client(DEVICE))
    yield made
    made.close()


@pytest.mark.timeout(150)
async def test_nothing_is_lost_or_doubled_while_hub_and_broker_are_killed(site: Site, sender: Sender) -> None:
    site.start_ingest()
    sending = asyncio.create_task(asyncio.to_thread(sender.run, FACTS, time.monotonic() + 130))
    for at, victim in KILLS:
        while sender.acknowledged < at and not sending.done():  # noqa: ASYNC110  the sender's thread counts
            await asyncio.sleep(0.005)
        await site.strike(victim)
    await sending
    site.kill_ingest()
    store = Store(site.database)
    counted = await store.read(_count)
    delivery = await store.read(lambda c: c.execute(select(tables.delivery)).one())
    store.close()
    assert counted == (FACTS, FACTS, FACTS, FACTS)
    assert (delivery.facts, delivery.rejected) == (FACTS, 0)
    assert delivery.duplicates > 0, "the sender repeats acknowledged facts, and the hub counted none"


def _count(connection: Connection) -> tuple[int, ...]:
    """Effects, distinct effects, facts that counted, and the mark."""
    name = tables.events.c.name
    effects, distinct = connection.execute(select(func.count(name), func.count(name.distinct()))).one()
    facts = connection.execute(select(func.count()).select_from(tables.facts)).scalar_one()
    mark = connection.execute(select(tables.highwater.c.seq)).scalar_one()
    return effects, distinct, facts, mark


async def test_the_will_of_a_broken_connection_shows_the_device_offline(site: Site) -> None:
    site.start_ingest()
    topic = format_topic(UpTopic(FLEET, DEVICE, Up.STATE))
    first, second = _device(site, topic, 1), None
    store = Store(site.database)
    try:
        await _until(store, online=True)
        first._sock.close()  # type: ignore[union-attr]
        await _until(store, online=False)
        second = _device(site, topic, 2)
        await _until(store, online=True)
    finally:
        for client in (first, second):
            if client is not None:
                client.loop_stop()
        store.close()


def _device(site: Site, topic: str, session: int) -> mqtt.Client:
    """A connected device that has said it is there, its last will set."""
    pair = site.client(DEVICE)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=secrets.token_hex(8), reconnect_on_failure=False)
    context = ssl.create_default_context(cafile=str(site.authority.ca_path))
    context.load_cert_chain(pair.certificate, pair.key)
    client.tls_set_context(context)
    gone = DeviceState(session=session, online=False, at="2026-05-01T12:00:00Z")
    client.will_set(topic, encode(gone), qos=1, retain=True)
    here = DeviceState(session=session, online=True, at="2026-05-01T12:00:00Z")
    client.on_connect = lambda c, *_: c.publish(topic, encode(here), qos=1, retain=True)
    client.connect("127.0.0.1", site.broker.port, keepalive=2)
    client.loop_start()
    return client


async def _until(store: Store, *, online: bool) -> None:
    async with asyncio.timeout(20):
        while await store.read(lambda c: c.execute(select(tables.devices.c.online)).scalar()) != online:  # noqa: ASYNC110  another process writes
            await asyncio.sleep(0.05)
