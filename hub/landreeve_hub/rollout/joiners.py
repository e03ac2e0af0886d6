"""Devices that come to a rollout late, and what they get.

While a rollout runs, they become members of it as its plan says. Once it is over they become members of another one,
of kind ``late`` (`Rollout.late_id`), which keeps to the same windows, jitter, sites and limit in flight, and goes back
with what it belongs to. A look costs what changed, not the size of the fleet.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection, select

from landreeve_hub.rollout import book
from landreeve_hub.rollout.back import NEVER
from landreeve_hub.rollout.live import Live
from landreeve_hub.rollout.policy import Gate, Offline, Plan, Watch, Wave
from landreeve_hub.rollout.resolve import Newcomer, covers, follows_labels, takes_all
from landreeve_hub.rollout.roster import Member, Outcome, Roster
from landreeve_hub.rollout.sight import PIECE, filter_rows
from landreeve_hub.rollout.state import FINAL, Head, Rollout, State
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339

BORN_WITHIN = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Standing:
    """A finished rollout that still stands, without its members."""

    head: Head
    created: str

    @property
    def ids(self) -> frozenset[str]:
        """Who is a member of one of these has had its turn."""
        return frozenset({self.head.id, self.head.late_id})


class Joiners:
    """One that has just joined is given time to tell what box it is: its first order then carries the plans that won on
    boxes of its class. ``young`` are those, and looked at again."""

    def __init__(self) -> None:
        self._young: set[str] = set()
        self._known = False
        self._oldest: datetime | None = None

    def idle(self, now: datetime) -> bool:
        """Whether nobody is waited for."""
        return self._known and (self._oldest is None or now < self._oldest)

    def look(
        self, connection: Connection, live: Live, changed: Collection[str], now: datetime, *, everyone: bool = False
    ) -> None:
        """Make members of whoever is due. ``changed`` are the only devices that can be new, but at the first look, and
        when a rollout has just finished (``everyone``), all are looked at."""
        whole = everyone or not self._known
        candidates = set(_fleet(connection)) if whole else set(changed) | self._young
        self._known = True
        rows = _present(connection, candidates)
        since, until = rfc3339(now - BORN_WITHIN), rfc3339(now)
        # Who enrolled at a moment that has not come did so by a clock that was wrong: nobody waits for it.
        mute = [row for row in rows if not row.agent and since < row.enrolled <= until]
        young = {row.id: parse_rfc3339(row.enrolled) for row in mute}
        self._young = set(young)
        self._oldest = min(young.values()) + BORN_WITHIN if young else None
        ready = {row.id: row for row in rows if row.id not in young}
        if not ready:
            return
        seen = _Seen(connection, now)
        _join(connection, live, ready, seen, now)
        _follow(connection, live, ready, seen, now)


class _Seen:
    """Devices as the filter language looks at them, read when a plan asks by a query."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection, self._now = connection, now
        self._rows: dict[str, Mapping[str, Any]] = {}

    def read(self, plan: Plan, devices: Collection[str]) -> None:
        if not any(wave.query for wave in plan.waves):
            return
        missing = [device for device in devices if device not in self._rows]
        self._rows |= {str(row["id"]): row for row in filter_rows(self._connection, self._now, missing)}

    def of(self, row: Any) -> Newcomer:
        return Newcomer(row.id, row.site, self._rows.get(row.id))


def _fleet(connection: Connection) -> Iterable[str]:
    return connection.execute(select(tables.devices.c.id).where(~tables.devices.c.revoked)).scalars().all()


def _present(connection: Connection, devices: Collection[str]) -> list[Any]:
    table = tables.devices
    found: list[Any] = []
    for piece in _pieces(devices):
        columns = (table.c.id, table.c.site, table.c.agent, table.c.enrolled, table.c.labels)
        found += connection.execute(select(*columns).where(table.c.id.in_(piece), ~table.c.revoked)).all()
    return found


def _pieces(devices: Collection[str]) -> Iterator[list[str]]:
    names = sorted(devices)
    return (names[start : start + PIECE] for start in range(0, len(names), PIECE))


def _is_meant(plan: Plan, created: str, row: Any, seen: _Seen) -> bool:
    """Whether the plan would take the device now and could not at the proposal: it has joined the fleet since, or was
    given the labels that a wave asks for. Who is no member of a rollout of everybody was not there."""
    changed = row.enrolled > created or follows_labels(plan) or takes_all(plan)
    return changed and covers(plan, seen.of(row))


# --- while it runs ---


