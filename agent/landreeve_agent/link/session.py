"""The session with the hub: facts out, orders in, over whatever connections the network allows.

`Session.run` connects, and connects again, for ever. Of a connection nothing is kept: what must not be lost is
in the outbox, and what the hub wants of us is retained at the broker. Losing the hub changes nothing on site.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec
from landreeve.wire.codec import READS, BadMessageError, Block, decode, decode_block, encode, readable
from landreeve.wire.messages import Ack, Command, DeviceState, Presence, SignedDesired, Want, Witness
from landreeve.wire.topics import (
    BadTopicError,
    Down,
    DownLaneTopic,
    DownOfferTopic,
    DownTopic,
    DownWantTopic,
    SharedBlocksTopic,
    Topic,
    Up,
    UpTopic,
    device_filters,
    format_topic,
    parse_topic,
)
from landreeve.wire.transfers import Lane, Offer

from landreeve_agent.link.carrier import Carrier, CarrierError, Connect, Endpoint, Message, PahoCarrier, Will
from landreeve_agent.link.contact import Contact
from landreeve_agent.link.meter import Meter
from landreeve_agent.link.numbers import next_session, save_hub_reads
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.pause import pause_s
from landreeve_agent.link.setback import Setback
from landreeve_agent.link.window import Window
from landreeve_agent.store.stamps import stamp

logger = logging.getLogger(__name__)

_GOODBYE_S = 2.0


class Identity(Protocol):
    """Who this device is and where its hub's broker is (`landreeve_agent.link.identity`)."""

    @property
    def device(self) -> str: ...
    @property
    def fleet(self) -> str: ...
    @property
    def broker_host(self) -> str: ...
    @property
    def broker_port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Options:
    """``reconnect_jitter_s`` bounds the random wait before a connection is tried again, so that a fleet does not
    return at one moment (an mTLS handshake costs the broker about a millisecond)."""

    reconnect_jitter_s: float = 60.0
    window: int = 50
    resend_s: float = 3.0
    keepalive_s: int = 30
    state_every_s: float = 60.0
    order_retry_s: float = 10.0
    persistent: bool = True


