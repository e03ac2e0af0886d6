"""What every broker must refuse, proven against the real ones over real TLS.

mosquitto grants subscriptions it will not serve, so every read is judged by what is delivered.
"""

import asyncio
import os
import queue
import secrets
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from socket import socket
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from landreeve_hub.broker.child import Broker, Kind, find_program
from landreeve_hub.broker.plan import BrokerPlan, Guests
from landreeve_hub.broker.takeovers import Takeover, Takeovers
from landreeve_hub.errors import BrokerError
from landreeve_hub.incidents.accusing import Accusations
from landreeve_hub.incidents.incidents import Incidents, listed
from landreeve_hub.store.database import Store

from tests.fakes.mqtt_client import part

FLEET = "north.sea"
UP = f"lr/1/{FLEET}/up"
DOWN = f"lr/1/{FLEET}/dn"
ART = f"lr/1/{FLEET}/art/{'a' * 64}/blocks"
WAIT_S = 10.0


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Office:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "office")])
        certificate = self._build("office", self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._build(name, key.public_key(), x509.BasicConstraints(ca=False, path_length=None))
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem, raw = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(key.private_bytes(pem, raw, serialization.NoEncryption()))
        return pair

    def _build(self, name: str, key: ec.EllipticCurvePublicKey, limits: x509.BasicConstraints) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(minutes=1),
            not_valid_after=now + timedelta(days=1),
        )
        builder = builder.add_extension(limits, critical=True)
        host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        if name == "broker":
            builder = builder.add_extension(host, critical=False)
        return builder.sign(self._key, hashes.SHA256())


class Client:
    """A paho client that keeps what it is sent and knows whether it is connected."""

    def __init__(self, port: int, ca: Path, pair: Pair | None, client_id: str = "", **options: Any) -> None:
        self.got: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refused: list[str] = []
        self._mqtt = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False, **options
        )
        context = ssl.create_default_context(cafile=str(ca))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        self._mqtt.tls_set_context(context)
        self._mqtt.on_message = lambda _c, _u, message: self.got.put((message.topic, message.payload))
        self._mqtt.on_subscribe = lambda *_: self._subscribed.put(True)
        self._mqtt.on_disconnect = self._dropped
        self._subscribed: queue.Queue[bool] = queue.Queue()
        self.drops = 0
        self._port = port

    def connect(self) -> bool:
        """Whether the broker let us in."""
        try:
            self._mqtt.connect("127.0.0.1", self._port, keepalive=30)
        except (ssl.SSLError, ConnectionError) as error:
            self.refused.append(str(error))
            return False
        self._mqtt.loop_start()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not self._mqtt.is_connected():
            time.sleep(0.02)
        return self._mqtt.is_connected()

    def connected(self) -> bool:
        return self._mqtt.is_connected()

    def subscribe(self, topic: str) -> None:
        """Ask for a topic; a broker that hangs up over it has refused as well."""
        self._mqtt.subscribe(topic, qos=1)
        deadline = time.monotonic() + WAIT_S
        while self._subscribed.empty() and self.connected() and time.monotonic() < deadline:
            time.sleep(0.01)
        while not self._subscribed.empty():
            self._subscribed.get()

    def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        info = self._mqtt.publish(topic, payload, qos=1, **options)
        deadline = time.monotonic() + 2
        while self.connected() and not info.is_published() and time.monotonic() < deadline:
            time.sleep(0.01)

    def send(self, topic: str, payload: bytes) -> None:
        """Without waiting for the broker."""
        self._mqtt.publish(topic, payload, qos=1)

    def _dropped(self, *_: Any) -> None:
        self.drops += 1

    def next(self) -> tuple[str, bytes]:
        return self.got.get(timeout=WAIT_S)

    def close(self) -> None:
        part(self._mqtt)


@dataclass
class Yard:
    """A running broker, its office, and a way to make clients."""

    broker: Broker
    office: Office
    rogue: Office
    pairs: dict[str, Pair]
    clients: list[Client]

    def client(self, name: str | None, **options: Any) -> Client:
        pair = self.pairs[name] if name else None
        return self._keep(Client(self.broker.port, self.office.ca, pair, **options))

    def stranger(self, name: str) -> Client:
        return self._keep(Client(self.broker.port, self.office.ca, self.rogue.issue(name)))

    def _keep(self, client: Client) -> Client:
        self.clients.append(client)
        return client

    def inside(self, name: str, *topics: str, **options: Any) -> Client:
        client = self.client(name, **options)
        assert client.connect(), client.refused
        for topic in topics:
            client.subscribe(topic)
        return client


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(kind: Kind, tmp_path: Path) -> AsyncIterator[Yard]:
    office, rogue = Office(tmp_path / "office"), Office(tmp_path / "rogue")
    pairs = {name: office.issue(name) for name in ("hub", "broker", "d-one", "d-two", "d-new")}
    own = pairs["broker"]
    plan = BrokerPlan(FLEET, "127.0.0.1", _free_port(), tmp_path / "broker", office.ca, own.certificate, own.key)
    broker = Broker(plan, find_program(kind.value), Guests(frozenset({"d-one", "d-two"})))
    await broker.start()
    yard = Yard(broker, office, rogue, pairs, [])
    try:
        yield yard
    finally:
        for client in yard.clients:
            client.close()
        await broker.stop()


