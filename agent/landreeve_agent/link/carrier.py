"""One connection to the broker: what the session needs of MQTT, and paho behind it.

A connection is a fresh client. paho keeps unacknowledged messages in memory and throws all of them at the
broker after a reconnect, past any window (eclipse-paho/paho.mqtt.python#492); our outbox already knows what to
send again, so nothing of paho's memory is worth keeping.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as paho
from landreeve.trust.tls import ClosingSocket
from paho.mqtt.enums import CallbackAPIVersion

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
# Without it a line that swallows packets is noticed after twice the keepalive, or by TCP itself after a quarter
# of an hour (RFC 5482).
UNANSWERED_S = 20.0


class CarrierError(Exception):
    """The broker cannot be reached or does not accept us; the text says which and what to check."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the broker is and who we are to it. ``keys`` holds device.key, device.crt and ca.crt; None means
    without TLS, which only tests against a private loopback broker use."""

    host: str
    port: int
    client_id: str
    keys: Path | None
    keepalive_s: int = 30
    persistent: bool = True


@dataclass(frozen=True, slots=True)
class Will:
    """The message the broker publishes, retained, when we vanish."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """Something received. Call ``done`` when it is dealt with: only then is the broker told."""

    topic: str
    payload: bytes
    done: Callable[[], None] = field(default=lambda: None, compare=False)


class Carrier(Protocol):
    """An open connection. Messages arrive through the callback given at opening, in the event loop."""

    @property
    def lost(self) -> asyncio.Event:
        """Set once the connection is gone."""

    @property
    def backlog(self) -> int:
        """Messages handed over that are not out yet (QoS 0) or not taken by the broker yet (QoS 1)."""

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None: ...

    def subscribe(self, topic_filter: str, *, qos: int) -> None: ...

    def unsubscribe(self, topic_filter: str) -> None: ...

    async def settle(self, backlog: int) -> None:
        """Waits until no more than that many messages wait to leave, or the connection is gone."""

    async def close(self, *, abrupt: bool = False) -> None:
        """Says goodbye, so that no will is published; ``abrupt`` does not."""


class Connect(Protocol):
    """Opens a connection or raises `CarrierError`."""

    async def __call__(self, endpoint: Endpoint, will: Will, receive: Callable[[Message], None]) -> Carrier: ...


def tls_context(keys: Path) -> ssl.SSLContext:
    """Trusts only the fleet's own authority and shows the device's certificate."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(keys / "ca.crt"))
        context.load_cert_chain(keys / "device.crt", keys / "device.key")
    except (OSError, ssl.SSLError) as error:
        raise CarrierError(
            f"keys in {keys}: {error}. They are made by `landreeve join TOKEN`; join again if they are damaged"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = ClosingSocket
    return context


def _in_words(error: Exception) -> str:
    """What went wrong, in words of the site's admin where TLS speaks of itself."""
    somebody_else = (
        "something on the way answers in the broker's place (a captive portal where one signs in to the network, a "
        "proxy that opens TLS) or the address is wrong. Nothing was sent"
    )
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate shown there is not the fleet's ({error.verify_message}): {somebody_else}"
    if isinstance(error, ssl.SSLError) and error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"}:
        return f"no TLS is spoken there ({error.reason}): {somebody_else}"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    return str(error) or type(error).__name__


class PahoCarrier:
    """paho-mqtt with its network loop in its own thread. Its callbacks only hand over to the event loop, and
    none lets an exception out: paho would lose its thread silently."""

    def __init__(self, endpoint: Endpoint, receive: Callable[[Message], None]) -> None:
        self.lost = asyncio.Event()
        self.reason = ""
        self.failures = 0
        self._endpoint = endpoint
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._accepted.add_done_callback(_looked_at)
        self._unsent = 0
        self._closed = False
        self._moved = asyncio.Event()
        self._client = self._make_client(endpoint)

    @classmethod
    async def open(cls, endpoint: Endpoint, will: Will, receive: Callable[[Message], None]) -> "PahoCarrier":
        """An accepted connection; `CarrierError` says why there is none."""
        carrier = cls(endpoint, receive)
        try:
            await carrier._connect(will)
        except BaseException:
            await carrier.close(abrupt=True)
            raise
        return carrier

    @property
    def backlog(self) -> int:
        return self._unsent

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self._unsent += 1
        self._client.publish(topic, payload, qos=qos, retain=retain)

    def subscribe(self, topic_filter: str, *, qos: int) -> None:
        self._client.subscribe(topic_filter, qos=qos)

    def unsubscribe(self, topic_filter: str) -> None:
        self._client.unsubscribe(topic_filter)

    async def settle(self, backlog: int) -> None:
        while self._unsent > backlog and not self.lost.is_set():
            self._moved.clear()
            await self._moved.wait()

    async def close(self, *, abrupt: bool = False) -> None:
        self._closed = True
        if abrupt:
            self._shut_socket()
        else:
            self._client.disconnect()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.to_thread(self._client.loop_stop)
        except TimeoutError:
            logger.warning("the connection to %s did not end in %s s: cut", self._endpoint.host, CLOSE_TIMEOUT_S)
            self._shut_socket()
        finally:
            self._let_go()
            self.lost.set()

    def _let_go(self) -> None:
        """Callbacks tie this and the client into a ring, whose sockets would stay open until a collection."""
        client = self._client
        client.on_connect = client.on_disconnect = client.on_message = client.on_publish = None
        client.on_socket_open = _given_up  # a connect that still goes on in its thread must not succeed

    def _make_client(self, endpoint: Endpoint) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            clean_session=not endpoint.persistent,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S  # 5 s are not enough for TLS over a lossy line
        client.max_inflight_messages_set(0)  # our own window bounds what is under way
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._guard(self._on_connect)
        client.on_disconnect = self._guard(self._on_disconnect)
        client.on_message = self._guard(self._on_message)
        client.on_publish = self._guard(self._on_publish)
        return client

    async def _connect(self, will: Will) -> None:
        endpoint = self._endpoint
        if endpoint.keys is not None:
            self._client.tls_set_context(tls_context(endpoint.keys))
        self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.to_thread(self._client.connect, endpoint.host, endpoint.port, endpoint.keepalive_s)
                self._client.loop_start()
                await self._accepted
        except (OSError, ValueError, TimeoutError) as error:
            raise CarrierError(f"broker {endpoint.host}:{endpoint.port}: {_in_words(error)}") from error

    def _shut_socket(self) -> None:
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            try:
                sock.shutdown(socket.SHUT_RDWR)  # not close(): paho's thread still waits on it
            except OSError as error:
                logger.debug("the socket was gone already: %s", error)

    def _on_socket_open(self, _client: Any, _data: Any, sock: Any) -> None:
        """Unguarded: raising is how a connection that was given up while its thread went on is kept from saying
        CONNECT, which would end its successor's connection."""
        if self._closed:
            sock.close()
            raise ConnectionAbortedError("given up before it was open")
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNANSWERED_S * 1000))

    def _guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Any) -> None:
            try:
                callback(*args)
            except Exception:
                self.failures += 1
                logger.exception("MQTT callback %s failed (%d so far)", callback.__name__, self.failures)

        return guarded

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._loop.call_soon_threadsafe(self._connected, str(reason), bool(reason.is_failure))

    def _connected(self, reason: str, refused: bool) -> None:
        if self._accepted.done():
            return
        if refused:
            self._accepted.set_exception(CarrierError(f"broker {self._endpoint.host} refused us: {reason}"))
        else:
            self._accepted.set_result(None)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._loop.call_soon_threadsafe(self._disconnected, str(reason))

    def _disconnected(self, reason: str) -> None:
        self.reason = reason
        if not self._accepted.done():
            self._accepted.set_exception(CarrierError(f"broker {self._endpoint.host} closed the connection: {reason}"))
        self.lost.set()
        self._moved.set()

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        mid, qos = message.mid, message.qos
        ours = Message(message.topic, bytes(message.payload), lambda: _ignore(client.ack(mid, qos)))
        self._loop.call_soon_threadsafe(self._receive, ours)

    def _on_publish(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._sent)

    def _sent(self) -> None:
        self._unsent -= 1
        self._moved.set()


def _given_up(_client: Any, _data: Any, sock: Any) -> None:
    sock.close()
    raise ConnectionAbortedError("the connection was given up while it was being made")


def _looked_at(answer: "asyncio.Future[None]") -> None:
    """Who gave up before the answer came does not ask for it any more; asyncio would complain of that later."""
    if not answer.cancelled():
        answer.exception()


def _ignore(_result: object) -> None:
    """An acknowledgement the broker does not get is a message that comes again, which every handler bears."""