@dataclass(frozen=True, slots=True)
class Handlers:
    """What to do with what the hub says. The first two are awaited one after another and must bear repeats."""

    on_desired: Callable[[SignedDesired], Awaitable[None]]
    on_command: Callable[[Command], Awaitable[None]]
    on_want: Callable[[str, Want], None]
    on_witness: Callable[[Witness], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class _Trial:
    """Other keys to connect with, and who waits to hear whether the broker accepts them."""

    keys: Path
    accepted: "asyncio.Future[None]"


class Session:
    """One device's link. Build it once and keep `run` going as a task; cancelling that says goodbye."""

    def __init__(
        self,
        identity: Identity,
        keys: Path | None,
        outbox: Outbox,
        handlers: Handlers,
        state: Callable[[], DeviceState],
        *,
        clock: Callable[[], datetime],
        options: Options = Options(),
        connect: Connect = PahoCarrier.open,
        meter: Meter | None = None,
    ) -> None:
        self.identity = identity
        self.contact = Contact()
        self.meter = meter or Meter()
        self.connected = asyncio.Event()
        self.on_block: Callable[[Block], bool] | None = None
        self.on_guide: Callable[[str, Offer | Lane], None] | None = None
        self.on_presence: Callable[[Presence], None] | None = None
        self._keys = keys
        self._outbox = outbox
        self._handlers = handlers
        self._state = state
        self._clock = clock
        self._options = options
        self._connect = connect
        self._carrier: Carrier | None = None
        self._trial: _Trial | None = None
        self._turn = asyncio.Event()
        self._number = 0
        self._hub_reads: frozenset[str] = frozenset()
        self._setback = Setback(2 * options.resend_s)
        self._window = Window(options.window, options.resend_s)
        self._shared: set[str] = set()
        self._state_changed = asyncio.Event()
        self._acks: asyncio.Queue[Message] = asyncio.Queue()
        self._orders: asyncio.Queue[Message] = asyncio.Queue()

    async def run(self) -> None:
        """Keeps the link up until cancelled."""
        loop = asyncio.get_running_loop()
        self._outbox.bind(loop)
        while True:
            began = loop.time()
            try:
                await self._one_connection()
            except CarrierError as error:
                self._note(str(error))
            except Exception as error:
                self.contact.counts.failures += 1
                logger.exception("the link failed and starts again")
                self._note(f"internal error: {error}")
            await self._pause(loop.time() - began)

    async def prove(self, keys: Path) -> None:
        """Connect anew, at once, with the keys in that folder, and stay with them; `CarrierError` when the broker does
        not accept them: then the next connection is made with the former ones."""
        self._trial = _Trial(keys, asyncio.get_running_loop().create_future())
        self._turn.set()
        await self._trial.accepted

    async def _pause(self, lasted_s: float) -> None:
        if self._turn.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s(self._options.reconnect_jitter_s, lasted_s)):
                await self._turn.wait()

    def state_changed(self) -> None:
        """Says that `state` would now answer differently: it is published anew."""
        self._state_changed.set()

    def limit_rate(self, facts_per_s: float | None) -> None:
        """At most that many facts a second from now on, as the hub asked; None lifts the limit."""
        self._window.limit(facts_per_s)
        self._outbox.wake.set()

    async def settle(self, backlog: int) -> None:
        """Waits until no more than that many messages wait to leave, for who sends in bulk."""
        if self._carrier is not None:
            await self._carrier.settle(backlog)

    def publish(self, topic: Topic, payload: bytes, *, qos: int) -> bool:
        """Sends outside the outbox, for what is repeated anyway; False when there is no connection."""
        if self._carrier is None or self._carrier.lost.is_set():
            return False
        self._send(self._carrier, format_topic(topic), payload, qos=qos)
        return True

    def share(self, digest: str) -> None:
        """Also listens to the blocks of that artifact that are sent to all devices."""
        self._shared.add(digest)
        if self._carrier is not None:
            self._carrier.subscribe(self._shared_topic(digest), qos=0)

    def unshare(self, digest: str) -> None:
        """Listens no longer: blocks meant for others would use up the site's line."""
        self._shared.discard(digest)
        if self._carrier is not None:
            self._carrier.unsubscribe(self._shared_topic(digest))

    async def _one_connection(self) -> None:
        self._number, client, self._hub_reads = await self._outbox.database.write(
            lambda db: next_session(db, self._clock())
        )
        self._window.restart(await self._outbox.epoch(self._clock()))
        self._setback.restart()
        self._empty_queues()
        trial, self._trial = self._trial, None
        self._turn.clear()
        carrier = await self._open(client, trial)
        self._carrier = carrier
        try:
            await self._greet(carrier)
            await self._live(carrier)
        finally:
            self.connected.clear()
            self.contact.connected = False
            await self._part(carrier)
            self._carrier = None

    async def _open(self, client: str, trial: _Trial | None) -> Carrier:
        endpoint = self._endpoint(client, trial.keys if trial else self._keys)
        try:
            carrier = await self._connect(endpoint, self._will(), self._receive)
        except CarrierError as error:
            if trial and not trial.accepted.done():
                trial.accepted.set_exception(error)
                self._turn.set()  # back to the former keys without a pause
            raise
        if trial and not trial.accepted.done():
            trial.accepted.set_result(None)
        return carrier

    async def _greet(self, carrier: Carrier) -> None:
        orders, _blocks = device_filters(self.identity.fleet, self.identity.device)
        carrier.subscribe(orders, qos=1)
        for digest in self._shared:
            carrier.subscribe(self._shared_topic(digest), qos=0)
        await self._publish_state(carrier)
        self.contact.counts.connections += 1
        self.contact.connected = True
        self.contact.problem = ""
        self.contact.last_contact = self._clock()
        self.connected.set()
        logger.info("connected to %s as %s", self.identity.broker_host, self.identity.device)

    async def _live(self, carrier: Carrier) -> None:
        """Ends when other keys are to be tried, or with `CarrierError` when the connection is lost."""
        work = (self._drain(carrier), self._take_acks(), self._take_orders(), self._tell_state(carrier))
        tasks = [asyncio.create_task(job) for job in (*work, carrier.lost.wait(), self._turn.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._turn.is_set() and not carrier.lost.is_set():
            return
        raise CarrierError(f"the connection to {self.identity.broker_host} was lost")

    async def _part(self, carrier: Carrier) -> None:
        if carrier.lost.is_set():
            await carrier.close(abrupt=True)
            return
        self._send(carrier, self._topic(Up.STATE), self._will().payload, qos=1, retain=True)
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await carrier.settle(0)
        except TimeoutError:
            logger.info("the broker did not take our goodbye in %s s", _GOODBYE_S)
        await carrier.close()

    def _receive(self, message: Message) -> None:
        """Sorts what arrives; runs in the event loop."""
        self.contact.last_contact = self._clock()
        self.meter.received(message.topic, message.payload)
        try:
            self._sort(parse_topic(message.topic), message)
        except (BadTopicError, BadMessageError) as error:
            self._reject(message, str(error))
        except Exception:
            self.contact.counts.failures += 1
            logger.exception("message on %s failed", message.topic)

    def _sort(self, topic: Topic, message: Message) -> None:
        match topic:
            case DownTopic(fleet, device, channel) if self._is_me(fleet, device):
                self._sort_down(channel, message)
            case DownWantTopic(fleet, device, digest) if self._is_me(fleet, device):
                self._handlers.on_want(digest, decode(message.payload, Want))
                message.done()
            case DownOfferTopic(fleet, device, digest) if self._is_me(fleet, device):
                self._guide(digest, message, Offer)
            case DownLaneTopic(fleet, device, digest) if self._is_me(fleet, device):
                self._guide(digest, message, Lane)
            case SharedBlocksTopic(_, digest):
                self._take_shared(digest, message)
            case _:
                self._reject(message, "not addressed to this device")

    def _sort_down(self, channel: Down, message: Message) -> None:
        match channel:
            case Down.ACK:
                self._acks.put_nowait(message)
            case Down.DESIRED | Down.COMMAND | Down.WITNESS:
                self._orders.put_nowait(message)
            case Down.BLOCKS:
                self._take_block(decode_block(message.payload))
                message.done()
            case Down.PRESENCE:
                if self.on_presence is not None and message.payload:
                    self.on_presence(decode(message.payload, Presence))
                message.done()

    def _guide(self, digest: str, message: Message, kind: type[Offer] | type[Lane]) -> None:
        guide = decode(message.payload, kind)
        if self.on_guide is not None:
            self.on_guide(digest, guide)
        message.done()

    def _take_shared(self, digest: str, message: Message) -> None:
        block = decode_block(message.payload)
        if block.digest != digest:
            raise BadMessageError(f"a block of {block.digest[:12]} on the topic of {digest[:12]}")
        # A subscription may outlive the process that made it, in a persistent session at the broker.
        if not self._take_block(block) and digest not in self._shared and self._carrier is not None:
            self._carrier.unsubscribe(message.topic)
        message.done()

    def _take_block(self, block: Block) -> bool:
        return self.on_block is not None and self.on_block(block)

    def _reject(self, message: Message, reason: str) -> None:
        self.contact.counts.rejected += 1
        logger.warning("message on %.120s (%d bytes) rejected: %s", message.topic, len(message.payload), reason)
        message.done()

    async def _take_acks(self) -> None:
        while True:
            message = await self._acks.get()
            try:
                ack = decode(message.payload, Ack)
            except BadMessageError as error:
                self._reject(message, str(error))
                continue
            if not self._acks.empty() and ack.reads is msgspec.UNSET:
                message.done()  # a later one says the same and more
                continue
            await self._learn_reads(ack)
            if self._window.acknowledge(ack.epoch, ack.seq):
                await self._forget(ack)
                await self._notice_setback(ack)
            message.done()

    async def _notice_setback(self, ack: Ack) -> None:
        """A hub that was set back waits for facts that are gone here: it is told that they never come."""
        gone = await self._outbox.forgotten()
        if self._carrier is not None and self._setback.heard(ack.seq, gone, asyncio.get_running_loop().time()):
            gap = await self._outbox.give_up(ack.seq + 1, gone, self._clock())
            self._send(self._carrier, self._topic(gap.channel), gap.body, qos=1)

    async def _learn_reads(self, ack: Ack) -> None:
        """What the hub says once a session. Kept in the store: the next start need not send its birth plain again."""
        if ack.at is not msgspec.UNSET:
            self.contact.hub_said = (datetime.fromisoformat(ack.at), time.monotonic())
        if ack.reads is msgspec.UNSET or self._hub_reads == frozenset(ack.reads):
            return
        self._hub_reads = frozenset(ack.reads)
        await self._outbox.database.write(lambda db: save_hub_reads(db, self._hub_reads))

    async def _forget(self, ack: Ack) -> None:
        done = await self._outbox.acknowledge(ack.epoch, ack.seq, self._clock())
        self.contact.counts.acknowledged += done.facts
        if done.renumbered:
            raise CarrierError("facts of another epoch are sent from now on: connecting again for them")
        self._outbox.wake.set()

    async def _take_orders(self) -> None:
        orders = self._orders
        while True:
            message = await orders.get()
            try:
                await self._take_order(message)
            except (BadTopicError, BadMessageError) as error:
                self._reject(message, str(error))
            except Exception:
                # Not acknowledged to the broker either: it also comes again with the next connection.
                self.contact.counts.failures += 1
                logger.exception("order on %s failed", message.topic)
                asyncio.get_running_loop().call_later(self._options.order_retry_s, orders.put_nowait, message)

    async def _take_order(self, message: Message) -> None:
        if not message.payload:
            message.done()  # an emptied retained topic
            return
        if message.topic == self._down(Down.DESIRED):
            await self._handlers.on_desired(decode(message.payload, SignedDesired))
        elif message.topic == self._down(Down.WITNESS):
            if self._handlers.on_witness is not None:
                await self._handlers.on_witness(decode(message.payload, Witness))
        else:
            await self._handlers.on_command(decode(message.payload, Command))
        message.done()

    async def _drain(self, carrier: Carrier) -> None:
        """Sends new facts within the window and old ones again, and sleeps until there is something to do."""
        loop = asyncio.get_running_loop()
        while True:
            self._outbox.wake.clear()
            room = self._window.room(loop.time())
            fresh = await self._outbox.pending(self._window.last, room) if room else []
            for fact in fresh:
                self._window.sent(fact, loop.time())
                self._send(carrier, self._topic(fact.channel), fact.body, qos=1)
            overdue = self._window.overdue(loop.time())
            for fact in overdue:
                self._send(carrier, self._topic(fact.channel), fact.body, qos=1)
            self.contact.counts.sent += len(fresh)
            self.contact.counts.resent += len(overdue)
            await self._sleep_until_woken(self._window.next_due(loop.time(), full=len(fresh) == room))

    async def _sleep_until_woken(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._outbox.wake.wait()
        except TimeoutError:
            return

    async def _tell_state(self, carrier: Carrier) -> None:
        """Publishes the state when it changed, and now and then in any case."""
        while True:
            try:
                async with asyncio.timeout(self._options.state_every_s):
                    await self._state_changed.wait()
            except TimeoutError:
                logger.debug("state published without a change")
            await self._publish_state(carrier)

    async def _publish_state(self, carrier: Carrier) -> None:
        self._state_changed.clear()
        size = await self._outbox.size()
        state = msgspec.structs.replace(
            self._state(), session=self._number, online=True, at=stamp(self._clock()), outbox=size.facts, reads=READS
        )
        self._send(carrier, self._topic(Up.STATE), encode(state), qos=1, retain=True)

    def _send(self, carrier: Carrier, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        payload = readable(payload, self._hub_reads)
        self.meter.sent(topic, payload)
        carrier.publish(topic, payload, qos=qos, retain=retain)

    def _will(self) -> Will:
        at = stamp(self._clock())
        state = msgspec.structs.replace(self._state(), session=self._number, online=False, at=at, reads=READS)
        return Will(self._topic(Up.STATE), readable(encode(state), self._hub_reads))

    def _endpoint(self, client: str, keys: Path | None) -> Endpoint:
        who, options = self.identity, self._options
        client_id = f"{who.device}-{client}"
        return Endpoint(who.broker_host, who.broker_port, client_id, keys, options.keepalive_s, options.persistent)

    def _empty_queues(self) -> None:
        """What an old connection delivered cannot be acknowledged on the new one; the broker repeats it."""
        self._acks = asyncio.Queue()
        self._orders = asyncio.Queue()

    def _note(self, problem: str) -> None:
        if problem != self.contact.problem:
            logger.warning("%s", problem)
        self.contact.problem = problem

    def _is_me(self, fleet: str, device: str) -> bool:
        return fleet == self.identity.fleet and device == self.identity.device

    def _topic(self, channel: Up) -> str:
        return format_topic(UpTopic(self.identity.fleet, self.identity.device, channel))

    def _down(self, channel: Down) -> str:
        return format_topic(DownTopic(self.identity.fleet, self.identity.device, channel))

    def _shared_topic(self, digest: str) -> str:
        return format_topic(SharedBlocksTopic(self.identity.fleet, digest))
