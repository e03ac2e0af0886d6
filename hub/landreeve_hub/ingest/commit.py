"""A batch of messages becomes rows: one transaction for all of it.

What a fact does and that it has counted are committed together; only then may anyone be told. A fact whose
applier fails is undone alone, kept as a rejection with its bytes, and counts.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from landreeve.wire.codec import BadMessageError, decode
from landreeve.wire.messages import Ack, Body, DeviceState, Fact, Gap, Wire
from sqlalchemy import Connection, delete, insert, select, text, update
from sqlalchemy.exc import OperationalError

from landreeve_hub.fleet import sessions
from landreeve_hub.ingest.accept import Apply, Progress, Reject, decide
from landreeve_hub.ingest.appliers import Applier, UnfitFactError, applier_for, check_depth
from landreeve_hub.ingest.presence import Known, counts, problem
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.upsert import add_many, upsert_many

log = logging.getLogger(__name__)
KEEP_REJECTIONS = 200
KEEP_REJECTED_BYTES = 64 * 1024
_INSERT_FACT = insert(tables.facts)
# As text: the hottest read of the hub, for which building the statement would cost more than running it.
_BEYOND = text(
    'SELECT seq AS "first", seq AS "last", 0 AS is_gap FROM facts '
    "WHERE device = :device AND epoch = :epoch AND seq > :seq "
    'UNION ALL SELECT "first", "last", 1 FROM gaps WHERE device = :device AND epoch = :epoch AND "last" > :seq'
)
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
    what to acknowledge, which identities turned out to be used by two boxes, which may not speak and do, and which do
    what harms others, with what (`landreeve_hub.incidents.rules`)."""

    accepted: list[tuple[str, Fact]] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    reads: dict[str, frozenset[str]] = field(default_factory=dict)
    acks: list[tuple[str, Ack]] = field(default_factory=list)
    doubled: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    accused: dict[str, str] = field(default_factory=dict)
    refused: int = 0


def commit_batch(
    connection: Connection,
    arrivals: Sequence[Arrival],
    refusals: Iterable[Refusal],
    appliers: Mapping[type[Body], Applier],
    now: datetime,
) -> Outcome:
    """Apply the arrivals in order; call it inside a transaction and tell no one before that is committed.

    Statements cost more than rows: what a batch needs to know is read at once, what it adds is written at once, and
    only when an applier has failed is the batch begun again with a savepoint for each fact.
    """
    refused = tuple(refusals)
    try:
        with connection.begin_nested():
            return _run(_Batch(connection, appliers, now, careful=False), arrivals, refused)
    except _CareNeededError:
        return _run(_Batch(connection, appliers, now, careful=True), arrivals, refused)


def _run(batch: "_Batch", arrivals: Sequence[Arrival], refusals: Sequence[Refusal]) -> Outcome:
    batch.prepare({arrival.device for arrival in arrivals})
    for arrival in arrivals:
        batch.take(arrival)
    for refusal in refusals:
        batch.refuse(refusal)
    return batch.finish()


class _CareNeededError(Exception):
    """An applier failed: its fact must be undone alone."""