def _join(connection: Connection, live: Live, ready: dict[str, Any], seen: _Seen, now: datetime) -> None:
    for run in list(live.running.values()):
        rollout = run.rollout
        if rollout.kind != "update" or rollout.state in FINAL | {State.ROLLING_BACK}:
            continue
        changed = _leavers(rollout, ready, seen)
        if rollout.plan.late != "wait":
            strangers = {d: row for d, row in ready.items() if d not in rollout.members}
            created = book.created(connection, rollout.id) if strangers else ""
            seen.read(rollout.plan, strangers)
            new = [row for row in strangers.values() if _is_meant(rollout.plan, created, row, seen)]
            changed += [joining(rollout, row, now) for row in new]
        if changed:
            joined = replace(rollout, members=rollout.members.put(changed))
            live.take(connection, book.save(connection, rollout, joined, now), now)


def _leavers(rollout: Rollout, ready: dict[str, Any], seen: _Seen) -> list[Member]:
    """Members not ordered yet that no wave asks for any more: their labels were changed."""
    if rollout.plan.leavers != "exclude" or not follows_labels(rollout.plan):
        return []
    waiting = {d: m for d in ready if (m := rollout.members.get(d)) is not None and m.outcome is Outcome.WAITING}
    seen.read(rollout.plan, waiting)
    left = [m for d, m in waiting.items() if not covers(rollout.plan, seen.of(ready[d]))]
    text = "no longer answers to any wave of the rollout and is left out."
    return [replace(m, outcome=Outcome.EXCLUDED, cause="left", sentence=f"{m.site} {text}") for m in left]


def joining(rollout: Rollout, row: Any, now: datetime) -> Member:
    """A member of a rollout under way, as its plan says."""
    wave = rollout.wave if rollout.plan.late == "current" else rollout.members.last_wave
    place = row.labels.get(rollout.plan.site_label, "")
    joined = Member(row.id, row.site, wave, place=place, due_since=now)
    if rollout.plan.late == "leave":
        text = f"{row.site} came after the rollout was proposed and is left out."
        return replace(joined, outcome=Outcome.SKIPPED, cause="joined_late", sentence=text)
    return replace(joined, cause="joined_late", sentence=f"{row.site} came late and joined this rollout.")


# --- after its end ---


def _follow(connection: Connection, live: Live, ready: dict[str, Any], seen: _Seen, now: datetime) -> None:
    """Give each device the newest release that stands for it, unless it had its turn."""
    for model, standing in _standing(connection).items():
        ahead = [r.rollout for r in live.running.values() if r.rollout.model == model and _is_ahead(r.rollout)]
        had = _turns(connection, model, ready)
        due: dict[str, list[Any]] = defaultdict(list)
        heads = {one.head.id: one for one in standing}
        for row in ready.values():
            chosen = choose(standing, row, had.get(row.id, _NOTHING), seen)
            if chosen and not any(_is_next(one, row.id) for one in ahead):
                due[chosen].append(row)
        for name, rows in due.items():
            _take_in(connection, live, heads[name].head, rows, now)


def _is_ahead(rollout: Rollout) -> bool:
    return rollout.kind == "update" and rollout.state is State.RUNNING


def _is_next(rollout: Rollout, device: str) -> bool:
    """It is about to get something newer."""
    member = rollout.members.get(device)
    return member is not None and member.wave <= rollout.wave and member.outcome in {Outcome.WAITING, Outcome.ORDERED}


def choose(standing: list[Standing], row: Any, had: "Had", seen: _Seen) -> str:
    """The rollout whose release the device is to be given; empty when it has that, or a newer one, or none is meant
    for it. Whoever has something else at a person's word keeps it."""
    newest = had.by.partition(".")[0]
    if newest and not newest.startswith("r-"):
        return ""
    for one in standing:
        if had.members & one.ids or newest >= one.head.id:
            return ""
        seen.read(one.head.plan, [row.id])
        if _is_meant(one.head.plan, one.created, row, seen):
            return one.head.id  # who joined while it ran, and was to be left out, is a member that was skipped
    return ""


