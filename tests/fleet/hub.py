"""The hub of a simulated fleet: the rollout machine as the runner drives it.

Facts by change, decisions by what changed and by `Decision.wake`, everything that must survive kept as JSON. Store and
broker are models: a killed hub goes on from the JSON, a restored one from an older copy of it.
"""

from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Protocol

import msgspec
from landreeve_hub.access.roles import Role
from landreeve_hub.access.separation import Approved, judge
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.joiners import Had, Standing, choose, joining, late_rollout, latecomer, taken_in
from landreeve_hub.rollout.live import busy, earlier
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import Plan, Windows
from landreeve_hub.rollout.resolve import Newcomer
from landreeve_hub.rollout.roster import Member, Roster
from landreeve_hub.rollout.sight import DOUBLED, told_of
from landreeve_hub.rollout.state import (
    FINAL,
    Around,
    Assign,
    Begin,
    DeviceFact,
    Head,
    Order,
    Quarantine,
    Refused,
    Report,
    Rollout,
    State,
    Withdraw,
)
from landreeve_hub.store.moment import rfc3339

from tests.fleet import bugs
from tests.fleet.boxes import Document, Said
from tests.fleet.boxes import Standing as Told
from tests.fleet.invariants import GONE, check_decision, check_incremental, check_order, require
from tests.fleet.timing import PATIENCE, PROGRESS, Patience, Progress, is_through

LOOK_S = 30.0
ZONES = ("Europe/Berlin", "Asia/Dubai", "America/New_York", "UTC")


@dataclass(frozen=True, slots=True)
class Case:
    """One history, drawn from its seed. ``fails`` and ``mute`` are shares of boxes; ``overlap`` adds other rollouts,
    ``traffic`` boxes that come, are set back, made anew and cloned."""

    seed: int
    size: int = 30
    fails: float = 0.02
    mute: float = 0.01
    bug: str = ""
    restores: bool = True
    commands: bool = True
    overlap: bool = True
    traffic: bool = True


@dataclass
class Tables:
    """What the hub keeps. ``copy`` is a backup: everything as JSON would bring it back."""

    rollouts: dict[str, Rollout] = field(default_factory=dict)
    created: dict[str, datetime] = field(default_factory=dict)
    approved: dict[str, str] = field(default_factory=dict)
    assigned: dict[str, Assign] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    reports: dict[str, Said] = field(default_factory=dict)
    standings: dict[str, Told] = field(default_factory=dict)
    enrolled: dict[str, datetime] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)
    quarantined: set[str] = field(default_factory=set)

    def copy(self) -> "Tables":
        rest = {one.name: getattr(self, one.name).copy() for one in fields(self) if one.name != "rollouts"}
        return Tables(rollouts={name: resumed(rollout) for name, rollout in self.rollouts.items()}, **rest)


def resumed(rollout: Rollout) -> Rollout:
    """The rollout as it comes back from what is stored of it."""
    names = Head.__struct_fields__
    head = msgspec.json.decode(msgspec.json.encode({n: getattr(rollout, n) for n in names}), type=Head)
    members = msgspec.json.decode(msgspec.json.encode(list(rollout.members.values())), type=list[Member])
    return Rollout(**{name: getattr(head, name) for name in names}, members=Roster(members))


class World(Protocol):
    """What the hub sees of the world: its clock, chance, and the broker that carries a document to a device."""

    @property
    def clock(self) -> datetime: ...

    random: Random

    def carry(self, device: str, document: Document) -> None: ...
    def obeys(self, device: str) -> int: ...


@dataclass(frozen=True, slots=True)
class _Row:
    """A device as the table of devices has it."""

    id: str
    site: str
    enrolled: str
    labels: dict[str, str]


class _Names:
    """No plan of a simulated fleet asks by a query."""

    def read(self, plan: Plan, devices: Any) -> None: ...

    def of(self, row: _Row) -> Newcomer:
        return Newcomer(row.id, row.site)


