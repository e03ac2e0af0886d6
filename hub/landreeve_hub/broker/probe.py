"""A visitor to a broker, for the self-test: connects with a certificate of choice and keeps what it is told."""

import queue
import socket
import ssl
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from landreeve.trust.tls import ClosingSocket
from paho.mqtt.enums import CallbackAPIVersion

KEEPALIVE_S = 30


LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Papers:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Door:
    """Where the broker is, whom to believe there, and how long to wait for it: not at all once ``stopping`` is set."""

    host: str
    port: int
    ca: Path
    timeout_s: float = 5.0
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that came."""

    topic: str
    payload: bytes
    retained: bool


class Visitor:
    """One connection, made once. `open` says why it was refused, or nothing when it was let in."""

    def __init__(self, door: Door, papers: Papers | None, client_id: str, **more: Any) -> None:
        """``more``: ``persistent`` (default False), ``will`` (topic, payload), ``old_tls`` to offer TLS 1.1 at most."""
        self.heard: queue.Queue[Heard] = queue.Queue()
        self.tls = ""
        self.resumed = False
        self._door = door
        self._trouble = ""
        self._settled = threading.Event()
        self._answered = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=not more.get("persistent", False),
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = door.timeout_s
        self._client.tls_set_context(_context(door, papers, old_tls=more.get("old_tls", False)))
        if will := more.get("will"):
            self._client.will_set(will[0], will[1], qos=1)
        self._client.on_socket_open = _no_delay
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = lambda *_: self._answered.set()
        self._client.on_message = lambda _c, _u, m: self.heard.put(Heard(m.topic, bytes(m.payload), m.retain))

    @property
    def inside(self) -> bool:
        """Whether the connection stands."""
        return self._client.is_connected()

    def open(self) -> str:
        """Connect; "" when let in, else what happened."""
        try:
            self._client.connect(self._door.host, self._door.port, KEEPALIVE_S)
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        self._client.loop_start()
        self._until(self._settled.is_set)
        if not self._settled.is_set():
            return f"no answer in {self._door.timeout_s:g} s"
        # With TLS 1.3 a certificate is refused after the handshake: the first answer may be a hang-up.
        return "" if self.inside else self._trouble or "the connection was closed"

    def subscribe(self, topic_filter: str) -> bool:
        """Ask for a filter and wait for the answer; False when the broker hung up over it."""
        self._answered.clear()
        self._client.subscribe(topic_filter, qos=1)
        self._until(lambda: self._answered.is_set() or not self.inside)
        return self.inside

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Say it at QoS 1; False when the broker did not take it in time or hung up."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        try:
            self._until(lambda: info.is_published() or not self.inside)
            return bool(info.is_published())
        except (RuntimeError, ValueError):  # it was never handed over
            return False

    def hears(self, topic: str, payload: bytes) -> bool:
        """Whether that message comes in time; what came before it stays in ``passed``."""
        return wait_for(self.heard, topic, payload, self._door)[0] is not None

    def cut(self) -> None:
        """Vanish without a goodbye."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            sock.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()
        self._let_go()

    def close(self) -> None:
        """Say goodbye; safe when never open."""
        self._client.disconnect()
        self._client.loop_stop()
        self._let_go()

    def _let_go(self) -> None:
        """Callbacks tie this and the client into a ring, whose sockets would stay open until a collection."""
        client = self._client
        client.on_connect = client.on_disconnect = client.on_subscribe = client.on_message = client.on_socket_open = (
            None
        )

    def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + self._door.timeout_s
        while not condition() and time.monotonic() < deadline and not self._door.stopping.is_set():
            time.sleep(0.005)

    def _on_connect(self, client: mqtt.Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        self._trouble = str(reason) if reason.is_failure else ""
        self.resumed = bool(flags.session_present)
        sock = client.socket()
        self.tls = str(sock.version()) if isinstance(sock, ssl.SSLSocket) else ""
        self._settled.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._trouble = self._trouble or f"the broker closed the connection ({reason})"
        self._settled.set()


def wait_for(heard: "queue.Queue[Heard]", topic: str, payload: bytes, door: Door) -> tuple[Heard | None, list[Heard]]:
    """That message, or None when it does not come in time, and all that came before it."""
    before: list[Heard] = []
    deadline = time.monotonic() + door.timeout_s
    while (left := deadline - time.monotonic()) > 0 and not door.stopping.is_set():
        try:
            one = heard.get(timeout=min(left, LOOK_S))
        except queue.Empty:
            continue
        if (one.topic, one.payload) == (topic, payload):
            return one, before
        before.append(one)
    return None, before


def _no_delay(_client: Any, _data: Any, sock: Any) -> None:
    """Each message waits for an answer: without this, often for 40 ms."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _context(door: Door, papers: Papers | None, *, old_tls: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(door.ca))
    context.sslsocket_class = ClosingSocket
    if old_tls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if papers is not None:
        context.load_cert_chain(papers.certificate, papers.key)
    return context
