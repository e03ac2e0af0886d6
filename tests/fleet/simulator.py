"""One hub and n boxes in one process, on a virtual clock, with seeded faults.

The boxes run the agent's own update machine. The hub is the rollout machine as the runner drives it: facts by change,
decisions by what changed and by `Decision.wake`, everything that must survive kept as JSON. Store and broker are
models: a killed hub goes on from the JSON, a restored one from an older copy of it; messages are lost only for a while,
repeated, late and out of order. ``bug`` plants one mistake, to show that the invariants see it.
"""

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
from landreeve_agent.update.machine import Effect
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.live import busy, earlier
from landreeve_hub.rollout.machine import decide, uncovered
from landreeve_hub.rollout.policy import Plan, parse_plan
from landreeve_hub.rollout.resolve import resolve
from landreeve_hub.rollout.roster import Back, Member, Outcome, Roster
from landreeve_hub.rollout.sight import told_of
from landreeve_hub.rollout.state import (
    FINAL,
    Around,
    Assign,
    Begin,
    Decision,
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

from tests.fleet.boxes import MODEL, Box, Document, Said, Standing

START = datetime(2026, 3, 28, 6, 0, tzinfo=UTC)  # the night after, clocks go forward in Europe
OLD, NEW = "0" * 64, "f" * 64
FIRST = "r-000001"
LOOK_S = 30.0
ZONES = ("Europe/Berlin", "Asia/Dubai", "America/New_York", "UTC")
BUGS = (
    "in_flight", "site", "waves", "threshold", "prior", "drag", "forget", "quarantine", "wordless", "sleep", "twice",
    "deaf", "windows",
)  # fmt: skip


class InvariantBrokenError(AssertionError):
    """``name`` is the rule that was broken."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name


def require(holds: bool, name: str, what: str = "") -> None:
    if not holds:
        raise InvariantBrokenError(name, what)


@dataclass(frozen=True, slots=True)
class Case:
    """One history, drawn from its seed. ``fails`` and ``mute`` are shares of boxes."""

    seed: int
    size: int = 30
    fails: float = 0.02
    mute: float = 0.01
    bug: str = ""
    restores: bool = True
    commands: bool = True


@dataclass
class Tables:
    """What the hub keeps. ``copy`` is a backup: everything as JSON would bring it back."""

    rollouts: dict[str, Rollout] = field(default_factory=dict)
    assigned: dict[str, Assign] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    reports: dict[str, Said] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    quarantined: set[str] = field(default_factory=set)

    def copy(self) -> "Tables":
        plain = {name: resumed(rollout) for name, rollout in self.rollouts.items()}
        rest = (self.assigned, self.documents, self.reports, self.standings)
        return Tables(plain, *(dict(one) for one in rest), set(self.removed), set(self.quarantined))


def resumed(rollout: Rollout) -> Rollout:
    """The rollout as it comes back from what is stored of it."""
    names = Head.__struct_fields__
    head = msgspec.json.decode(msgspec.json.encode({n: getattr(rollout, n) for n in names}), type=Head)
    members = msgspec.json.decode(msgspec.json.encode(list(rollout.members.values())), type=list[Member])
    return Rollout(**{name: getattr(head, name) for name in names}, members=Roster(members))


class Simulation:
    """Run it with `run`; `InvariantBrokenError` says which rule did not hold."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.random = Random(case.seed)
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.tables = Tables()
        self.retained: dict[str, Document] = {}
        self.facts: dict[str, dict[str, DeviceFact]] = {}
        self.arounds: dict[str, Around] = {}
        self.wakes: dict[str, datetime | None] = {}
        self.changed: set[str] = set()
        self.cold = True
        self.down = False
        self.calm = False
        self.backups: list[Tables] = []
        self.installed: set[tuple[str, str]] = set()
        self.orders = self.looks = self.decisions = 0
        self.told_bad: dict[str, datetime] = {}
        self.words = 0  # what people said about devices in conflict
        self.boxes = {f"d-{n:05d}": self._box(n) for n in range(case.size)}
        self.plan = self._plan()
        self._propose()

    # --- the cast ---

    def _box(self, n: int) -> Box:
        own = Random(self.case.seed * 1_000_003 + n)
        draw = own.random()
        where = own.choice([Effect.PREFLIGHT, Effect.WATCH, Effect.FETCH])
        failing = draw < self.case.fails

        def fate(release: str) -> Effect | None:
            return where if failing and release == NEW else None

        box = Box(f"d-{n:05d}", f"s-{n:05d}", own, fate)
        if own.random() < 0.95:  # some have nothing to return to
            box.install(f"{n % 3:064x}", f"v{n % 3}")
        return box

    def _mute(self, box: Box) -> bool:
        return Random(f"{self.case.seed}{box.name}mute").random() < self.case.mute

    def _plan(self) -> Plan:
        draw, size = self.random, self.case.size
        gate: dict[str, Any] = {
            "max_in_flight": draw.choice([max(2, size // 50), max(5, size // 20), max(5, size // 8)]),
            "max_failures": draw.choice([0, 1, max(2, size // 20)]),
            "max_silent": draw.choice([0, max(1, size // 30)]),
            "deadline_s": 3600,
            "soak_s": draw.choice([0, 600]),
            "on_failure": draw.choice(["rollback", "rollback", "pause", "abort"]),
        }
        if draw.random() < 0.3:
            gate["figures"] = {"max_error_rate": 0.05, "max_latency_ratio": 2.0}
        raw: dict[str, Any] = {
            "waves": [{"count": max(1, size // 20), "name": "Canary"}, {"share": 0.2}, {"share": 0.3}, {"rest": True}],
            "gate": gate,
            "probation": {"max_s": 7200},
            "offline": {"policy": draw.choice(["order", "wait", "exclude"]), "after_s": 1800},
            "jitter_s": draw.choice([0, 0, 300]),
            "back": {"max_in_flight": draw.choice([3, 1_000_000])},
        }
        if draw.random() < 0.3:
            raw["windows"] = {"activate": [{"start": "20:00", "end": "06:00"}]}
        return parse_plan(raw)

    def _propose(self) -> None:
        sites = {name: box.site for name, box in self.boxes.items()}
        paired = self.random.random() < 0.4
        members = [
            Member(device, sites[device], number, place=f"pair-{int(device[2:]) // 2}" if paired else "")
            for number, wave in enumerate(resolve(self.plan, sites))
            for device in wave
        ]
        made = Rollout(
            id=FIRST, model=MODEL, digest=NEW, version="v9", plan=self.plan, state=State.RUNNING, wave_since=START,
            members=Roster(members),
        )  # fmt: skip
        self.tables.rollouts[made.id] = made
        for name, box in self.boxes.items():
            if box.running[0]:
                release, version = box.running
                self.tables.assigned[name] = Assign(name, release, version, "r-000000", "install", self.plan.probation)
            self.tables.standings[name] = box.standing
        self.priors = {name: box.running[0] for name, box in self.boxes.items()}

    # --- time ---

    def at(self, delay: float, do: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, do))

    @property
    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def run(self, hours: float = 30.0) -> None:
        """Faults for a day, then peace until everything has come to its end."""
        self._schedule_faults(hours * 0.6 * 3600)
        self.at(0, self._look)
        self._until(hours * 0.6 * 3600)
        self._peace()
        deadline = self.now + 200 * 3600
        while not self._ended() and self.now < deadline:
            self._until(self.now + 1800)
            self._persons_settle()
        require(self._ended(), "every rollout ends", str({r.id: str(r.state) for r in self.tables.rollouts.values()}))
        self._until(self.now + 8 * 3600)
        self._check_end()

    def _until(self, moment: float) -> None:
        while self.queue and self.queue[0][0] <= moment:
            self.now, _, do = heapq.heappop(self.queue)
            do()
        self.now = max(self.now, moment)

    def _ended(self) -> bool:
        return all(rollout.state in FINAL for rollout in self.tables.rollouts.values())

    # --- faults ---

    def _schedule_faults(self, span: float) -> None:
        draw, names = self.random, sorted(self.boxes)
        for name in names:
            if self._mute(self.boxes[name]):
                self.at(draw.uniform(0, span / 3), lambda n=name: self._reach(n, False))
            elif draw.random() < 0.25:
                away, long = draw.uniform(0, span * 0.8), draw.uniform(60, 4 * 3600)
                self.at(away, lambda n=name: self._reach(n, False))
                self.at(away + long, lambda n=name: self._reach(n, True))
            if draw.random() < 0.1:
                self.at(draw.uniform(0, span), lambda n=name: self._kill_box(n))
        for name in draw.sample(names, k=min(len(names) - 1, draw.choice([0, 0, 1, 2]))):
            self.at(draw.uniform(0, span), lambda n=name: self._remove(n))
        for _ in range(draw.choice([0, 1, 3])):
            self.at(draw.uniform(0, span), self._kill_hub)
        if self.case.restores and draw.random() < 0.3:
            backup = draw.uniform(0, span * 0.5)
            self.at(backup, lambda: self.backups.append(self.tables.copy()))
            self.at(backup + draw.uniform(60, span * 0.4), self._restore)
        for _ in range(draw.choice([0, 0, 1, 3]) if self.case.commands else 0):
            self.at(draw.uniform(0, span), self._person)

    def _peace(self) -> None:
        """No further faults: whoever is there can be reached and is honest, and people settle what is open."""
        self.calm = True
        for name in sorted(self.boxes):
            self._reach(name, True)

    def _reach(self, name: str, reachable: bool) -> None:
        box = self.boxes.get(name)
        if box is None or box.reachable == reachable:
            return
        box.reachable = reachable
        if reachable:
            self._connect(box)
        else:
            self.at(self.random.uniform(0, 90), lambda: self._hear_will(name))

    def _connect(self, box: Box) -> None:
        self._stand(box)
        self._deliver(box.name)
        self._flush(box)

    def _hear_will(self, name: str) -> None:
        box, known = self.boxes.get(name), self.tables.standings.get(name)
        if box is None or box.reachable or known is None:
            return
        self.tables.standings[name] = Standing(False, known.generation, known.document, known.running, known.version)
        self.changed.add(name)

    def _kill_box(self, name: str) -> None:
        """The effect under way is lost, the state is not: it begins again."""
        box = self.boxes.get(name)
        if box is not None:
            box.token += 1
            self.at(self.random.uniform(1, 60), lambda: self._work(box))

    def _remove(self, name: str) -> None:
        if name in self.boxes and len(self.boxes) > 1:
            del self.boxes[name]
            self.tables.removed.add(name)
            self.changed.add(name)

    def _kill_hub(self) -> None:
        """Memory is gone; what was stored is not."""
        self.tables = self.tables.copy()
        if self.case.bug == "forget":
            fresh = [
                msgspec.structs.replace(m, outcome=Outcome.WAITING) if m.flying else m for m in self._first.values()
            ]
            self.tables.rollouts[FIRST] = msgspec.structs.replace(self.tables.rollouts[FIRST], members=Roster(fresh))
        self._forget()

    @property
    def _first(self) -> Roster:
        return self.tables.rollouts[FIRST].members

    def _forget(self) -> None:
        self.facts, self.arounds, self.wakes, self.changed, self.cold = {}, {}, {}, set(), True

    def _restore(self) -> None:
        """An older backup; the broker tells again what boxes retained there, and the hub what it believes it wants."""
        if not self.backups:
            return
        removed = self.tables.removed
        self.tables = self.backups[-1].copy()
        self.tables.removed |= removed  # the backup's list of devices is mended first
        self.installed.clear()
        self._forget()
        for name, document in self.tables.documents.items():
            self.retained[name] = document
        for box in self.boxes.values():
            if box.reachable:
                self._stand(box)

    def _person(self) -> None:
        verb = self.random.choice(["pause", "resume", "next", "abort", "rollback", "retry"])
        self._command(FIRST, verb, str(self.count))

    def _command(self, name: str, verb: str, key: str = "") -> None:
        rollout = self.tables.rollouts[name]
        asked = Asked("ann", self.clock, key)
        answer = commands.obey(rollout, verb, asked)
        if isinstance(answer, Refused):
            return
        after, orders = answer
        require(commands.obey(after, verb, asked) == (after, ()) or not key, "a command again does nothing", verb)
        if verb == "retry":
            self.installed -= {one for one in self.installed if one[1] == FIRST}
        self.tables.rollouts[name] = after
        self._carry_out(after, orders)
        self.wakes[name] = self.clock

    def _persons_settle(self) -> None:
        for name, rollout in list(self.tables.rollouts.items()):
            if rollout.state is State.PAUSED:
                self._command(name, self.random.choice(["resume", "resume", "abort", "rollback"]))
        for name in sorted(self.boxes):
            if self._conflict(name):
                self._resolve(name)

    # --- the link ---

    def _stand(self, box: Box) -> None:
        self.tables.standings[box.name] = box.standing
        self.changed.add(box.name)

    def _flush(self, box: Box) -> None:
        """Everything not yet acknowledged, late, out of order, and some of it twice."""
        if not box.reachable:
            return
        for said in box.outbox:
            for _ in range(2 if self.random.random() < 0.1 else 1):
                self.at(self.random.uniform(0, 0 if self.calm else 40), lambda s=said: self._hear(box.name, s))
        box.outbox.clear()

    def _hear(self, name: str, said: Said) -> None:
        """As the ingest: a report replaces an older one, never a newer one; the figures of a probation stay with it."""
        known = self.tables.reports.get(name)
        if said.state in {"REJECTED", "ROLLED_BACK"} and said.rollout == FIRST:
            self.told_bad.setdefault(name, self.clock)
        if self.case.bug == "deaf" and said.state in {"REJECTED", "ROLLING_BACK", "ROLLED_BACK"}:
            return
        if known is None or known.seq < said.seq:
            kept = said.probation or (known.probation if known and known.generation == said.generation else None)
            self.tables.reports[name] = msgspec_free(said, kept)
        box = self.boxes.get(name)
        if box is not None and box.reachable:
            self.tables.standings[name] = box.standing
        self.changed.add(name)

    def _deliver(self, name: str) -> None:
        box, document = self.boxes.get(name), self.retained.get(name)
        if box is None or document is None or not box.reachable:
            return
        if box.obey(document):
            require(box.forks == 0, "no device is dragged back without a person's word", name)
            self._stand(box)
            self._flush(box)
            self._work(box)

    def _work(self, box: Box) -> None:
        took = box.begin()
        self._flush(box)
        if took is not None:
            token = box.token
            self.at(took, lambda: self._done(box, token))

    def _done(self, box: Box, token: int) -> None:
        if token != box.token or box.name not in self.boxes:
            return
        box.end()
        self._flush(box)
        self._work(box)

    # --- the hub ---

    def _look(self) -> None:
        self.looks += 1
        if not self.down:
            changed, self.changed = self.changed, set()
            for name in sorted(self.tables.rollouts):
                self._decide(name, changed)
            self.cold = False
        self.at(LOOK_S, self._look)

    def _decide(self, name: str, changed: set[str]) -> None:
        before = self.tables.rollouts[name]
        if before.state in FINAL:
            self.facts.pop(name, None)  # not looked at any more; a retry reads everything anew
            return
        facts, ours = self._renewed(before, changed)
        around = self._around(before)
        wake = self.wakes.get(name)
        late = wake is not None and wake <= self.clock and self.case.bug != "sleep"
        if ours is not None and not ours and not late and around == self.arounds.get(name):
            return
        self.decisions += 1
        decision = decide(self._bent(before), facts, self.clock, around, None if late else ours)
        self._check_decision(before, decision, facts, around)
        after = self._straight(before, decision.rollout)
        self.tables.rollouts[name] = msgspec.structs.replace(after, members=after.members.saved())
        self.arounds[name], self.wakes[name] = around, decision.wake
        self._carry_out(after, decision.orders)

    def _renewed(self, rollout: Rollout, changed: set[str]) -> tuple[dict[str, DeviceFact], set[str] | None]:
        facts = self.facts.get(rollout.id)
        if facts is None:
            facts = self.facts[rollout.id] = {d: f for d in rollout.members if (f := self._fact(d)) is not None}
            return facts, None
        ours = {device for device in changed if device in rollout.members}
        for device in ours:
            fact = self._fact(device)
            if fact is None:
                facts.pop(device, None)
            else:
                facts[device] = fact
        return facts, ours

    def _fact(self, device: str) -> DeviceFact | None:
        if device in self.tables.removed or device not in self.tables.standings:
            return None
        standing, held = self.tables.standings[device], self.tables.assigned.get(device)
        document, said = self.tables.documents.get(device), self.tables.reports.get(device)
        blind = self.case.bug == "drag"
        return DeviceFact(
            id=device,
            site=f"s-{device[2:]}",
            online=standing.online,
            running=standing.running,
            running_version=standing.version,
            assigned=held.release if held else "",
            assigned_version=held.version if held else "",
            generation=0 if blind else standing.generation,
            desired=document.generation if document else 0,
            document="" if blind else standing.document,
            newest=document.digest if document else "",
            report=self._report(said) if said else None,
            labels={"timezone": ZONES[int(device[2:]) % len(ZONES)]},
        )

    def _report(self, said: Said) -> Report:
        return Report(
            said.rollout, said.generation, said.release, said.state, said.cause, said.sentence,
            told=told_of(said.probation) if said.probation else None,
        )  # fmt: skip

    def _around(self, rollout: Rollout) -> Around:
        others = [other for other in self.tables.rollouts.values() if other.id != rollout.id]
        child = self.tables.rollouts.get(rollout.back_id) if rollout.state is State.ROLLING_BACK else None
        return Around(busy(others), earlier(rollout, others), child)

    def _conflict(self, device: str) -> bool:
        fact = self._fact(device)
        return fact is not None and fact.conflict

    def _carry_out(self, rollout: Rollout, orders: tuple[Order, ...]) -> None:
        touched: dict[str, None] = {}
        for order in orders:
            match order:
                case Assign():
                    self.tables.assigned[order.device] = order
                    touched[order.device] = None
                    self._check_order(rollout, order)
                case Withdraw(device):
                    self.tables.assigned.pop(device, None)
                    touched[device] = None
                case Quarantine(digest):
                    if self.case.bug != "quarantine":
                        self.tables.quarantined.add(digest)
                case Begin(begun):
                    self.tables.rollouts.setdefault(begun.id, self._misled(begun))
                case _:
                    pass
        for device in touched:
            for _ in range(2 if self.case.bug == "twice" else 1):
                self._publish(device)

    def _misled(self, begun: Rollout) -> Rollout:
        if self.case.bug != "prior":
            return begun
        one = next(iter(begun.members.values())).target
        wrong = [msgspec.structs.replace(member, target=one) for member in begun.members.values()]
        return msgspec.structs.replace(begun, members=Roster(wrong))

    def _publish(self, device: str, resolved: Document | None = None) -> None:
        """The next document, unless the device obeys what this hub never made."""
        if device in self.tables.removed or (resolved is None and self._conflict(device)):
            return
        before = resolved or self.tables.documents.get(device, Document(0, None, frozenset()))
        held = self.tables.assigned.get(device)
        order = (held.release, held.version, held.rollout, held.action) if held else None
        if order == before.order and resolved is None and self.case.bug != "twice":
            return
        require(
            order != before.order or resolved is not None, "a document that did not change keeps its number", device
        )
        above = 1000 if resolved is not None else 1
        if self.case.bug == "drag" and device in self.boxes:
            above = max(1, self.boxes[device].document.generation - before.generation + 1)
        made = Document(before.generation + above, order, before.history | {before.digest})
        self.tables.documents[device] = self.retained[device] = made
        self.changed.add(device)
        self.orders += 1
        self.at(self.random.uniform(0, 5), lambda: self._deliver(device))

    def _resolve(self, device: str) -> None:
        """A person says who is right; from then on the device's history is the hub's."""
        box = self.boxes[device]
        if self.random.random() < 0.5 and box.running[0]:
            release, version = box.running
            self.tables.assigned[device] = Assign(device, release, version, "adopted", "install", self.plan.probation)
        known = self.tables.documents.get(device, Document(0, None, frozenset()))
        history = known.history | {known.digest, box.document.digest} | box.document.history
        self._publish(device, Document(box.document.generation, None, history))
        self.words += 1

    # --- planted mistakes ---

    def _bent(self, rollout: Rollout) -> Rollout:
        """What a hub with the planted mistake believes of the rollout."""
        bug, plan, replace = self.case.bug, rollout.plan, msgspec.structs.replace
        if rollout.kind == "return":
            return rollout
        if bug == "in_flight":
            return replace(
                rollout, plan=replace(plan, gate=replace(plan.gate, max_in_flight=plan.gate.max_in_flight + 3))
            )
        if bug == "threshold":
            return replace(rollout, plan=replace(plan, gate=replace(plan.gate, max_failures=10_000)))
        if bug == "windows":
            return replace(rollout, plan=replace(plan, windows=replace(plan.windows, download=(), activate=())))
        if bug == "site":
            return replace(
                rollout, members=rollout.members.put([replace(m, place="") for m in rollout.members.values()])
            )
        if bug == "waves" and rollout.wave < rollout.members.last_wave:
            return replace(rollout, wave=rollout.wave + 1)
        return rollout

    def _straight(self, before: Rollout, after: Rollout) -> Rollout:
        if not self.case.bug or before.kind == "return":
            return after
        replace = msgspec.structs.replace
        if self.case.bug == "site":
            places = [replace(m, place=before.members[m.device].place) for m in after.members.values()]
            after = replace(after, members=after.members.put(places))
        wave = before.wave if self.case.bug == "waves" and after.state is State.RUNNING else after.wave
        return replace(after, plan=before.plan, wave=wave)

    # --- what must hold ---

    def _check_order(self, rollout: Rollout, order: Assign) -> None:
        if order.action == "rollback":
            require(order.release == self._last_good(order.device), "each goes back to its own last good", order.device)
            return
        again = (order.device, order.rollout)
        require(again not in self.installed, "nobody is ordered twice", str(again))
        self.installed.add(again)
        windows = self.plan.windows.activate
        if windows:
            local = self._local(order.device)
            require(local.hour >= 20 or local.hour < 6, "no order outside the site's window", f"{order.device} {local}")

    def _last_good(self, device: str) -> str:
        member = self._first.get(device)
        return member.prior if member is not None and member.prior else self.priors[device]

    def _local(self, device: str) -> datetime:
        from zoneinfo import ZoneInfo

        return self.clock.astimezone(ZoneInfo(ZONES[int(device[2:]) % len(ZONES)]))

    def _check_decision(
        self, before: Rollout, decision: Decision, facts: dict[str, DeviceFact], around: Around
    ) -> None:
        after, gate = self._straight(before, decision.rollout), before.plan.gate
        flying = [after.members[device] for device in after.members.flying]
        require(len(flying) <= gate.max_in_flight, "never more than max in flight", str(len(flying)))
        if before.kind == "update":
            places = [member.where for member in flying]
            require(len(places) == len(set(places)), "never two of one site", str(sorted(places)))
            require(all(m.wave <= after.wave for m in flying), "nobody outside the waves reached")
            failed = after.members.count(Outcome.FAILED)
            beyond = failed > max(gate.max_failures, before.accepted_failures)
            if beyond and before.state in {State.RUNNING, State.PAUSED}:
                install = [o for o in decision.orders if isinstance(o, Assign) and o.action == "install"]
                require(after.state is not State.RUNNING and not install, "failures past the limit stop new orders")
        for device in after.members.delta:
            old, new = before.members.get(device), after.members[device]
            forward = old is None or RANK[new.outcome] >= RANK[old.outcome] or new.attempt > old.attempt
            require(forward, "an outcome never moves back", f"{device} {new.outcome}")
        self._check_words(after, decision)
        if not self.case.bug and self.random.random() < 0.1:
            self._check_incremental(before, decision, facts, around)

    def _check_words(self, after: Rollout, decision: Decision) -> None:
        waiting = () if self.case.bug == "wordless" else decision.waiting
        if after.state in FINAL:
            return
        require(bool(waiting), "a rollout under way is never without a word", str(after.state))
        if after.state is not State.RUNNING or self.case.bug:
            return
        spoken: set[str] = set()
        for one in waiting:
            sites = getattr(one, "sites", None)
            if sites is None:
                return
            spoken |= set(sites)
        silent = [member.site for member in uncovered(after) if member.site not in spoken]
        require(not silent, "each device that is due is spoken of", str(silent[:3]))

    def _check_incremental(
        self, before: Rollout, decision: Decision, facts: dict[str, DeviceFact], around: Around
    ) -> None:
        """To look at what changed is as good as to look at everything; and the same sight again orders nothing."""
        whole = decide(before, {d: f for d in before.members if (f := self._fact(d)) is not None}, self.clock, around)
        require(whole.rollout == decision.rollout, "a look at what changed sees everything", before.id)
        again = decide(decision.rollout, facts, self.clock, self._around(decision.rollout))
        ordered = {o.device for o in decision.orders if isinstance(o, Assign)}
        twice = [o.device for o in again.orders if isinstance(o, Assign) and o.device in ordered]
        require(not twice, "the same sight again orders nobody again", str(twice[:1]))

    def _check_end(self) -> None:
        first = self.tables.rollouts[FIRST]
        if first.state is State.ROLLED_BACK and first.cause not in {"rolled_back", ""}:
            require(NEW in self.tables.quarantined, "a release that failed the fleet is quarantined", first.cause)
        for name, box in self.boxes.items():
            member = first.members[name]
            if self.priors[name]:
                require(bool(box.running[0]), "something always serves", name)
            if member.back is Back.RETURNED and first.state is State.ROLLED_BACK and not self.words:
                require(box.running[0] == member.prior, "each goes back to its own last good", name)
            told = self.told_bad.get(name, self.clock)
            if box.ended_badly(FIRST) and first.finished is not None and told < first.finished and not self.words:
                failed = member.outcome is Outcome.FAILED or member.back is not Back.NO
                require(failed, "every failure is counted", f"{name} {member.outcome}")
            held = self.tables.assigned.get(name)
            settled = first.state is State.FINISHED and not self.words and not self._conflict(name)
            if member.outcome is Outcome.COMMITTED and settled and held:
                require(box.running[0] == held.release, "a finished rollout is what runs", name)


RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}


def msgspec_free(said: Said, probation: dict[str, float] | None) -> Said:
    """The fact with the figures that belong to it."""
    return Said(said.seq, said.rollout, said.generation, said.release, said.state, said.cause, said.sentence, probation)


def play(case: Case) -> Simulation:
    """The history of that case, played to its end."""
    simulation = Simulation(case)
    simulation.run()
    return simulation


def summary(simulation: Simulation) -> str:
    """What became of it, in one line."""
    states = {rollout.id: rollout.state.value for rollout in simulation.tables.rollouts.values()}
    return json.dumps({"seed": simulation.case.seed, "orders": simulation.orders, "states": states})