class SimulatedHub:
    """``paired`` says that two boxes stand at each site; ``said`` counts what people said about devices in conflict."""

    def __init__(self, case: Case, world: World, *, paired: bool) -> None:
        self.case, self.world, self.paired = case, world, paired
        self.tables = Tables()
        self.proposed: dict[str, str] = {}
        self.facts: dict[str, dict[str, DeviceFact]] = {}
        self.arounds: dict[str, Around] = {}
        self.wakes: dict[str, datetime | None] = {}
        self.changed: set[str] = set()
        self.installed: set[tuple[str, str]] = set()
        self.told_bad: dict[str, datetime] = {}
        self.patience, self.progress = Patience(), Progress()
        self.orders = self.decisions = self.said = 0

    @property
    def clock(self) -> datetime:
        return self.world.clock

    def zone(self, device: str) -> str:
        return ZONES[int(device[2:7]) % len(ZONES)]

    def labels(self, device: str) -> dict[str, str]:
        pair = {"site": f"pair-{int(device[2:7]) // 2}"} if self.paired else {}
        return {"timezone": self.zone(device), **pair}

    # --- what people do ---

    def propose(self, rollout: Rollout, by: str) -> None:
        self.tables.rollouts[rollout.id] = rollout
        self.tables.created[rollout.id] = self.clock
        self.proposed[rollout.id] = by

    def approve(self, name: str, by: str) -> None:
        verdict = judge(self.proposed[name], by, Role.ADMIN, self.clock)
        if isinstance(verdict, Approved) or self.case.bug == "self_approval":
            if self.tables.rollouts[name].state is State.AWAITING_APPROVAL:
                self.tables.approved[name] = by
            self.command(name, "approve", Asked(by, self.clock))

    def command(self, name: str, verb: str, asked: Asked) -> bool:
        """Whether it was obeyed."""
        rollout = self.tables.rollouts.get(name)
        answer = commands.obey(rollout, verb, asked) if rollout is not None else None
        if answer is None or isinstance(answer, Refused):
            return False
        after, orders = answer
        require(commands.obey(after, verb, asked) == (after, ()) or not asked.key, "a command again does nothing", verb)
        if verb == "retry":
            self.installed -= {one for one in self.installed if one[1] == name}
        self.keep(after, orders)
        return True

    def command_again(self, name: str, verb: str, asked: Asked) -> None:
        """The same command comes once more, much later, as a request that a proxy repeats."""
        before = self.tables.rollouts.get(name)
        if before is None or (asked.key not in before.keys and self.case.bug != "again"):
            return  # a restored hub has forgotten that it obeyed
        repeated = replace(asked, key=f"{asked.key}-again") if self.case.bug == "again" else asked
        self.command(name, verb, repeated)
        require(self.tables.rollouts[name] == before, "a command again does nothing", f"{verb} of {name}")

    def keep(self, after: Rollout, orders: tuple[Order, ...]) -> None:
        self.tables.rollouts[after.id] = after
        self.carry_out(after, orders)
        self.wakes[after.id] = self.clock

    def resolve(self, device: str, adopts: Assign | None, obeyed: Document) -> None:
        """A person says who is right; from then on the device's history is the hub's."""
        if adopts is not None:
            self.tables.assigned[device] = adopts
        known = self.tables.documents.get(device, Document(0, None, frozenset()))
        history = known.history | {known.digest, obeyed.digest} | obeyed.history
        self.publish(device, Document(obeyed.generation, None, history))
        self.said += 1

    # --- what happens to it ---

    def die(self) -> None:
        """Memory is gone; what was stored is not."""
        self.tables = self.tables.copy()
        if self.case.bug == "forget":
            self.tables.rollouts = {n: bugs.forgetful(r) for n, r in self.tables.rollouts.items()}
        self._forget()

    def restore(self, backup: Tables) -> None:
        """An older backup, whose list of devices is mended first."""
        now, self.tables = self.tables, backup.copy()
        self.tables.removed |= now.removed
        self.tables.doubled = set(now.doubled)
        self.tables.enrolled |= now.enrolled
        self.installed.clear()
        self.patience.forget()
        self._forget()

    def _forget(self) -> None:
        self.progress.forget()
        self.facts, self.arounds, self.wakes, self.changed = {}, {}, {}, set()

    def hear(self, name: str, said: Said) -> None:
        """As the ingest: a report replaces an older one, never a newer one; the figures of a probation stay with it."""
        known = self.tables.reports.get(name)
        if said.state in {"REJECTED", "ROLLED_BACK"}:
            self.told_bad.setdefault(name, self.clock)
        if self.case.bug == "deaf" and said.state in {"REJECTED", "ROLLING_BACK", "ROLLED_BACK"}:
            return
        if self.case.bug == "hasty" and said.state == "PROBATION":
            said = replace(said, state="COMMITTED")
        if known is None or known.seq < said.seq:
            kept = said.probation or (known.probation if known and known.generation == said.generation else None)
            self.tables.reports[name] = replace(said, probation=kept)
        self.changed.add(name)

    def stand(self, name: str, standing: Told) -> None:
        self.tables.standings[name] = standing
        self.changed.add(name)

    # --- what it sees ---

    def look(self) -> None:
        changed, self.changed = self.changed, set()
        for name in sorted(self.tables.rollouts):
            self._decide(name, changed)
        self._take_in(changed)
        if self.case.bug in bugs.TIMED:
            through = [r for r in self.tables.rollouts.values() if is_through(r)]
            free = [r for r in through if not self.around(r).earlier]
            late = self.progress.dragged(free, self.clock, timedelta(seconds=2 * LOOK_S))
            require(not late, PROGRESS, late)

    def _decide(self, name: str, changed: set[str]) -> None:
        before = self.tables.rollouts[name]
        around = self.around(before)
        led = before.kind == "late" and before.state is State.FINISHED and around.gone
        if before.state in FINAL and not led:
            self.facts.pop(name, None)  # not looked at any more; a retry reads everything anew
            return
        facts, ours = self._renewed(before, changed)
        wake = self.wakes.get(name)
        late = wake is not None and wake <= self.clock and self.case.bug != "sleep"
        if ours is not None and not ours and not late and around == self.arounds.get(name):
            return
        self.decisions += 1
        decision = decide(bugs.bent(self.case.bug, before), facts, self.clock, around, None if late else ours)
        decision = bugs.spoilt(self.case.bug, before, decision)
        after = bugs.straight(self.case.bug, before, decision.rollout)
        check_decision(self, before, after, decision)
        if self.case.bug in bugs.TIMED:
            hasty = self.patience.hasty(before, after, facts, self.clock, None)
            self.patience.kept(whole=True)
            require(not hasty, PATIENCE, hasty)
        often = 1.0 if self.case.bug else min(0.1, 10 / self.case.size)  # it costs a look at all
        if self.case.bug in bugs.NO_OTHER and self.world.random.random() < often:
            check_incremental(self, before, decision, facts, around)
        self.tables.rollouts[name] = msgspec.structs.replace(after, members=after.members.saved())
        self.arounds[name], self.wakes[name] = around, decision.wake
        self.carry_out(after, decision.orders)

    def _renewed(self, rollout: Rollout, changed: set[str]) -> tuple[dict[str, DeviceFact], set[str] | None]:
        facts = self.facts.get(rollout.id)
        if facts is None:
            facts = self.facts[rollout.id] = {d: f for d in rollout.members if (f := self.fact(d)) is not None}
            return facts, None
        ours = {device for device in changed if device in rollout.members}
        if self.case.bug == "blind_spot":
            ours -= {min(ours, default="")}
        for device in ours:
            fact = self.fact(device)
            if fact is None:
                facts.pop(device, None)
            else:
                facts[device] = fact
        return facts, ours

    def fact(self, device: str) -> DeviceFact | None:
        if device in self.tables.removed or device not in self.tables.standings:
            return None
        standing, held = self.tables.standings[device], self.tables.assigned.get(device)
        document, said = self.tables.documents.get(device), self.tables.reports.get(device)
        blind = self.case.bug == "drag"
        doubled = device in self.tables.doubled and self.case.bug != "clone"
        return DeviceFact(
            id=device,
            site=f"s-{device[2:]}",
            online=standing.online,
            running=standing.running,
            running_version=standing.version,
            assigned=held.release if held else "",
            assigned_version=held.version if held else "",
            assigned_by=held.rollout if held else "",
            generation=0 if blind else standing.generation,
            desired=document.generation if document else 0,
            document="" if blind else standing.document,
            newest=document.digest if document else "",
            report=_report(said) if said else None,
            labels=self.labels(device),
            suspect=DOUBLED if doubled else "",
        )

    def around(self, rollout: Rollout) -> Around:
        others = [other for other in self.tables.rollouts.values() if other.id != rollout.id]
        child = self.tables.rollouts.get(rollout.back_id) if rollout.state is State.ROLLING_BACK else None
        first = "" if self.case.bug == "overtake" else earlier(rollout, others)
        parent = self.tables.rollouts.get(rollout.of) if rollout.kind == "late" else None
        gone = parent is not None and parent.state in GONE and self.case.bug != "left_behind"
        return Around(busy(others), first, child, gone=gone)

    def conflict(self, device: str) -> bool:
        fact = self.fact(device)
        return fact is not None and fact.conflict

    # --- who comes late ---

    def _take_in(self, changed: set[str]) -> None:
        """As the joiners' room, over devices that changed: all that a simulated plan can ask is who they are."""
        if self.case.bug == "overlooked":
            return
        updates = [r for r in self.tables.rollouts.values() if r.kind == "update"]
        ended = any(r.state is State.FINISHED and r.finished == self.clock for r in updates)
        names = set(self.tables.enrolled) if ended else changed & self.tables.enrolled.keys()
        for name in sorted(names - self.tables.removed):
            if name in self.tables.standings:
                self._join(name, [r for r in updates if r.model == _model(name)])

    def _join(self, name: str, updates: list[Rollout]) -> None:
        row = _Row(name, f"s-{name[2:]}", rfc3339(self.tables.enrolled[name]), self.labels(name))
        for rollout in updates:
            open_to = rollout.state not in FINAL | GONE and rollout.plan.late != "wait"
            new = row.enrolled > rfc3339(self.tables.created[rollout.id])
            if open_to and new and name not in rollout.members:
                members = rollout.members.put([joining(rollout, row, self.clock)])
                self._grown(msgspec.structs.replace(rollout, members=members), name)
        rest = sorted((r for r in updates if self._stands(r)), key=lambda r: r.id, reverse=True)
        standing = [Standing(r, rfc3339(self.tables.created[r.id])) for r in rest]
        held = self.tables.assigned.get(name)
        own = {r.id for r in self.tables.rollouts.values() if r.kind != "return" and name in r.members}
        chosen = choose(standing, row, Had(own, held.rollout if held else ""), _Names())  # type: ignore[arg-type]
        if chosen:
            self._follow(self.tables.rollouts[chosen], row)

    def _stands(self, rollout: Rollout) -> bool:
        return rollout.state is State.FINISHED and rollout.digest not in self.tables.quarantined

    def _follow(self, of: Rollout, row: _Row) -> None:
        known, members = self.tables.rollouts.get(of.late_id), [latecomer(of, row, self.clock)]
        late = late_rollout(of, members, self.clock) if known is None else taken_in(known, members, self.clock)
        if late is None:
            return
        if self.case.bug == "late_windows":
            late = msgspec.structs.replace(late, plan=msgspec.structs.replace(late.plan, windows=Windows()))
        self.tables.created.setdefault(late.id, self.clock)
        self._grown(late, row.id)

    def _grown(self, rollout: Rollout, name: str) -> None:
        self.tables.rollouts[rollout.id] = rollout
        self.wakes[rollout.id] = self.clock
        facts, fact = self.facts.get(rollout.id), self.fact(name)
        if facts is not None and fact is not None:
            facts[name] = fact

    # --- what it orders ---

    def carry_out(self, rollout: Rollout, orders: tuple[Order, ...]) -> None:
        touched: dict[str, None] = {}
        for order in orders:
            match order:
                case Assign():
                    check_order(self, rollout, order, self.installed)
                    self.tables.assigned[order.device] = order
                    touched[order.device] = None
                case Withdraw(device):
                    self.tables.assigned.pop(device, None)
                    touched[device] = None
                case Quarantine(digest):
                    if self.case.bug != "quarantine":
                        self.tables.quarantined.add(digest)
                case Begin(begun):
                    self.tables.rollouts.setdefault(begun.id, bugs.misled(self.case.bug, begun))
                    self.tables.created.setdefault(begun.id, self.clock)
                case _:
                    pass
        for device in touched:
            self.changed.add(device)  # as the triggers of the tables say
            for _ in range(2 if self.case.bug == "twice" else 1):
                self.publish(device)

    def publish(self, device: str, resolved: Document | None = None) -> None:
        """The next document, unless the device obeys what this hub never made, or is two."""
        tables = self.tables
        if device in tables.removed | tables.doubled or (resolved is None and self.conflict(device)):
            return
        before = resolved or tables.documents.get(device, Document(0, None, frozenset()))
        held = tables.assigned.get(device)
        order = (held.release, held.version, held.rollout, held.action) if held else None
        same = order == before.order and resolved is None
        if same and self.case.bug != "twice":
            return
        require(not same, "a document that did not change keeps its number", device)
        above = 1000 if resolved is not None else 1
        if self.case.bug == "drag":
            above = max(1, self.world.obeys(device) - before.generation + 1)
        made = Document(before.generation + above, order, before.history | {before.digest})
        tables.documents[device] = made
        self.changed.add(device)
        self.orders += 1
        self.world.carry(device, made)


def _model(device: str) -> str:
    return "delay" if device.startswith("d-") else "noise"


def _report(said: Said) -> Report:
    told = told_of(said.probation) if said.probation else None
    return Report(said.rollout, said.generation, said.release, said.state, said.cause, said.sentence, told=told)
