"""The hub's own MQTT connection: paho, with its traps covered.

paho acknowledges when `Message.acknowledge` is called and not before; an exception in a callback would end its
thread in silence, so none leaves one. The session is clean: nothing may hang on what a broker remembers, since
devices repeat what the hub itself has not acknowledged. Nothing is queued without a connection (paho would, in
memory, while saying that it did not): all that is published is said again after the next one.
"""

import contextlib
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from landreeve.trust.tls import ClosingSocket
from landreeve.wire.topics import hub_filter
from paho.mqtt.enums import CallbackAPIVersion

log = logging.getLogger(__name__)
KEEPALIVE_S = 30
MAX_INFLIGHT = 1000
MAX_QUEUED = 20_000
BLOCKS_UNDER_WAY = 32
# A line that swallows packets is given up after so long, not after twice the keepalive (RFC 5482).
UNANSWERED_S = 20.0
CONNECT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is and what the hub shows it."""

    host: str
    port: int
    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came; `acknowledge` tells the broker, from any thread, that it is dealt with."""

    topic: str
    payload: bytes
    retained: bool
    acknowledge: Callable[[], None]


class Line:
    """A connection that comes back by itself.

    ``on_message`` runs in paho's thread and may block to slow the broker down; ``on_connected`` runs there
    after each subscription, so that what is retained can be said again.
    """

    def __init__(self, address: Address, fleet: str) -> None:
        self._address = address
        self._filter = hub_filter(fleet)
        self._connection = 0
        self._frames: list[mqtt.MQTTMessageInfo] = []
        self.on_message: Callable[[Message], None] = _unheard
        self.on_connected: list[Callable[[], None]] = []
        self._context = _context(address)
        self._client = self._build()

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    def start(self) -> None:
        """Connect, and go on trying; returns at once."""
        self._client.connect_async(self._address.host, self._address.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def show_anew(self) -> None:
        """From the next connection on: the certificate that is in the file now, and whoever is trusted now too."""
        self._context.load_cert_chain(self._address.certificate, self._address.key)
        self._context.load_verify_locations(self._address.ca)

    def stop(self) -> None:
        """Say goodbye and end the thread: in a few seconds also where the broker reads nothing any more."""
        client = self._client
        cut = threading.Timer(CLOSE_TIMEOUT_S, _cut, (client,))
        cut.start()
        client.disconnect()
        client.loop_stop()  # waits while packets are unsent
        cut.cancel()
        # They tie this and the client into a ring, whose sockets would stay open until a collection.
        client.on_connect = client.on_disconnect = client.on_message = None

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Hand over at QoS 1; without a connection it is dropped."""
        if not self.connected:
            log.debug("without a broker: a message to %s is dropped", topic)
            return
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc == mqtt.MQTT_ERR_QUEUE_SIZE:
            log.warning("the broker is slow and %d messages wait: one to %s is dropped", MAX_QUEUED, topic)

    def publish_block(self, topic: str, frame: bytes, timeout_s: float = 5.0) -> bool:
        """Send at QoS 0 once few enough earlier frames wait for the socket; False without a connection."""
        if not self.connected:
            self._frames.clear()
            return False
        while len(self._frames) >= BLOCKS_UNDER_WAY:
            oldest = self._frames.pop(0)
            try:
                oldest.wait_for_publish(timeout_s)
            except (RuntimeError, ValueError):
                return False
        info = self._client.publish(topic, frame, qos=0)
        self._frames.append(info)
        return info.rc == mqtt.MQTT_ERR_SUCCESS

    def _build(self) -> mqtt.Client:
        name = f"hub-{secrets.token_hex(8)}"
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=True, manual_ack=True)
        client.tls_set_context(self._context)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.max_queued_messages_set(MAX_QUEUED)
        client.reconnect_delay_set(min_delay=1, max_delay=5)
        client.on_socket_open = _give_up_in_time
        client.on_connect = self._connected
        client.on_disconnect = _disconnected
        client.on_message = self._received
        return client

    def _connected(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.warning("the broker refused the hub: %s", reason)
            return
        self._connection += 1
        client.subscribe(self._filter, qos=1)
        for tell in self.on_connected:
            try:
                tell()
            except Exception:
                log.exception("a room failed when the broker came back")

    def _received(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        connection = self._connection

        def acknowledge() -> None:
            # On a later connection this number may belong to another message.
            if message.qos and connection == self._connection:
                client.ack(message.mid, message.qos)

        try:
            self.on_message(Message(message.topic, bytes(message.payload), message.retain, acknowledge))
        except Exception:
            log.exception("a message on %s was not taken; its sender repeats it", message.topic)


def _give_up_in_time(_client: Any, _data: Any, sock: Any) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNANSWERED_S * 1000))


def _cut(client: mqtt.Client) -> None:
    sock = client.socket()
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):  # gone already
            sock.shutdown(socket.SHUT_RDWR)  # not close(): the client's thread still waits on it


def _context(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(address.ca))
    context.sslsocket_class = ClosingSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(address.certificate, address.key)
    return context


def _disconnected(_client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
    if reason.is_failure:
        log.warning("the connection to the broker broke (%s); trying again", reason)


def _unheard(message: Message) -> None:
    log.warning("a message on %s came before anyone listened", message.topic)
