"""The agent's link against real brokers over mutual TLS, with the smallest hub that keeps the contract."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from socket import socket
from typing import Any

import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.wire.codec import (
    BLOCK_BYTES,
    Block,
    decode,
    decode_block,
    decode_missing,
    encode,
    encode_block,
    encode_missing,
)
from landreeve.wire.messages import Ack, Command, DeviceState, Event, Fact, SignedDesired, Want, Wire
from landreeve.wire.topics import (
    Down,
    DownTopic,
    DownWantTopic,
    SharedBlocksTopic,
    Topic,
    Up,
    UpTopic,
    UpWantTopic,
    format_topic,
    hub_filter,
    parse_topic,
)
from landreeve_agent.link.carrier import tls_context
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.session import Handlers, Options, Session
from landreeve_agent.link.transfer import Fetcher
from landreeve_agent.link.upload import Uploader
from landreeve_agent.store.database import Database
from landreeve_hub.broker.child import Broker, Kind, find_program
from landreeve_hub.broker.plan import BrokerPlan, Guests
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.authority import Authority

from tests.fakes.mqtt_client import part

FLEET = "demo"
NOW = datetime.now(UTC)
QUICK = Options(reconnect_jitter_s=0.1, resend_s=0.3)


@dataclass(frozen=True)
class Who:
    device: str
    fleet: str
    broker_host: str
    broker_port: int


class Hub:
    """Applies each fact once and acknowledges the high-water mark, unless told to be deaf."""

    def __init__(self, who: Who, keys: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.who = who
        self.facts: dict[int, Fact] = {}
        self.arrivals: list[int] = []
        self.states: list[DeviceState] = []
        self.blocks: dict[str, dict[int, bytes]] = {}
        self.serves: dict[str, bytes] = {}
        self.lose: Callable[[int], bool] = lambda _index: False
        self.deaf = False
        self.unacknowledged = 0
        self.most_unacknowledged = 0
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="hub-test", clean_session=False)
        self._client.tls_set_context(tls_context(keys))
        self._client.on_connect = lambda client, *_: client.subscribe(hub_filter(FLEET), qos=1)
        self._client.on_message = lambda _c, _u, m: self.loop.call_soon_threadsafe(self.receive, m.topic, m.payload)

    async def start(self) -> None:
        await asyncio.to_thread(self._client.connect, self.who.broker_host, self.who.broker_port, 30)
        self._client.reconnect_delay_set(0.1, 0.5)
        self._client.loop_start()

    async def stop(self) -> None:
        await asyncio.to_thread(part, self._client)

    def send(self, topic: Topic, message: Wire | bytes, **options: Any) -> None:
        payload = message if isinstance(message, bytes) else encode(message)
        self._client.publish(format_topic(topic), payload, **options)

    def receive(self, text: str, payload: bytes) -> None:
        match parse_topic(text):
            case UpTopic(_, _, Up.STATE):
                self.states.append(decode(payload, DeviceState))
            case UpTopic(_, _, Up.BLOCKS):
                block = decode_block(payload)
                self.blocks.setdefault(block.digest, {})[block.index] = block.data
            case UpTopic():
                self.take(decode(payload, Fact))
            case UpWantTopic(_, _, digest):
                self.answer(digest, decode(payload, Want))

    def take(self, fact: Fact) -> None:
        self.arrivals.append(fact.seq)
        self.facts[fact.seq] = fact
        self.unacknowledged += 1
        self.most_unacknowledged = max(self.most_unacknowledged, self.unacknowledged)
        if not self.deaf:
            self.acknowledge()

    def acknowledge(self) -> None:
        self.unacknowledged = 0
        complete = 0
        while complete + 1 in self.facts:
            complete += 1
        if complete:
            ack = Ack(epoch=self.facts[1].epoch, seq=complete)
            self.send(DownTopic(FLEET, self.who.device, Down.ACK), ack, qos=1)

    def answer(self, digest: str, want: Want) -> None:
        data = self.serves.get(digest, b"")
        for index in decode_missing(want.missing, -(-len(data) // BLOCK_BYTES)):
            if not self.lose(index):
                part = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
                topic: Topic = DownTopic(FLEET, self.who.device, Down.BLOCKS)
                if index % 2:
                    topic = SharedBlocksTopic(FLEET, digest)
                self.send(topic, encode_block(Block(digest, index, part)), qos=0)


@dataclass
class Site:
    """One device with its link."""

    root: Path
    who: Who
    keys: Path
    desired: list[int] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def start(self, options: Options = QUICK) -> None:
        self.database = Database(self.root / "agent.db")
        self.outbox = Outbox(self.database)
        handlers = Handlers(self._on_desired, self._on_command, self._on_want)
        self.session = Session(
            self.who, self.keys, self.outbox, handlers, self._state, clock=lambda: datetime.now(UTC), options=options
        )
        self.blobs = BlobStore(self.root / "blobs", margin_bytes=0)
        self.fetcher = Fetcher(self.session, self.blobs, repair_s=0.3)
        self.uploader = Uploader(self.session, self.blobs, bytes_per_s=1e9)
        self.tasks = [asyncio.create_task(self.session.run()), asyncio.create_task(self.uploader.run())]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.database.close()

    async def say(self, count: int) -> None:
        def write(db: Any) -> None:
            for n in range(count):
                self.outbox.enqueue(db, Event(name="e", subject=str(n), cause="c", sentence="S."), NOW)

        await self.database.write(write)

    async def _on_desired(self, signed: SignedDesired) -> None:
        self.desired.append(signed.generation)

    def _on_want(self, digest: str, want: Want) -> None:
        self.uploader.on_want(digest, want)

    async def _on_command(self, command: Command) -> None:
        self.commands.append(command.id)

    def _state(self) -> DeviceState:
        return DeviceState(session=0, online=True, at="")


@dataclass
class World:
    broker: Broker
    hub: Hub
    site: Site
    authority: Authority
    watching: asyncio.Task[None] | None = None


def device_keys(folder: Path, authority: Authority, device: str) -> Path:
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    raw = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "device.key").write_bytes(raw)
    (folder / "device.crt").write_text(authority.sign_device(pem, device, NOW))
    (folder / "ca.crt").write_text(authority.ca_pem)
    return folder


def hub_keys(folder: Path, authority: Authority) -> Path:
    folder.mkdir(parents=True)
    pair = authority.issue_client("hub", NOW)
    (folder / "device.crt").write_bytes(pair.certificate.read_bytes())
    (folder / "device.key").write_bytes(pair.key.read_bytes())
    (folder / "ca.crt").write_text(authority.ca_pem)
    return folder


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=list(Kind))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    try:
        program = find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    authority = Authority(tmp_path / "hub")
    authority.init(NOW)
    server = authority.issue_server("broker", NOW, ["127.0.0.1", "localhost"])
    ca = tmp_path / "ca.crt"
    ca.write_text(authority.ca_pem)
    plan = BrokerPlan(FLEET, "127.0.0.1", free_port(), tmp_path / "broker", ca, server.certificate, server.key)
    broker = Broker(plan, program, Guests(frozenset({"d-1"})))
    await broker.start()
    who = Who("d-1", FLEET, "127.0.0.1", broker.port)
    hub = Hub(who, hub_keys(tmp_path / "hubkeys", authority))
    await hub.start()
    site = Site(tmp_path, who, device_keys(tmp_path / "keys", authority, "d-1"))
    world = World(broker, hub, site, authority)
    site.start()
    yield world
    await site.stop()
    await hub.stop()
    if world.watching is not None:
        world.watching.cancel()
        await asyncio.gather(world.watching, return_exceptions=True)
    await broker.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - looks at another program's state
            await asyncio.sleep(0.02)


async def emptied(site: Site) -> None:
    async with asyncio.timeout(30):
        while (await site.outbox.size()).facts:  # noqa: ASYNC110 - looks at the store
            await asyncio.sleep(0.02)


async def test_every_fact_arrives_in_order_and_leaves_the_outbox(world: World) -> None:
    await world.site.say(500)
    await until(lambda: len(world.hub.facts) == 500)
    await emptied(world.site)
    firsts = list(dict.fromkeys(world.hub.arrivals))
    assert firsts == list(range(1, 501))
    assert world.site.session.contact.counts.acknowledged == 500


async def test_deaf_hub_gets_no_more_than_the_window_and_then_repeats(world: World) -> None:
    world.hub.deaf = True
    await world.site.say(200)
    await until(lambda: len(world.hub.arrivals) >= 100)
    assert max(world.hub.arrivals) == 50
    assert (await world.site.outbox.size()).facts == 200
    world.hub.deaf = False
    world.hub.acknowledge()
    await until(lambda: len(world.hub.facts) == 200)
    await emptied(world.site)


async def test_facts_of_a_time_without_broker_arrive_once_it_is_back(world: World) -> None:
    await world.site.say(20)
    await emptied(world.site)
    world.watching = asyncio.create_task(world.broker.watch())
    assert world.broker.pid is not None
    os.kill(world.broker.pid, signal.SIGKILL)
    await world.site.say(200)
    await until(lambda: len(world.hub.facts) == 220)
    await emptied(world.site)


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent session", "clean start"])
async def test_both_kinds_of_session_lose_nothing_over_a_cut(world: World, persistent: bool) -> None:
    await world.site.stop()
    world.site.start(replace(QUICK, persistent=persistent))
    signed = SignedDesired(generation=7, document="{}", director={}, targets={})
    world.hub.send(DownTopic(FLEET, "d-1", Down.DESIRED), signed, qos=1, retain=True)
    await until(lambda: 7 in world.site.desired)
    await world.site.say(100)
    await until(lambda: len(world.hub.facts) >= 30)
    carrier = world.site.session._carrier
    assert carrier is not None
    await carrier.close(abrupt=True)
    await world.site.say(100)
    await until(lambda: len(world.hub.facts) == 200)
    await until(lambda: world.site.desired.count(7) >= 2)
    await emptied(world.site)


async def test_state_says_offline_after_a_goodbye_and_sessions_grow(world: World) -> None:
    await until(lambda: any(state.online for state in world.hub.states))
    await world.site.stop()
    await until(lambda: not world.hub.states[-1].online)
    world.site.start()
    await until(lambda: world.hub.states[-1].online)
    sessions = [state.session for state in world.hub.states]
    assert sessions == sorted(sessions)
    assert sessions[-1] > sessions[0]


async def test_vanished_device_is_declared_offline_by_its_will(world: World) -> None:
    await until(lambda: any(state.online for state in world.hub.states))
    for task in world.site.tasks:
        task.cancel()
    carrier = world.site.session._carrier
    assert carrier is not None
    await carrier.close(abrupt=True)
    await until(lambda: not world.hub.states[-1].online)
    await asyncio.gather(*world.site.tasks, return_exceptions=True)


async def test_retained_order_and_command_reach_the_device(world: World) -> None:
    signed = SignedDesired(generation=3, document="{}", director={}, targets={})
    world.hub.send(DownTopic(FLEET, "d-1", Down.DESIRED), signed, qos=1, retain=True)
    await until(lambda: world.site.session.contact.connected)
    command = Command(id="c-1", name="train", args={}, expires="2027-01-01T00:00:00Z")
    world.hub.send(DownTopic(FLEET, "d-1", Down.COMMAND), command, qos=1)
    await until(lambda: 3 in world.site.desired and "c-1" in world.site.commands)
    await world.site.stop()
    world.site.desired.clear()
    world.site.start()
    await until(lambda: 3 in world.site.desired)


async def test_bad_messages_are_counted_and_harm_nothing(world: World) -> None:
    await until(lambda: world.site.session.contact.connected)
    world.hub.send(DownTopic(FLEET, "d-1", Down.DESIRED), b"{", qos=1)
    world.hub.send(DownTopic(FLEET, "d-1", Down.ACK), b"\x28\xb5\x2f\xfdbroken", qos=1)
    world.hub.send(DownTopic(FLEET, "d-1", Down.BLOCKS), b"no block", qos=1)
    world.hub.send(DownWantTopic(FLEET, "d-1", "a" * 64), Want(bytes=1, missing="01"), qos=1)
    await until(lambda: world.site.session.contact.counts.rejected >= 4)
    await world.site.say(5)
    await emptied(world.site)
    assert world.site.session.contact.counts.failures == 0


async def test_artifact_comes_whole_though_half_of_its_blocks_are_lost(world: World) -> None:
    data = os.urandom(40 * BLOCK_BYTES + 123)
    world.hub.lose = lambda _index: os.urandom(1)[0] < 128
    digests = block_digests(data, BLOCK_BYTES)
    digest = digest_of(data)
    world.hub.serves[digest] = data
    told: list[int] = []
    path = await world.site.fetcher.fetch(digest, len(data), digests, lambda done, _all: told.append(done))
    assert path.read_bytes() == data
    assert told[-1] == 41


async def test_artifact_goes_up_whole(world: World) -> None:
    data = os.urandom(20 * BLOCK_BYTES + 7)
    digest = world.site.blobs.put(data)
    await until(lambda: world.site.session.contact.connected)
    want = Want(bytes=len(data), missing=encode_missing(set(range(21))))
    async with asyncio.timeout(30):
        while len(world.hub.blocks.get(digest, {})) < 21:
            world.hub.send(DownWantTopic(FLEET, "d-1", digest), want, qos=1)
            await asyncio.sleep(0.5)
    parts = world.hub.blocks[digest]
    assert b"".join(parts[index] for index in sorted(parts)) == data


async def test_device_of_another_authority_is_told_why(world: World, tmp_path: Path) -> None:
    rogue = Authority(tmp_path / "rogue")
    rogue.init(NOW)
    keys = device_keys(tmp_path / "rogue-keys", rogue, "d-1")
    (keys / "ca.crt").write_text(world.authority.ca_pem)
    (tmp_path / "other").mkdir()
    site = Site(tmp_path / "other", world.site.who, keys)
    site.start()
    await until(lambda: "127.0.0.1" in site.session.contact.problem)
    assert not site.session.contact.connected
    await site.stop()