@pytest.fixture(params=list(Kind))
async def yard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Yard]:
    try:
        find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    async with running(request.param, tmp_path) as place:
        yield place


@pytest.fixture
def silent() -> Callable[[Client, Client], None]:
    """Asserts that the listener got nothing, by a later message that it may get."""

    def check(listener: Client, hub: Client) -> None:
        hub.publish(f"{DOWN}/d-two/command", b"marker")
        assert listener.next() == (f"{DOWN}/d-two/command", b"marker")
        assert listener.got.empty()

    return check


def test_a_device_and_the_hub_reach_each_other(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    device = yard.inside("d-one", f"{DOWN}/d-one/#", f"lr/1/{FLEET}/art/#")
    device.publish(f"{UP}/d-one/event", b"fact")
    assert hub.next() == (f"{UP}/d-one/event", b"fact")
    hub.publish(f"{DOWN}/d-one/ack", b"ack")
    assert device.next() == (f"{DOWN}/d-one/ack", b"ack")
    hub.publish(ART, b"block" * 20_000)
    assert device.next() == (ART, b"block" * 20_000)


def test_retained_state_waits_for_a_late_reader(yard: Yard) -> None:
    yard.inside("d-one").publish(f"{UP}/d-one/state", b"online", retain=True)
    assert yard.inside("hub", f"{UP}/#").next() == (f"{UP}/d-one/state", b"online")


def test_no_certificate_is_refused(yard: Yard) -> None:
    assert not yard.client(None).connect()


def test_a_certificate_of_another_authority_is_refused(yard: Yard) -> None:
    assert not yard.stranger("d-one").connect()


def test_a_device_cannot_speak_for_another_or_for_the_hub(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#", f"lr/1/{FLEET}/art/#")
    for topic in (f"{UP}/d-one/event", f"{UP}/d-one/state", f"{DOWN}/d-one/desired", f"{DOWN}/d-one/ack", ART):
        yard.inside("d-two").publish(topic, b"spoofed")
    hub.publish(f"{DOWN}/d-one/ack", b"true")
    assert victim.next() == (f"{DOWN}/d-one/ack", b"true")
    yard.inside("d-two").publish(f"{UP}/d-two/event", b"own")
    assert hub.next() == (f"{UP}/d-two/event", b"own")
    assert hub.got.empty()
    assert victim.got.empty()


@pytest.mark.parametrize(
    "topic",
    [
        f"{DOWN}/d-one/#",
        f"{DOWN}/+/desired",
        f"{UP}/d-one/#",
        f"{UP}/#",
        "#",
        "+/#",
        "$share/g/#",
        f"$share/g/{DOWN}/d-one/#",
        "$SYS/#",
        "$MQTT/#",
        "$MQTT/sub/#",
    ],
)
def test_a_device_reads_nothing_of_another(yard: Yard, topic: str, silent: Callable[[Client, Client], None]) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    yard.inside("d-two").subscribe(topic)  # the broker may hang up over it, which is a refusal too
    spy = yard.inside("d-two", f"{DOWN}/d-two/#")
    spy.subscribe(topic)
    if not spy.connected():
        return
    victim = yard.inside("d-one", f"{DOWN}/d-one/#")
    hub.publish(f"{DOWN}/d-one/desired", b"secret", retain=True)
    assert victim.next()[1] == b"secret"
    victim.publish(f"{UP}/d-one/event", b"private")
    assert hub.next()[1] == b"private"
    silent(spy, hub)


def test_a_stolen_client_id_reads_nothing(yard: Yard) -> None:
    hub = yard.inside("hub")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#", client_id="d-one", clean_session=False)
    thief = yard.inside("d-two", f"{DOWN}/d-two/#", client_id="d-one", clean_session=False)
    hub.publish(f"{DOWN}/d-one/desired", b"secret")
    hub.publish(f"{DOWN}/d-two/command", b"marker")
    assert thief.next() == (f"{DOWN}/d-two/command", b"marker")
    assert thief.got.empty()
    if yard.broker.kind is Kind.MOSQUITTO:  # it replaces the id by the certificate's name; NATS evicts the victim
        assert victim.next() == (f"{DOWN}/d-one/desired", b"secret")


def test_nobody_evicts_a_client_whose_id_cannot_be_guessed(yard: Yard) -> None:
    hub = yard.inside("hub", client_id=f"hub-{secrets.token_hex(8)}")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#", client_id=f"d-one-{secrets.token_hex(8)}")
    for guess in ("d-one", "hub"):
        yard.inside("d-two", client_id=guess)
    hub.publish(f"{DOWN}/d-one/desired", b"secret")
    assert victim.next() == (f"{DOWN}/d-one/desired", b"secret")


def patiently(yard: Yard, name: str, client_id: str) -> Client:
    """In under that client id; NATS keeps one out for a second who follows another under the same."""
    for _ in range(5):
        if (client := yard.client(name, client_id=client_id)).connect():
            client.subscribe(f"{DOWN}/{name}/#")
            return client
    pytest.fail(f"{name} does not get in: {client.refused}")


async def test_who_takes_a_session_whose_id_leaked_is_held_off_or_named(yard: Yard, tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    try:
        accusations = Accusations(store, Incidents(), lambda: datetime.now(UTC))
        watch = Takeovers(yard.broker, store, Incidents(), accusations)
        await asyncio.to_thread(_take_over, yard, watch, "d-one-00112233445566ff")
        await watch.look(datetime.now(UTC))
        found = await store.read(listed)
    finally:
        store.close()
    if yard.broker.kind is Kind.MOSQUITTO:
        assert found == []
        return
    (incident,) = found
    assert (incident["kind"], incident["key"]) == ("session_taken", "session:d-two:d-one")
    assert "landreeve-hub device revoke d-two" in incident["sentence"]


def _take_over(yard: Yard, watch: Takeovers, leaked: str) -> None:
    hub = yard.inside("hub")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#", client_id=leaked)
    again = yard.inside("d-one", f"{DOWN}/d-one/#", client_id=leaked)  # the same box over a new line: no theft
    assert watch.found() == []
    thief = patiently(yard, "d-two", leaked)
    hub.publish(f"{DOWN}/d-one/desired", b"secret")
    hub.publish(f"{DOWN}/d-two/command", b"marker")
    assert thief.next() == (f"{DOWN}/d-two/command", b"marker")
    assert thief.got.empty()
    assert not victim.connected()
    if yard.broker.kind is Kind.MOSQUITTO:  # it binds ids to certificates, so nobody was thrown out
        assert again.next() == (f"{DOWN}/d-one/desired", b"secret")
        return
    assert watch.found() == [Takeover("d-one", "d-two")]
    assert watch.found() == []  # told once
    patiently(yard, "d-one", leaked)  # and the owner takes it back, which ends the thief's connection


async def test_a_new_device_gets_in_and_a_revoked_one_is_mute_and_deaf(yard: Yard) -> None:
    await yard.broker.admit(Guests(frozenset({"d-one", "d-two", "d-new"}), frozenset({"d-one"})))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(_judge_admission, yard)


def _judge_admission(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    newcomer = yard.inside("d-new", f"{DOWN}/d-new/#")
    revoked = yard.client("d-one")
    if revoked.connect():
        revoked.subscribe(f"{DOWN}/d-one/#")
        revoked.publish(f"{UP}/d-one/event", b"still here")
        hub.publish(f"{DOWN}/d-one/desired", b"secret")
    hub.publish(f"{DOWN}/d-new/ack", b"welcome")
    assert newcomer.next() == (f"{DOWN}/d-new/ack", b"welcome")
    newcomer.publish(f"{UP}/d-new/birth", b"born")
    assert hub.next() == (f"{UP}/d-new/birth", b"born")
    assert revoked.got.empty()


async def test_a_killed_broker_comes_back_on_its_port(yard: Yard) -> None:
    watching = asyncio.create_task(yard.broker.watch())
    port, pid = yard.broker.port, yard.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while yard.broker.generation < 2:  # noqa: ASYNC110  another process comes back; nothing to await
            await asyncio.sleep(0.05)
    assert yard.broker.port == port
    assert await asyncio.to_thread(yard.client("d-one").connect)
    await yard.broker.stop()
    await watching


async def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    office = Office(tmp_path / "office")
    pair = office.issue("broker")
    plan = BrokerPlan(FLEET, "127.0.0.1", _free_port(), tmp_path / "broker", office.ca, tmp_path / "absent", pair.key)
    with pytest.raises(BrokerError, match=r"mosquitto on 127\.0\.0\.1:.* ended with code .* at start; its log ends"):
        await Broker(plan, find_program("mosquitto")).start()


async def test_a_port_that_another_process_holds_is_not_taken_for_the_broker(tmp_path: Path) -> None:
    office = Office(tmp_path / "office")
    pair = office.issue("broker")
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        plan = BrokerPlan(FLEET, "127.0.0.1", port, tmp_path / "broker", office.ca, pair.certificate, pair.key)
        broker = Broker(plan, find_program("mosquitto"))
        with pytest.raises(BrokerError, match=r"another process listens there"):
            await broker.start()
    assert broker.pid is None


def test_a_machine_without_a_broker_is_told_what_to_install() -> None:
    with pytest.raises(BrokerError, match="apt install mosquitto"):
        find_program("auto", search="/nonexistent")
