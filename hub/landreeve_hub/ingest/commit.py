"""A batch of messages becomes rows: one transaction for all of it.

What a fact does and that it has counted are committed together; only then may anyone be told. A fact whose
applier fails is undone alone, kept as a rejection with its bytes, and counts.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from landreeve.wire.codec import BadMessageError, decode
from landreeve.wire.messages import Ack, Body, DeviceState, Fact, Gap, Wire
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import OperationalError

from landreeve_hub.fleet import sessions
from landreeve_hub.ingest.accept import Apply, Progress, Reject, decide
from landreeve_hub.ingest.appliers import Applier, UnfitFactError, applier_for, check_depth
from landreeve_hub.ingest.presence import Known, counts, problem
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.upsert import add, upsert

log = logging.getLogger(__name__)
KEEP_REJECTIONS = 200
KEEP_REJECTED_BYTES = 64 * 1024
# Their effects hold all of them (device-minutes, windows): the body is not kept twice.
_KEPT_ELSEWHERE = ("metric", "drift", "audit_head", "cosigned")


class Envelope(Wire, frozen=True, kw_only=True):
    """A fact as far as it can be read when its body cannot."""

    epoch: int
    seq: int
    at: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message of a device that is a fact or its state. ``retained`` ones tell of the past."""

    device: str
    payload: bytes
    is_state: bool = False
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Bytes that count for nothing, and why."""

    device: str
    reason: str
    payload: bytes


@dataclass(slots=True)
class Outcome:
    """What a committed batch did: the facts that counted, whose state changed, what those devices say they read,
    what to acknowledge, and which identities turned out to be used by two boxes."""

    accepted: list[tuple[str, Fact]] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    reads: dict[str, frozenset[str]] = field(default_factory=dict)
    acks: list[tuple[str, Ack]] = field(default_factory=list)
    doubled: set[str] = field(default_factory=set)
    refused: int = 0


def commit_batch(
    connection: Connection,
    arrivals: Sequence[Arrival],
    refusals: Iterable[Refusal],
    appliers: Mapping[type[Body], Applier],
    now: datetime,
) -> Outcome:
    """Apply the arrivals in order; call it inside a transaction and tell no one before that is committed."""
    batch = _Batch(connection, appliers, now)
    for arrival in arrivals:
        batch.take(arrival)
    for refusal in refusals:
        batch.refuse(refusal)
    return batch.finish()


class _Batch:
    """The state of one transaction: progress by (device, epoch), counters, and the rows to add at its end."""

    def __init__(self, connection: Connection, appliers: Mapping[type[Body], Applier], now: datetime) -> None:
        self._connection = connection
        self._appliers = appliers
        self._moment = now
        self._now = rfc3339(now)
        self._progress: dict[tuple[str, int], Progress] = {}
        self._enrolled: dict[str, bool] = {}
        self._counters: dict[str, dict[str, int]] = {}
        self._heard: set[str] = set()
        self._outcome = Outcome()

    def take(self, arrival: Arrival) -> None:
        if not self._may_speak(arrival.device):
            self.refuse(Refusal(arrival.device, "device is not enrolled at this hub, or revoked", arrival.payload))
        elif arrival.is_state:
            self._take_state(arrival)
        else:
            self._heard.add(arrival.device)
            self._take_fact(arrival)

    def _may_speak(self, device: str) -> bool:
        if device not in self._enrolled:
            row = self._connection.execute(
                select(tables.devices.c.revoked).where(tables.devices.c.id == device)
            ).first()
            self._enrolled[device] = row is not None and not row.revoked
        return self._enrolled[device]

    def _take_state(self, arrival: Arrival) -> None:
        device, table = arrival.device, tables.devices
        try:
            state = decode(arrival.payload, DeviceState)
        except BadMessageError as error:
            self.refuse(Refusal(device, str(error), arrival.payload))
            return
        if wrong := problem(state):
            self.refuse(Refusal(device, f"DeviceState: {wrong}", arrival.payload))
            return
        if state.online and not arrival.retained and sessions.note_in(self._connection, device, state, self._moment):
            self._outcome.doubled.add(device)
        row = self._connection.execute(select(table.c.session, table.c.online).where(table.c.id == device)).one()
        if not counts(Known(row.session, row.online), state):
            return
        changes = {"session": state.session, "online": state.online}
        # A will is made at the start of its session: it says that the device left, and nothing of what it runs.
        if state.online:
            changes |= {"doc": msgspec.to_builtins(state), "generation": state.generation}
        self._connection.execute(update(table).where(table.c.id == device).values(changes))
        if not arrival.retained:
            self._heard.add(device)
        self._outcome.changed.add(device)
        self._outcome.reads[device] = frozenset(state.reads)

    def _take_fact(self, arrival: Arrival) -> None:
        try:
            fact = decode(arrival.payload, Fact)
            fact = msgspec.structs.replace(fact, at=rfc3339(parse_rfc3339(fact.at)))
        except ValueError as error:
            self._take_unreadable(arrival, str(error))
            return
        gap = fact.body if isinstance(fact.body, Gap) else None
        key = (arrival.device, fact.epoch)
        match decide(self._load(key), fact.epoch, fact.seq, gap):
            case Reject(reason):
                self.refuse(Refusal(arrival.device, reason, arrival.payload))
            case Apply(progress):
                self._apply(arrival, fact)
                self._progress[key] = progress
            case repeat:
                self._repeat(arrival.device, fact, gap)
                self._progress[key] = repeat.progress

    def _repeat(self, device: str, fact: Fact, gap: Gap | None) -> None:
        self._count(device, "duplicates")
        if gap is not None:  # a gap may take the number of a metric that came before it
            self._appliers[Gap](self._connection, device, fact)

    def _apply(self, arrival: Arrival, fact: Fact) -> None:
        savepoint = self._connection.begin_nested()
        try:
            check_depth(msgspec.to_builtins(fact.body))
            applier_for(self._appliers, fact.body)(self._connection, arrival.device, fact)
        except OperationalError:
            raise  # the database's trouble, not the fact's: the whole batch is tried again
        except Exception as error:  # noqa: BLE001  one fact must not hold up all others behind it
            savepoint.rollback()
            self._blame(arrival, error)
            self._remember(arrival.device, Envelope(epoch=fact.epoch, seq=fact.seq, at=fact.at), "rejected", {})
            return
        savepoint.commit()
        kind = str(fact.body.__struct_config__.tag)
        body = {} if kind in _KEPT_ELSEWHERE else msgspec.to_builtins(fact.body)
        self._remember(arrival.device, Envelope(epoch=fact.epoch, seq=fact.seq, at=fact.at), kind, body)
        self._count(arrival.device, "facts")
        self._outcome.accepted.append((arrival.device, fact))

    def _blame(self, arrival: Arrival, error: Exception) -> None:
        if not isinstance(error, UnfitFactError | ValueError):
            log.error("a fact of %s could not be applied", arrival.device, exc_info=error)
        self.refuse(Refusal(arrival.device, f"{type(error).__name__}: {error}", arrival.payload))

    def _take_unreadable(self, arrival: Arrival, reason: str) -> None:
        """Refused either way; with a readable envelope its number counts."""
        self.refuse(Refusal(arrival.device, reason, arrival.payload))
        try:
            envelope = decode(arrival.payload, Envelope)
        except BadMessageError:
            return
        key = (arrival.device, envelope.epoch)
        decision = decide(self._load(key), envelope.epoch, envelope.seq)
        if isinstance(decision, Apply):
            self._progress[key] = decision.progress
            self._remember(arrival.device, envelope, "rejected", {})

    def refuse(self, refusal: Refusal) -> None:
        row = {"device": refusal.device, "at": self._now, "reason": refusal.reason[:500]}
        self._connection.execute(
            insert(tables.rejections).values({**row, "bytes": refusal.payload[:KEEP_REJECTED_BYTES]})
        )
        self._count(refusal.device, "rejected")
        self._outcome.refused += 1

    def _count(self, device: str, what: str) -> None:
        counters = self._counters.setdefault(device, {"facts": 0, "duplicates": 0, "rejected": 0})
        counters[what] += 1

    def _remember(self, device: str, envelope: Envelope, kind: str, body: dict[str, object]) -> None:
        row = {"device": device, "epoch": envelope.epoch, "seq": envelope.seq, "type": kind, "at": envelope.at}
        self._connection.execute(insert(tables.facts).values({**row, "received": self._now, "body": body}))

    def _load(self, key: tuple[str, int]) -> Progress:
        if key not in self._progress:
            self._progress[key] = load_progress(self._connection, *key)
        return self._progress[key]

    def finish(self) -> Outcome:
        for (device, epoch), progress in self._progress.items():
            if progress.seq > 0:
                upsert(self._connection, tables.highwater, {"device": device, "epoch": epoch, "seq": progress.seq})
                self._outcome.acks.append((device, Ack(epoch=epoch, seq=progress.seq)))
        for device, counters in self._counters.items():
            add(self._connection, tables.delivery, {"device": device}, counters)
            if counters["rejected"]:
                _forget_old_rejections(self._connection, device)
        if self._heard:
            heard = update(tables.devices).where(tables.devices.c.id.in_(self._heard))
            self._connection.execute(heard.values(last_seen=self._now))
        return self._outcome


def load_progress(connection: Connection, device: str, epoch: int) -> Progress:
    """What the hub has of a device's epoch; numbers SQL cannot hold have no progress."""
    if not 0 < epoch < 2**63:
        return Progress()
    mark, facts, gaps = tables.highwater, tables.facts, tables.gaps
    seq = connection.execute(select(mark.c.seq).where(mark.c.device == device, mark.c.epoch == epoch)).scalar() or 0
    own = (facts.c.device == device) & (facts.c.epoch == epoch) & (facts.c.seq > seq)
    above = connection.execute(select(facts.c.seq).where(own)).scalars()
    open_gaps = (gaps.c.device == device) & (gaps.c.epoch == epoch) & (gaps.c.last > seq)
    ranges = connection.execute(select(gaps.c.first, gaps.c.last).where(open_gaps))
    return Progress(seq, frozenset(above), frozenset((row.first, row.last) for row in ranges))


def _forget_old_rejections(connection: Connection, device: str) -> None:
    """A device that repeats rubbish must not fill the disk; the count in `delivery` stays."""
    table = tables.rejections
    newest = select(table.c.n).where(table.c.device == device).order_by(table.c.n.desc()).offset(KEEP_REJECTIONS)
    connection.execute(delete(table).where(table.c.n.in_(newest.limit(1000))))
