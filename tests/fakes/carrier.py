"""An MQTT broker in memory, as far as the link uses one: sessions, retained messages, wills, QoS 1 until done.

It passes the same contract as paho against a real broker (tests/integration/test_carrier_contract.py).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from landreeve_agent.link.carrier import CarrierError, Endpoint, Message, Will


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT 3.1.1, 4.7, for filters with a trailing ``#`` or none."""
    if topic_filter.endswith("/#"):
        return topic.startswith(topic_filter[:-1])
    return topic == topic_filter


@dataclass(eq=False)
class _Unfinished:
    topic: str
    payload: bytes


@dataclass
class _Session:
    """What the broker keeps of a client while it is away."""

    filters: dict[str, int] = field(default_factory=dict)
    unfinished: list[_Unfinished] = field(default_factory=list)
    carrier: "FakeCarrier | None" = None


class FakeBroker:
    """Use its `connect` in place of `PahoCarrier.open`."""

    def __init__(self) -> None:
        self.sessions: dict[str, _Session] = {}
        self.retained: dict[str, bytes] = {}
        self.log: list[tuple[str, bytes]] = []
        self.listeners: list[Callable[[str, bytes], None]] = []
        self.down = False

    async def connect(self, endpoint: Endpoint, will: Will, receive: Callable[[Message], None]) -> "FakeCarrier":
        await asyncio.sleep(0)
        if self.down:
            raise CarrierError(f"broker {endpoint.host}:{endpoint.port}: connection refused")
        session = self.sessions.setdefault(endpoint.client_id, _Session())
        if session.carrier is not None:
            session.carrier.vanish()
        if not endpoint.persistent:
            session = self.sessions[endpoint.client_id] = _Session()
        session.carrier = FakeCarrier(self, session, will, receive)
        for item in session.unfinished:
            session.carrier.deliver(item, qos=1)
        return session.carrier

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As any client would."""
        self.log.append((topic, payload))
        if retain:
            self.retained[topic] = payload
        for listener in self.listeners:
            listener(topic, payload)
        for session in self.sessions.values():
            granted = [q for f, q in session.filters.items() if matches(f, topic)]
            if granted:
                self._route(session, _Unfinished(topic, payload), min(qos, *granted, 1))

    def cut(self) -> None:
        """Every connection breaks, as when the broker is killed."""
        for session in self.sessions.values():
            if session.carrier is not None:
                session.carrier.vanish()

    def _route(self, session: _Session, item: _Unfinished, qos: int) -> None:
        if qos:
            session.unfinished.append(item)
        if session.carrier is not None:
            session.carrier.deliver(item, qos)


class FakeCarrier:
    """One connection to the fake broker."""

    def __init__(self, broker: FakeBroker, session: _Session, will: Will, receive: Callable[[Message], None]) -> None:
        self.lost = asyncio.Event()
        self._broker = broker
        self._session = session
        self._will = will
        self._receive = receive

    @property
    def backlog(self) -> int:
        return 0

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        if not self.lost.is_set():
            self._broker.publish(topic, payload, qos=qos, retain=retain)

    def subscribe(self, topic_filter: str, *, qos: int) -> None:
        self._session.filters[topic_filter] = qos
        for topic, payload in self._broker.retained.items():
            if matches(topic_filter, topic):
                self._broker._route(self._session, _Unfinished(topic, payload), qos)

    def unsubscribe(self, topic_filter: str) -> None:
        self._session.filters.pop(topic_filter, None)

    async def settle(self, backlog: int) -> None:
        await asyncio.sleep(0)

    async def close(self, *, abrupt: bool = False) -> None:
        await asyncio.sleep(0)
        if abrupt:
            self.vanish()
        else:
            self._leave()

    def deliver(self, item: _Unfinished, qos: int) -> None:
        done = (lambda: self._finish(item)) if qos else (lambda: None)
        asyncio.get_running_loop().call_soon(self._hand_over, Message(item.topic, item.payload, done))

    def vanish(self) -> None:
        """The connection ends without a goodbye: the broker publishes the will."""
        if self._session.carrier is self:
            self._leave()
            self._broker.publish(self._will.topic, self._will.payload, retain=True)

    def _hand_over(self, message: Message) -> None:
        if not self.lost.is_set():
            self._receive(message)

    def _finish(self, item: _Unfinished) -> None:
        if not self.lost.is_set() and item in self._session.unfinished:
            self._session.unfinished.remove(item)

    def _leave(self) -> None:
        if self._session.carrier is self:
            self._session.carrier = None
        self.lost.set()