def _standing(connection: Connection) -> dict[str, list[Standing]]:
    """The finished rollouts of approved releases by model, newest first, down to one that takes everybody: no device
    comes to an older one."""
    rollouts, releases = tables.rollouts, tables.releases
    query = (
        select(rollouts.c.id, rollouts.c.model)
        .join(releases, releases.c.digest == rollouts.c.digest)
        .where(rollouts.c.state == State.FINISHED.value, rollouts.c.kind == "update", releases.c.state == "approved")
        .order_by(rollouts.c.id.desc())
    )
    found: dict[str, list[Standing]] = defaultdict(list)
    whole: set[str] = set()
    for row in connection.execute(query).all():
        if row.model not in whole:
            doc = select(rollouts.c.doc, rollouts.c.created).where(rollouts.c.id == row.id)
            kept = connection.execute(doc).one()
            one = Standing(msgspec.convert(kept.doc, Head), kept.created)
            found[row.model].append(one)
            whole |= {row.model} if takes_all(one.head.plan) else set()
    return found


@dataclass(slots=True)
class Had:
    """The rollouts that a device was a member of, and the one by which it was ordered what it has."""

    members: set[str] = field(default_factory=set)
    by: str = ""


_NOTHING = Had()


def _turns(connection: Connection, model: str, devices: Collection[str]) -> dict[str, Had]:
    """What each device has had of the model.

    A member without an assignment failed its first version and had nothing to go back to: ordering the release again by
    the side door would be wrong.
    """
    assigned, members, rollouts = tables.assignments, tables.rollout_members, tables.rollouts
    found: dict[str, Had] = defaultdict(Had)
    for piece in _pieces(devices):
        have = select(assigned.c.device, assigned.c.rollout).where(assigned.c.model == model)
        took = select(members.c.device, members.c.rollout).join(rollouts, rollouts.c.id == members.c.rollout)
        took = took.where(rollouts.c.model == model, rollouts.c.kind != "return")
        for row in connection.execute(have.where(assigned.c.device.in_(piece))):
            found[row.device].by = row.rollout
        for row in connection.execute(took.where(members.c.device.in_(piece))):
            found[row.device].members.add(row.rollout)
    return found


def _take_in(connection: Connection, live: Live, of: Head, rows: list[Any], now: datetime) -> None:
    """These devices become members of the late rollout of ``of``, which is begun, or begun again."""
    kept = book.find(connection, of.late_id)
    members = [latecomer(of, row, now) for row in rows]
    if kept is None:
        late = late_rollout(of, members, now)
        book.insert_new(connection, late, book.HUB, now, approved=book.HUB)
        book.log(connection, late.id, now, ("begun", late.why, {"state": late.state.value, "of": of.id}))
    else:
        grown = taken_in(kept.rollout, members, now)
        if grown is None:  # it was stopped or has gone back: whoever comes now is not led there
            return
        late = book.save(connection, kept.rollout, grown, now)
    live.take(connection, late, now)


def latecomer(of: Head, row: Any, now: datetime) -> Member:
    """A member of the late rollout of ``of``."""
    text = f"{row.site} came after rollout {of.id} and gets {of.version}."
    place = row.labels.get(of.plan.site_label, "")
    return Member(row.id, row.site, 0, place=place, due_since=now, cause="joined_late", sentence=text)


def taken_in(late: Rollout, members: Sequence[Member], now: datetime) -> Rollout | None:
    """The late rollout with more members, begun again when it had finished; None when it takes nobody in any more."""
    if late.state not in {State.RUNNING, State.PAUSED, State.FINISHED}:
        return None
    text = members[0].sentence if len(members) == 1 else f"{len(members)} devices came late."
    return replace(
        late,
        state=State.PAUSED if late.state is State.PAUSED else State.RUNNING,
        members=late.members.put(members),
        cause="joined_late",
        sentence=text,
        finished=None,
        wave_since=now,
    )


def late_rollout(of: Head, members: Iterable[Member], now: datetime) -> Rollout:
    """The rollout of those that come after ``of`` has finished: its rules for a single device, and no gates, since one
    box that cannot take the release says nothing against the fleet that has it."""
    plan = of.plan
    gate = Gate(
        max_in_flight=plan.gate.max_in_flight, deadline_s=plan.gate.deadline_s, max_failures=NEVER, max_silent=NEVER
    )
    offline = Offline(policy="order" if plan.offline.policy == "order" else "wait")
    own = replace(plan, waves=(Wave(rest=True),), gate=gate, offline=offline, late="leave", watch=Watch())
    return Rollout(
        id=of.late_id,
        model=of.model,
        digest=of.digest,
        version=of.version,
        plan=own,
        state=State.RUNNING,
        wave_since=now,
        kind="late",
        of=of.id,
        cause="joined_late",
        why=f"Devices that came after rollout {of.id} get its {of.version}.",
        members=Roster(members),
    )
