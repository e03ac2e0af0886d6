"""The rollouts under way, in memory beside the tables: what a look at an unchanged fleet need not read again.

Everything here can be thrown away and read anew; the tables alone are the truth. A look (`look`) reads the devices that
changed since the last one and decides for the rollouts they are in, and for those whose time has come.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from landreeve_models.baseline import Baseline
from sqlalchemy import Connection, func, select

from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.rollout import book
from landreeve_hub.rollout.drifting import Pool
from landreeve_hub.rollout.machine import decide, watch_end
from landreeve_hub.rollout.policy import asks_for_pool
from landreeve_hub.rollout.sight import pooled, see
from landreeve_hub.rollout.state import FINAL, Around, DeviceFact, First, Quality, Rollout, State
from landreeve_hub.store import changes, tables
from landreeve_hub.store.database import PASSING
from landreeve_hub.store.moment import rfc3339

_LOG = logging.getLogger(__name__)
RETRY = timedelta(seconds=30)
Baselines = Callable[[str], Baseline | None]
"""The baseline of a release by its digest, None where it has none."""
_GONE = frozenset({State.ROLLING_BACK, State.ROLLED_BACK})


def no_baseline(_digest: str) -> Baseline | None:
    """Where no registry is at hand."""
    return None


@dataclass(slots=True)
class Running:
    """A rollout under way with what is known of its devices. ``wake`` is when time alone may move it; ``due`` that it
    is to be decided at the next look whatever happens; ``missed`` that some news of its devices was not decided on."""

    rollout: Rollout
    facts: dict[str, DeviceFact]
    around: Around = field(default_factory=Around)
    wake: datetime | None = None
    due: bool = True
    missed: bool = False
    pool: Pool | None = None


@dataclass(slots=True)
class Looked:
    """What a look found: whether a rollout moved, whose document is due, which devices changed, who finished."""

    moved: bool = False
    touched: set[str] = field(default_factory=set)
    changed: frozenset[str] = frozenset()
    finished: list[Rollout] = field(default_factory=list)


class Live:
    """``number`` is the change up to which everything has been seen; None before the first look."""

    def __init__(self, incidents: Incidents, baselines: Baselines = no_baseline) -> None:
        self._incidents = incidents
        self._baselines = baselines
        self.running: dict[str, Running] = {}
        self.number: int | None = None
        self.listening: datetime | None = None
        self._looked: datetime | None = None
        self._moved = False
        self._ended: dict[str, Rollout] = {}

    def forget(self, *, deaf: bool = False) -> None:
        """Read everything anew at the next look: what was decided was not kept. ``deaf`` says that the hub could not
        keep what its devices told either, so they are to be heard first, as after a start."""
        self.running, self.number, self._ended = {}, None, {}
        self.listening = None if deaf else self.listening

    def idle(self, connection: Connection, now: datetime) -> bool:
        """Whether nothing has changed and no time has come: then there is nothing to look at. After a rollout moved
        there is: another may have waited for that."""
        if self.number is None or self._moved or self._went_back(now):
            return False
        if any(r.due or (r.wake is not None and r.wake <= now) for r in self.running.values()):
            return False
        return changes.newest(connection) == self.number

    def _went_back(self, now: datetime) -> bool:
        return self._looked is not None and now < self._looked

    def _rewind(self, now: datetime) -> None:
        """The clock was ahead and is right again: what was to be decided later is decided anew."""
        self.listening = min(self.listening, now) if self.listening is not None else None
        for run in self.running.values():
            run.due, run.wake = True, now

    def take(self, connection: Connection, rollout: Rollout, now: datetime) -> None:
        """This is the rollout from now on: a person has made or moved it."""
        known = self.running.get(rollout.id)
        facts = known.facts if known is not None else see(connection, rollout, now)
        facts |= see(connection, rollout, now, [device for device in rollout.members if device not in facts])
        self._run(connection, rollout, facts)

    def _run(self, connection: Connection, rollout: Rollout, facts: dict[str, DeviceFact]) -> None:
        known = self.running.get(rollout.id)
        pool = known.pool if known is not None else None
        if pool is None and asks_for_pool(rollout.plan) and (baseline := self._baselines(rollout.digest)) is not None:
            pool = pooled(connection, rollout, Pool.of(baseline), facts)
        self.running[rollout.id] = Running(rollout, facts, pool=pool)

    def look(self, connection: Connection, now: datetime) -> Looked:
        """Decide what is to be decided, and carry it into the tables."""
        if self._went_back(now):
            self._rewind(now)
        self._looked = now
        changed = self._open(connection, now) if self.number is None else self._renew(connection, now)
        looked = Looked(changed=changed)
        self._move(connection, sorted(self.running), looked, now)
        return looked

    def go_on(self, connection: Connection, looked: Looked, now: datetime) -> None:
        """Decide for the rollouts that were taken since the look."""
        due = sorted(name for name, run in self.running.items() if run.due)
        if due:
            self._move(connection, due, looked, now)

    def _move(self, connection: Connection, names: Iterable[str], looked: Looked, now: datetime) -> None:
        for name in names:
            self._decide(connection, self.running[name], looked, now)
        self._begun(connection, now)
        self._moved = looked.moved
        self.running = {name: run for name, run in self.running.items() if self._goes_on(run.rollout)}

    def _open(self, connection: Connection, now: datetime) -> frozenset[str]:
        self.number = changes.newest(connection)
        self.listening = self.listening or now
        for kept in (*book.listed(connection, active=True, watched=True), *book.left_behind(connection)):
            self._run(connection, kept.rollout, see(connection, kept.rollout, now))
        return frozenset()

    def _renew(self, connection: Connection, now: datetime) -> frozenset[str]:
        found = changes.since(connection, self.number or 0)
        self.number = found.number
        for run in self.running.values():
            ours = [device for device in found.devices if device in run.rollout.members]
            if ours:
                before = {device: run.facts[device].quality for device in ours if device in run.facts}
                renew(run.facts, ours, see(connection, run.rollout, now, ours))
                self._pool(connection, run, before)
        return found.devices

    def _pool(self, connection: Connection, run: Running, before: Mapping[str, Quality | None]) -> None:
        """Read the windows of devices that closed another one; of no others, since their sketches are the largest thing
        the hub keeps of a device."""
        if run.pool is not None:
            news = {d: run.facts[d] for d in before if d in run.facts and run.facts[d].quality != before[d]}
            run.pool = pooled(connection, run.rollout, run.pool, news) if news else run.pool

    def _decide(self, connection: Connection, run: Running, looked: Looked, now: datetime) -> None:
        around = self.around(connection, run.rollout, now)
        ours = None if run.due or run.missed else [d for d in looked.changed if d in run.rollout.members]
        late = run.wake is not None and run.wake <= now
        if run.missed and not late:
            return
        if not (run.due or ours or late or _news(around) != _news(run.around)):
            return
        kept, mine = copy(run), Looked()
        try:
            with connection.begin_nested():
                self._carry(connection, run, (around, ours), mine, now)
        except PASSING:
            raise
        except Exception as error:  # noqa: BLE001  it may be any; it must not keep the others from their orders
            _LOG.exception("rollout %s could not be decided; it is tried again", run.rollout.id)
            run.rollout, run.due, run.missed, run.wake = kept.rollout, False, True, now + RETRY
            self._incidents.open_in(connection, now, _stuck(kept.rollout, error))
            return
        looked.touched |= mine.touched
        looked.moved = looked.moved or mine.moved
        looked.finished += mine.finished

    def _carry(
        self,
        connection: Connection,
        run: Running,
        news: tuple[Around, Collection[str] | None],
        looked: Looked,
        now: datetime,
    ) -> None:
        before, (around, ours) = run.rollout, news
        decision = decide(before, run.facts, now, around, ours)
        run.rollout = book.save(connection, before, decision.rollout, now)
        book.offer_joiners(connection, before, run.rollout)
        run.wake, run.around, run.due, run.missed = decision.wake, around, False, False
        if decision.rollout is not before or decision.orders:
            looked.touched |= book.carry_out(connection, decision.rollout, decision.orders, self._incidents, now)
            looked.moved = looked.moved or decision.rollout != before or bool(decision.orders)
        if run.rollout.state is State.FINISHED and before.state is not State.FINISHED:
            looked.finished.append(run.rollout)

    def _begun(self, connection: Connection, now: datetime) -> None:
        """A return that was begun is looked after from the next look on, and so is who goes back with what he came
        after."""
        gone = any(run.rollout.state in _GONE for run in self.running.values())
        for late in book.left_behind(connection) if gone else ():
            self.running.setdefault(late.rollout.id, Running(late.rollout, see(connection, late.rollout, now)))
        for run in list(self.running.values()):
            child = run.rollout.back_id
            if run.rollout.state in {State.ROLLING_BACK, State.ABORTED} and child not in self.running:
                kept = book.find(connection, child)
                if kept is not None and kept.rollout.state not in FINAL:
                    self.running[child] = Running(kept.rollout, see(connection, kept.rollout, now))

    def _goes_on(self, rollout: Rollout) -> bool:
        """Under way, watched, or waited for by what began it."""
        if rollout.state not in FINAL or self.running[rollout.id].due:
            return True
        parent = self.running.get(rollout.of) if rollout.of else None
        waited = parent is not None and parent.rollout.state is State.ROLLING_BACK
        return waited or watch_end(rollout) is not None

    def around(self, connection: Connection, rollout: Rollout, now: datetime) -> Around:
        """What else goes on, as far as it matters to the rollout."""
        others = [run.rollout for run in self.running.values() if run.rollout.id != rollout.id]
        child = self.running.get(rollout.back_id)
        found = surroundings(connection, rollout, others, now, child.rollout if child is not None else None)
        own = self.running.get(rollout.id)
        found = replace(found, drift=own.pool if own is not None else None, listening=self.listening)
        if not rollout.plan.after or rollout.state is not State.RUNNING:
            return found
        return replace(found, first=tuple(firsts(connection, rollout, others, self._ended)))


def _stuck(rollout: Rollout, error: Exception) -> Raise:
    text = (
        f"Rollout {rollout.id} of {rollout.model} {rollout.version} cannot be decided "
        f"({type(error).__name__}: {str(error)[:200]}). Nothing further is ordered by it meanwhile; the hub's log says "
        "where it failed."
    )
    subject = {"rollout": rollout.id, "model": rollout.model, "version": rollout.version}
    return Raise(f"rollout:{rollout.id}:stuck", "rollout_stuck", "error", type(error).__name__, text, subject)


def _news(around: Around) -> tuple[object, ...]:
    """Of a child only its state matters."""
    first = [(one.rollout, one.state, one.members) for one in around.first]
    child = around.child and around.child.state
    return around.busy, around.earlier, child, around.returns, around.later, around.gone, around.unfit, first


def surroundings(
    connection: Connection, rollout: Rollout, others: Collection[Rollout], now: datetime, child: Rollout | None = None
) -> Around:
    """What goes on beside a rollout, ``others`` being those under way."""
    if child is None and rollout.state is State.ROLLING_BACK:
        kept = book.find(connection, rollout.back_id)
        child = kept.rollout if kept is not None else None
    later = book.followed(connection, rollout) if rollout.state is State.FINISHED else ""
    gone = rollout.kind == "late" and book.state_of(connection, rollout.of) in _GONE
    returns = automatic_returns(connection, rollout, now)
    unfit = _unfit(connection, rollout)
    return Around(busy(others), earlier(rollout, others), child, returns, later, gone=gone, unfit=unfit)


def _unfit(connection: Connection, rollout: Rollout) -> str:
    """The state of the release when it is no longer approved and nobody has forced it."""
    if rollout.state is not State.RUNNING or rollout.kind == "return" or rollout.forced:
        return ""
    own = tables.releases.c.digest == rollout.digest
    state = connection.execute(select(tables.releases.c.state).where(own)).scalar()
    return "" if state is None or state == "approved" else str(state)


def firsts(
    connection: Connection, rollout: Rollout, others: Collection[Rollout], ended: dict[str, Rollout]
) -> Iterable[First]:
    """The rollouts of each component that comes first: those under way, the newest where there is none, and that of its
    latecomers. ``ended`` keeps what was read of one that is over, which no look at it changes."""
    known = {other.id: other for other in others if other.kind != "return"}
    for component in rollout.plan.after:
        found = {o.id: o for o in known.values() if o.model == component and o.state not in FINAL}
        if all(other.kind == "late" for other in found.values()):
            newest = _newest_of(connection, component)
            for name in (newest, f"{newest}-late") if newest else ():
                one = known.get(name) or _ended(connection, name, ended)
                found |= {name: one} if one is not None else {}
        for other in found.values():
            if other.state not in FINAL:
                ended.pop(other.id, None)
            yield First(component, other.id, other.state, other.members, late=other.kind == "late")


def _newest_of(connection: Connection, component: str) -> str:
    rollouts = tables.rollouts
    query = select(func.max(rollouts.c.id)).where(rollouts.c.model == component, rollouts.c.kind == "update")
    return connection.execute(query).scalar() or ""


def _ended(connection: Connection, rollout: str, ended: dict[str, Rollout]) -> Rollout | None:
    if rollout not in ended:
        kept = book.find(connection, rollout)
        if kept is None:
            return None
        ended[rollout] = kept.rollout
    return ended[rollout]


def renew(facts: dict[str, DeviceFact], devices: Iterable[str], seen: Mapping[str, DeviceFact]) -> None:
    """Bring facts up to what was seen; a device that was not seen is gone."""
    for device in devices:
        if device in seen:
            facts[device] = seen[device]
        else:
            facts.pop(device, None)


def busy(others: Iterable[Rollout]) -> dict[str, str]:
    """Sites at which another rollout has a device under way."""
    return {o.members[device].where: o.id for o in others if o.state not in FINAL for device in o.members.flying}


def earlier(rollout: Rollout, others: Collection[Rollout]) -> str:
    """The older rollout of the same model that goes first; empty when there is none."""
    ids = [
        other.id
        for other in others
        if other.model == rollout.model
        and other.id < rollout.id
        and other.state not in FINAL
        and other.kind == "update"
    ]
    return min(ids, default="") if rollout.kind == "update" else ""


def automatic_returns(connection: Connection, rollout: Rollout, now: datetime) -> int:
    """How often the model went back by itself within the ping-pong window."""
    rollouts = tables.rollouts
    since = rfc3339(now - timedelta(seconds=rollout.plan.ping_pong.window_s))
    query = select(func.count()).where(
        rollouts.c.model == rollout.model,
        rollouts.c.kind == "return",
        rollouts.c.created_by == book.HUB,
        ~rollouts.c.id.like("%-late-back"),  # it went with another
        rollouts.c.created >= since,
    )
    return connection.execute(query).scalar_one()
