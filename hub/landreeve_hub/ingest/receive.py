"""From the broker to the tables: messages are queued, taken in batches, committed, and only then acknowledged.

The order is the promise: commit, then the broker's acknowledgement, then the hub's own (`Ack`, cumulative). A hub
killed between any two of them is told again and counts nothing twice.
"""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec
from landreeve.wire.codec import READS, BadMessageError, Block, decode, decode_block, encode
from landreeve.wire.messages import Ack, Body, Want
from landreeve.wire.topics import (
    BadTopicError,
    Down,
    DownTopic,
    Topic,
    Up,
    UpTopic,
    UpWantTopic,
    format_topic,
    parse_topic,
)
from sqlalchemy import Connection, select

from landreeve_hub.incidents.rules import FLOODS, HOARDS
from landreeve_hub.ingest.appliers import Applier
from landreeve_hub.ingest.bucket import Buckets
from landreeve_hub.ingest.commit import Arrival, Outcome, Refusal, commit_batch
from landreeve_hub.ingest.line import Message
from landreeve_hub.store.database import PASSING, Store, StoreClosedError
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.tables import devices

log = logging.getLogger(__name__)
MAX_BATCH = 1000
MAX_WAITING = 20_000
GATHER_S = 0.01
RETRY_S = (0.2, 1.0, 5.0)


class Blocks(Protocol):
    """What takes part in moving artifacts (`landreeve_hub.registry`)."""

    def on_want(self, device: str, digest: str, want: Want) -> None: ...
    def on_block(self, device: str, block: Block) -> None: ...


@dataclass(slots=True)
class _Sorted:
    """A batch by what has to be done with it."""

    arrivals: list[Arrival] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    wants: list[tuple[str, str, Want]] = field(default_factory=list)
    blocks: list[tuple[str, Block]] = field(default_factory=list)
    accused: dict[str, str] = field(default_factory=dict)


