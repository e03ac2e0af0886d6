"""A hub's core over a real broker, without its web servers: tables, authority, broker, ingest, warden."""

import asyncio
import itertools
import queue
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import socket
from typing import Any

import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from landreeve.trust.token import parse_token
from landreeve.wire.codec import encode
from landreeve.wire.messages import DeviceState, Event, Fact
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.broker.child import Broker, Kind, find_program
from landreeve_hub.broker.plan import BrokerPlan
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.enrolment import Asked, Enrolled, mint, redeem
from landreeve_hub.fleet.identities import Identities
from landreeve_hub.fleet.inventory import guests
from landreeve_hub.fleet.warden import Warden
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.rooms import expelling
from landreeve_hub.signing import keys
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store.database import Store

from tests.fakes.mqtt_client import part

FLEET = "demo"
EVERY_S = 0.05


def now() -> datetime:
    return datetime.now(UTC)


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Yard:
    """The core of a hub. ``kind`` is its broker."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder = folder
        self.kind = kind
        keys.init(folder, now())
        self.store = Store(folder / "hub.db")
        self.authority = Authority(folder)
        self.authority.init(now())

    async def open(self) -> None:
        own = self.authority.issue_server("broker", now())
        client = self.authority.issue_client("hub", now())
        trust = self.authority.trust_path
        plan = BrokerPlan(
            FLEET, "127.0.0.1", free_port(), self.folder / "broker", trust, own.certificate, own.key,
            self.authority.crl_path,
        )  # fmt: skip
        self.broker = Broker(plan, find_program(self.kind.value), await self.store.read(guests))
        await self.broker.start()
        address = Address("127.0.0.1", plan.port, trust, client.certificate, client.key)
        self.line = Line(address, FLEET)
        targets = TargetsRepository(self.folder)
        publisher = Publisher(self.store, Director(self.folder), targets, self.line.publish, now)
        warden = Warden(self.store, self.authority, self.broker, address, FLEET, self.line.publish, now)
        self.audit = AuditLog(self.store, self.folder / "keys")
        self.identities = Identities(self.store, self.authority, warden, publisher, self.audit, now, lambda _: None)
        appliers, listeners = standard_appliers(lambda *_: None), [expelling(self.identities)]
        self.receiver = Receiver(self.store, FLEET, appliers, self.line.publish, now, listeners=listeners)
        self.line.on_message = self.receiver.take
        self.receiver.start()
        self.line.start()
        async with asyncio.timeout(10):
            while not self.line.connected:  # noqa: ASYNC110  paho's thread connects
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await asyncio.to_thread(self.receiver.stop)
        await asyncio.to_thread(self.line.stop)
        await self.broker.stop()
        await asyncio.to_thread(self.store.close)

    async def enrol(self, site: str) -> "Device":
        known = {"url": "https://hub:8443", "ca_fingerprint": self.authority.ca_fingerprint}
        token = parse_token(await mint(self.store, site, {}, timedelta(hours=1), now(), **known))
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        asked = Asked(token.secret, csr.public_bytes(Encoding.PEM).decode())
        answer = await redeem(self.store, self.authority, asked, now(), fleet=FLEET, record=self.audit.record_in)
        assert isinstance(answer, Enrolled)
        await self.identities.joined(answer)
        pem = self.folder / f"{site}.pem"
        pem.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + answer.certificate.encode()
        )
        return Device(answer.device, self.broker.port, self.authority.trust_path, pem)

    @contextmanager
    def reader(self, topic: str) -> Iterator["queue.Queue[str]"]:
        """The topics of what is told to the hub, from whoever is retained on."""
        heard: queue.Queue[str] = queue.Queue()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="hub-reader")
        context = ssl.create_default_context(cafile=str(self.authority.trust_path))
        pair = self.authority.issue_client("hub", now())
        context.load_cert_chain(pair.certificate, pair.key)
        client.tls_set_context(context)
        client.on_connect = lambda *_: client.subscribe(topic, qos=1)
        client.on_message = lambda _c, _d, message: heard.put(message.topic)
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        try:
            yield heard
        finally:
            part(client)


class Device:
    """A device that states a fact every 50 ms, and comes back at once whenever it is dropped."""

    def __init__(self, name: str, port: int, ca: Path, pem: Path) -> None:
        self.name = name
        self.connections = 0
        self.dropped: list[float] = []
        self.sent = 0
        self._epoch = time.time_ns()
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(pem)
        self._mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"{name}-0123", clean_session=True)
        self._mqtt.tls_set_context(context)
        self._mqtt.reconnect_delay_set(min_delay=1, max_delay=1)
        self._mqtt.on_connect = self._in
        self._mqtt.on_disconnect = lambda *_: self.dropped.append(time.monotonic())
        self._port = port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    @property
    def connected(self) -> bool:
        return self._mqtt.is_connected()

    def start(self) -> None:
        self._mqtt.connect_async("127.0.0.1", self._port, keepalive=30)
        self._mqtt.loop_start()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        part(self._mqtt)

    def _in(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            self.connections += 1
            state = DeviceState(session=self.connections, online=True, at=now().isoformat())
            self._mqtt.publish(f"lr/1/{FLEET}/up/{self.name}/state", encode(state), qos=1, retain=True)

    def _speak(self) -> None:
        for seq in itertools.count(1):
            if self._stopping.wait(EVERY_S):
                return
            body = Event(name="tick", subject="x", cause="tick", sentence="Tick.")
            fact = encode(Fact(epoch=self._epoch, seq=seq, at=now().isoformat(), body=body))
            self._mqtt.publish(f"lr/1/{FLEET}/up/{self.name}/event", fact, qos=1)
            self.sent = seq


@asynccontextmanager
async def open_yard(folder: Path, kind: Kind) -> AsyncIterator[Yard]:
    yard = Yard(folder, kind)
    try:
        await yard.open()
        yield yard
    finally:
        await yard.close()