class _Batch:
    """The state of one transaction: progress by (device, epoch), counters, and the rows to add at its end."""

    def __init__(
        self, connection: Connection, appliers: Mapping[type[Body], Applier], now: datetime, *, careful: bool
    ) -> None:
        self._connection = connection
        self._appliers = appliers
        self._moment = now
        self._now = rfc3339(now)
        self._careful = careful
        self._progress: dict[tuple[str, int], Progress] = {}
        self._marks: dict[tuple[str, int], int] = {}
        self._known: dict[str, Known] = {}
        self._facts: list[dict[str, object]] = []
        self._counters: dict[str, dict[str, int]] = {}
        self._heard: set[str] = set()
        self._outcome = Outcome()

    def prepare(self, devices: Collection[str]) -> None:
        """Reads what is known of these devices: only those that may speak, and how far each has come."""
        table, mark = tables.devices, tables.highwater
        speakers = select(table.c.id, table.c.session, table.c.online).where(table.c.id.in_(devices), ~table.c.revoked)
        self._known = {row.id: Known(row.session, row.online) for row in self._connection.execute(speakers)}
        marks = self._connection.execute(select(mark).where(mark.c.device.in_(devices)))
        self._marks = {(row.device, row.epoch): row.seq for row in marks}

    def take(self, arrival: Arrival) -> None:
        if arrival.device not in self._known:
            self.refuse(Refusal(arrival.device, "device is not enrolled at this hub, or revoked", arrival.payload))
            if arrival.payload and not arrival.retained:  # not what the hub itself emptied, nor what lay there
                self._outcome.strangers.add(arrival.device)
        elif arrival.is_state:
            self._take_state(arrival)
        else:
            self._heard.add(arrival.device)
            self._take_fact(arrival)

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
        if not counts(self._known[device], state):
            return
        self._known[device] = Known(state.session, state.online)
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
        envelope = Envelope(epoch=fact.epoch, seq=fact.seq, at=fact.at)
        try:
            with self._connection.begin_nested() if self._careful else nullcontext():
                check_depth(msgspec.to_builtins(fact.body))
                applier_for(self._appliers, fact.body)(self._connection, arrival.device, fact)
        except OperationalError:
            raise  # the database's trouble, not the fact's: the whole batch is tried again
        except Exception as error:
            if not self._careful:
                raise _CareNeededError from error
            self._blame(arrival, error)
            self._remember(arrival.device, envelope, "rejected", {})
            return
        kind = str(fact.body.__struct_config__.tag)
        body = {} if kind in _KEPT_ELSEWHERE else msgspec.to_builtins(fact.body)
        self._remember(arrival.device, envelope, kind, body)
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
        self._facts.append({**row, "received": self._now, "body": body})

    def _load(self, key: tuple[str, int]) -> Progress:
        if key not in self._progress:
            self._progress[key] = _load_progress(self._connection, key, self._marks.get(key, 0))
        return self._progress[key]

    def finish(self) -> Outcome:
        if self._facts:
            self._connection.execute(_INSERT_FACT, self._facts)
        marks = {key: progress.seq for key, progress in self._progress.items()}
        moved = {key: seq for key, seq in marks.items() if seq and seq != self._marks.get(key)}
        rows = [{"device": device, "epoch": epoch, "seq": seq} for (device, epoch), seq in moved.items()]
        upsert_many(self._connection, tables.highwater, rows)
        # Also that nothing is here yet: a device whose first numbers this hub has lost learns only so that it has.
        self._outcome.acks = [(device, Ack(epoch=epoch, seq=seq)) for (device, epoch), seq in marks.items()]
        counted = [{"device": device, **counters} for device, counters in self._counters.items()]
        add_many(self._connection, tables.delivery, "device", counted)
        for device, counters in self._counters.items():
            if counters["rejected"]:
                _forget_old_rejections(self._connection, device)
        if self._heard:
            heard = update(tables.devices).where(tables.devices.c.id.in_(self._heard))
            self._connection.execute(heard.values(last_seen=self._now))
        return self._outcome


def _load_progress(connection: Connection, key: tuple[str, int], seq: int) -> Progress:
    """What the hub has of a device's epoch beyond its mark; numbers SQL cannot hold have no progress."""
    device, epoch = key
    if not 0 < epoch < 2**63:
        return Progress()
    rows = connection.execute(_BEYOND, {"device": device, "epoch": epoch, "seq": seq}).all()
    above = frozenset(row.last for row in rows if not row.is_gap)
    return Progress(seq, above, frozenset((row.first, row.last) for row in rows if row.is_gap))


def _forget_old_rejections(connection: Connection, device: str) -> None:
    """A device that repeats rubbish must not fill the disk; the count in `delivery` stays."""
    table = tables.rejections
    newest = select(table.c.n).where(table.c.device == device).order_by(table.c.n.desc()).offset(KEEP_REJECTIONS)
    connection.execute(delete(table).where(table.c.n.in_(newest.limit(1000))))
