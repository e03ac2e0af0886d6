"""One connection to the site's broker: MQTT 5 where it speaks that, else 3.1.1.

A connection is a fresh client: paho's memory of another one is worth nothing, for a request that was not answered
is delivered again (`landreeve_agent.link.carrier` has the reasons). Its callbacks run in paho's thread and let no
exception out, which would end that thread silently.
"""

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from landreeve_agent.doors.errors import SetupError, UnreachableError
from landreeve_agent.doors.requests import Incoming, ReplyTo, request_filter

logger = logging.getLogger(__name__)

CONNECT_S = 15.0
PUBLISH_S = 15.0
# How long the broker keeps requests for us while we are away, in seconds.
SESSION_S = 3600
_KEEPALIVE_S = 30


class BrokerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is, and who we are to it; see the settings ``mqtt_inference``."""

    host: str
    port: int
    prefix: str
    client_id: str
    username: str = ""
    password_file: str = ""
    tls: bool = False
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message with its place in the protocol."""

    incoming: Incoming
    mid: int
    qos: int


class Broker:
    """An accepted connection. `answer` may be called from any thread; ``receive`` is called in paho's."""

    def __init__(self, options: BrokerOptions, receive: "Callable[[Broker, Delivery], None]", protocol: int) -> None:
        self.lost = threading.Event()
        self.reason = ""
        self._options = options
        self._receive = receive
        self._five = protocol == MQTTProtocolVersion.MQTTv5
        self._ready = threading.Event()
        self._client = self._make(protocol)

    @classmethod
    def open(cls, options: BrokerOptions, receive: "Callable[[Broker, Delivery], None]") -> "Broker":
        """Connect and subscribe. `UnreachableError` says why that failed, `SetupError` what to mend."""
        try:
            return cls(options, receive, MQTTProtocolVersion.MQTTv5)._connect()
        except _OldBrokerError:
            return cls(options, receive, MQTTProtocolVersion.MQTTv311)._connect()

    def answer(self, delivery: Delivery, reply_to: ReplyTo, payload: bytes) -> None:
        """Publish an answer as surely as the request came, and only then tell the broker that the request is dealt
        with: whatever is lost in between is asked again. Raises `UnreachableError`."""
        qos = min(delivery.qos, 1)
        info = self._publish(reply_to, payload, qos)
        if qos:
            try:
                info.wait_for_publish(PUBLISH_S)
            except (RuntimeError, ValueError) as error:
                raise UnreachableError(f"the answer was not taken: {error}") from error
            if not info.is_published():
                raise UnreachableError(f"the broker did not take an answer within {PUBLISH_S:g} s")
        self.settle(delivery)

    def answer_at_once(self, delivery: Delivery, reply_to: ReplyTo, payload: bytes) -> None:
        """The same without waiting, for paho's own thread, which must not."""
        self._publish(reply_to, payload, min(delivery.qos, 1))
        self.settle(delivery)

    def settle(self, delivery: Delivery) -> None:
        """The request needs not come again."""
        self._client.ack(delivery.mid, delivery.qos)

    def give_up(self, reason: str) -> None:
        """Treat the connection as lost: what was not acknowledged comes again over the next one."""
        self._end(reason)

    def close(self) -> None:
        """Say goodbye; the broker keeps our place."""
        self._client.disconnect()
        self._client.loop_stop()
        self._let_go()
        self.lost.set()

    def _let_go(self) -> None:
        """Callbacks tie this and the client into a ring, whose sockets would stay open until a collection."""
        client = self._client
        client.on_connect = client.on_subscribe = client.on_disconnect = client.on_message = None

    def _publish(self, reply_to: ReplyTo, payload: bytes, qos: int) -> paho.MQTTMessageInfo:
        if self.lost.is_set():
            raise UnreachableError("the connection to the broker was lost")
        properties = None
        if self._five:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types there
            properties.ContentType = "application/json"
            if reply_to.correlation:
                properties.CorrelationData = reply_to.correlation
        return self._client.publish(reply_to.topic, payload, qos=qos, properties=properties)

    def _make(self, protocol: int) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._options.client_id,
            clean_session=None if self._five else False,
            protocol=MQTTProtocolVersion(protocol),
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.on_connect = self._guard(self._on_connect)
        client.on_subscribe = self._guard(self._on_subscribe)
        client.on_disconnect = self._guard(self._on_disconnect)
        client.on_message = self._guard(self._on_message)
        return client

    def _connect(self) -> "Broker":
        options, client = self._options, self._client
        if options.username:
            client.username_pw_set(options.username, _password(options.password_file))
        if options.tls:
            client.tls_set_context(_trust(options.ca))
        try:
            client.connect(options.host, options.port, _KEEPALIVE_S, **self._session())
        except (OSError, ValueError) as error:
            self._let_go()
            raise UnreachableError(f"broker {options.host}:{options.port}: {error}") from error
        client.loop_start()
        if not self._ready.wait(CONNECT_S) or self.lost.is_set():
            self.close()
            if self.reason == "Unsupported protocol version":
                raise _OldBrokerError
            raise UnreachableError(f"broker {options.host}:{options.port}: {self.reason or 'no answer in time'}")
        return self

    def _session(self) -> dict[str, Any]:
        if not self._five:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # as above
        properties.SessionExpiryInterval = SESSION_S
        return {"clean_start": False, "properties": properties}

    # --- in paho's thread

    def _guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception:
                logger.exception("%s failed", callback.__name__)

        return guarded

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._end(str(reason))
            return
        topics = request_filter(self._options.prefix)
        if self._five:
            wanted = SubscribeOptions(qos=1, noLocal=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            client.subscribe(topics, options=wanted)
        else:
            client.subscribe(topics, qos=1)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._end(f"subscribing to {request_filter(self._options.prefix)}: {refused[0]}")
        else:
            self._ready.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._end(self.reason or str(reason))

    def _end(self, reason: str) -> None:
        self.reason = reason
        self.lost.set()
        self._ready.set()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        response = getattr(properties, "ResponseTopic", "")
        correlation = getattr(properties, "CorrelationData", b"")
        incoming = Incoming(message.topic, bytes(message.payload), response, bytes(correlation))
        delivery = Delivery(incoming, message.mid, message.qos)
        if message.retain:
            self.settle(delivery)  # a retained request would be asked again at every reconnect, for ever
        else:
            self._receive(self, delivery)


class _OldBrokerError(Exception):
    """The broker does not speak MQTT 5."""


def _password(name: str) -> str | None:
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\r\n") if name else None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"mqtt_inference.password_file {name}: {error}") from error


def _trust(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"mqtt_inference.ca {ca}: {error}") from error