class Receiver:
    """Takes messages from a `Line` (or a test) and turns them into rows.

    ``publish`` sends the acknowledgements. ``listeners`` are called in the batch thread with what a committed
    batch did; they must return at once.
    """

    def __init__(
        self,
        store: Store,
        fleet: str,
        appliers: Mapping[type[Body], Applier],
        publish: Callable[[str, bytes, bool], None],
        clock: Callable[[], datetime],
        *,
        blocks: Blocks | None = None,
        listeners: Sequence[Callable[[Outcome], None]] = (),
        buckets: Buckets | None = None,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._appliers = appliers
        self._publish = publish
        self._clock = clock
        self._blocks = blocks
        self._listeners = listeners
        self._buckets = buckets or Buckets()
        self._told: set[str] = set()  # devices that know, in this session of theirs, what the hub reads
        self._waiting: queue.Queue[Message] = queue.Queue(MAX_WAITING)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ingest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch in hand; what waits is not acknowledged and comes again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, message: Message) -> None:
        """Queue a message; blocks while too many wait, which slows the broker down rather than losing any."""
        while not self._stopping.is_set():
            try:
                self._waiting.put(message, timeout=0.5)
            except queue.Full:
                continue
            return

    def _work(self) -> None:
        while not self._stopping.is_set():
            batch = self._gather()
            if not batch:
                continue
            try:
                self._process(batch)
            except Exception:
                log.exception("a batch of %d messages failed; their senders repeat them", len(batch))

    def _gather(self) -> list[Message]:
        """What waits, after a moment in which more may come: one commit serves all of it."""
        try:
            batch = [self._waiting.get(timeout=0.2)]
        except queue.Empty:
            return []
        time.sleep(GATHER_S)
        while len(batch) < MAX_BATCH:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return batch

    def _process(self, batch: Sequence[Message]) -> None:
        found = self._sort(batch)
        outcome = self._commit(found) if found.arrivals or found.refusals else Outcome()
        if outcome is None:
            return
        outcome.accused |= found.accused
        for message in batch:
            message.acknowledge()
        self._told.difference_update(outcome.changed)
        for device, ack in outcome.acks:
            self._acknowledge(device, ack)
        self._move_blocks(found)
        self._tell(outcome)

    def _acknowledge(self, device: str, ack: Ack) -> None:
        if device not in self._told:
            self._told.add(device)
            ack = msgspec.structs.replace(ack, reads=READS, at=rfc3339(self._clock()))
        self._publish(format_topic(DownTopic(self._fleet, device, Down.ACK)), encode(ack), False)

    def _sort(self, batch: Sequence[Message]) -> _Sorted:
        found, now = _Sorted(), time.monotonic()
        for message in batch:
            device = ""
            try:
                topic = parse_topic(message.topic)
                device = _device(topic, self._fleet)
                if not self._buckets.take(device, now):
                    found.accused[device] = FLOODS
                    continue
                if _hoarded(topic, message):
                    found.accused.setdefault(device, HOARDS)
                _file(found, topic, device, message)
            except (BadTopicError, BadMessageError) as error:
                found.refusals.append(Refusal(device, str(error), message.payload))
        return found

    def _commit(self, found: _Sorted) -> Outcome | None:
        """Until it is on disk, however long the disk is full; None when the hub stops first.

        Trouble that is not the database's comes from a message, and would come again at each try: that one is found
        by halving, and refused, so that no device can hold up the others.
        """
        for attempt in itertools.count():
            if self._stopping.is_set():
                return None
            try:
                return self._try(found)
            except PASSING:
                log.exception("%d messages could not be stored; trying again", len(found.arrivals))
                self._stopping.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            except StoreClosedError:
                return None
            except Exception as error:
                if len(found.arrivals) != 1:
                    return self._by_halves(found)
                log.exception("a message of %s cannot be stored and is refused", found.arrivals[0].device)
                found = _refused(found, f"{type(error).__name__}: {error}")
        return None

    def _try(self, found: _Sorted) -> Outcome:
        now = self._clock()

        def run(connection: Connection) -> Outcome:
            return commit_batch(connection, found.arrivals, found.refusals, self._appliers, now)

        return self._store.submit(run).result()

    def _by_halves(self, found: _Sorted) -> Outcome | None:
        middle = len(found.arrivals) // 2
        whole = Outcome()
        for arrivals, refusals in ((found.arrivals[:middle], found.refusals), (found.arrivals[middle:], [])):
            part = self._commit(_Sorted(arrivals, refusals))
            if part is None:
                return None
            whole.accepted += part.accepted
            whole.changed |= part.changed
            whole.reads |= part.reads
            whole.acks += part.acks
            whole.doubled |= part.doubled
            whole.strangers |= part.strangers
            whole.refused += part.refused
        return whole

    def _move_blocks(self, found: _Sorted) -> None:
        if self._blocks is None or not (found.wants or found.blocks):
            return
        present = self._store.submit_read(_present).result()
        found.wants = [want for want in found.wants if want[0] in present]
        found.blocks = [block for block in found.blocks if block[0] in present]
        for device, digest, want in found.wants:
            try:
                self._blocks.on_want(device, digest, want)
            except Exception:
                log.exception("a want of %s failed; it is repeated", device)
        for device, block in found.blocks:
            try:
                self._blocks.on_block(device, block)
            except Exception:
                log.exception("a block of %s failed; it is asked for again", device)

    def _tell(self, outcome: Outcome) -> None:
        if not (outcome.accepted or outcome.changed or outcome.refused or outcome.accused):
            return
        for listener in self._listeners:
            try:
                listener(outcome)
            except Exception:
                log.exception("a room failed when told about %d facts", len(outcome.accepted))


def _present(connection: Connection) -> frozenset[str]:
    """Devices that belong to the fleet: a revoked one neither gets nor gives blocks."""
    return frozenset(connection.execute(select(devices.c.id).where(~devices.c.revoked)).scalars())


def _refused(found: _Sorted, reason: str) -> _Sorted:
    """The same with its one arrival refused."""
    (arrival,) = found.arrivals
    return _Sorted([], [*found.refusals, Refusal(arrival.device, reason, arrival.payload)])


def _hoarded(topic: Topic, message: Message) -> bool:
    """Whether the broker has kept it since before this session of the hub: only a device's state belongs there, and all
    else takes the broker's memory for ever."""
    is_state = isinstance(topic, UpTopic) and topic.channel is Up.STATE
    return message.retained and not is_state and bool(message.payload)


def _device(topic: Topic, fleet: str) -> str:
    """Whose topic it is: the only identity a message has, since the broker holds it to the certificate."""
    if not isinstance(topic, UpTopic | UpWantTopic) or topic.fleet != fleet:
        raise BadTopicError(f"topic {format_topic(topic)!r} is not for the hub of fleet {fleet!r}")
    return topic.device


def _file(found: _Sorted, topic: Topic, device: str, message: Message) -> None:
    match topic:
        case UpWantTopic(digest=digest):
            found.wants.append((device, digest, decode(message.payload, Want)))
        case UpTopic(channel=Up.BLOCKS):
            found.blocks.append((device, decode_block(message.payload)))
        case UpTopic(channel=Up.STATE):
            found.arrivals.append(Arrival(device, message.payload, is_state=True, retained=message.retained))
        case _:
            found.arrivals.append(Arrival(device, message.payload))
