"""One hub and n boxes in one process, on a virtual clock, with seeded faults.

The boxes run the agent's own update machine (`tests.fleet.boxes`), the hub the rollout machine (`tests.fleet.hub`).
Messages are lost only for a while, repeated, late and out of order; boxes are killed, fall silent, are removed, set
back to an older disk, made anew and cloned, and join late; the hub is killed and restored from an older backup; people
propose, approve, and give every command twice. ``Case.bug`` plants one mistake, to show that the invariants see it.
"""

import heapq
import json
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from landreeve_agent.update.machine import Effect
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.policy import Plan, parse_plan
from landreeve_hub.rollout.resolve import resolve
from landreeve_hub.rollout.roster import Member, Roster
from landreeve_hub.rollout.state import FINAL, Assign, Rollout, State

from tests.fleet.boxes import MODEL, Box, Document, Standing
from tests.fleet.hub import LOOK_S, Case, SimulatedHub, Tables
from tests.fleet.invariants import check_end, check_latecomers, require

START = datetime(2026, 3, 28, 6, 0, tzinfo=UTC)  # the night after, clocks go forward in Europe
NEW, NEWER, OTHER = "f" * 64, "e" * 64, "c" * 64
FIRST, SECOND, BESIDE = "r-000001", "r-000002", "r-000003"
VERBS = ("pause", "resume", "next", "abort", "rollback", "retry")


class Simulation:
    """Run it with `run`; `InvariantBrokenError` says which rule did not hold."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.random = Random(case.seed)
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = self.looks = 0
        self.retained: dict[str, Document] = {}
        self.calm = False
        self.backups: list[Tables] = []
        self.boxes = {f"d-{n:05d}": self._box(f"d-{n:05d}") for n in range(case.size)}
        self.clones: dict[str, Box] = {}
        self.late: dict[str, float] = {}
        self.spoilt: set[str] = set()
        self.plan = self._plan()
        self.hub = SimulatedHub(case, self, paired=self.random.random() < 0.4)
        self._propose()

    @property
    def tables(self) -> Tables:
        return self.hub.tables

    @property
    def orders(self) -> int:
        return self.hub.orders

    # --- the cast ---

    def _box(self, name: str, *, bare: bool = False) -> Box:
        own = Random(f"{self.case.seed}{name}")
        draw = own.random()
        where = own.choice([Effect.PREFLIGHT, Effect.WATCH, Effect.FETCH])
        failing, failing_again = draw < self.case.fails, own.random() < self.case.fails

        def fate(release: str) -> Effect | None:
            return where if (failing and release == NEW) or (failing_again and release == NEWER) else None

        model = MODEL if name.startswith("d-") else "noise"
        box = Box(name, f"s-{name[2:]}", own, fate, model=model)
        if own.random() < 0.95 and not bare:  # some have nothing to return to
            kind = int(name[2:7]) % 3
            box.install(f"{kind:064x}", f"v{kind}")
        return box

    def _mute(self, name: str) -> bool:
        return Random(f"{self.case.seed}{name}mute").random() < self.case.mute

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
            "late": draw.choice(["wait", "wait", "current", "last", "leave"]),
        }
        if draw.random() < 0.3:
            raw["windows"] = {"activate": [{"start": "20:00", "end": "06:00"}]}
        return parse_plan(raw)

    def _propose(self) -> None:
        beside = self.case.size // 5 if self.case.overlap and self.random.random() < 0.4 else 0
        self.boxes |= {f"e-{n:05d}": self._box(f"e-{n:05d}") for n in range(beside)}
        for name, box in self.boxes.items():
            self.tables.enrolled[name] = START
            self.tables.standings[name] = box.standing
            if box.running[0]:
                release, version = box.running
                order = Assign(name, release, version, "r-000000", "install", self.plan.probation)
                self.tables.assigned[name] = order
        self._offer(FIRST, MODEL, NEW, self.plan)
        if self.case.overlap and self.random.random() < 0.5:
            self._offer(SECOND, MODEL, NEWER, self._plan())
        if beside:
            self._offer(
                BESIDE, "noise", OTHER, parse_plan({"probation": {"max_s": 7200}, "gate": {"deadline_s": 3600}})
            )

    def _offer(self, name: str, model: str, release: str, plan: Plan) -> None:
        sites = {d: box.site for d, box in self.boxes.items() if box.model == model}
        members = [
            Member(device, sites[device], number, place=self.hub.labels(device).get("site", ""))
            for number, wave in enumerate(resolve(plan, sites))
            for device in wave
        ]
        made = Rollout(
            id=name, model=model, digest=release, version="v9", plan=plan, state=State.AWAITING_APPROVAL,
            members=Roster(members),
        )  # fmt: skip
        self.hub.propose(made, "ann")
        people = ["ann", "bob"]  # ann may press the button too; it does nothing
        self.random.shuffle(people)
        for number, who in enumerate(people):
            self.at(self.random.uniform(0, 60) + 60 * number, lambda w=who: self.hub.approve(name, w))

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
        deadline = self.now + 300 * 3600
        while self.now < deadline:
            self._until(self.now + 1800)
            self._persons_settle()
            if self._ended():
                break
        require(self._ended(), "every rollout ends", str({r.id: str(r.state) for r in self.tables.rollouts.values()}))
        self._until(self.now + 26 * 3600)
        spoilt = set(self.boxes) if self.hub.said else self.spoilt
        check_end(self.hub, self.boxes, FIRST, spoilt)
        check_latecomers(self.hub, self.late, FIRST)

    def _look(self) -> None:
        self.looks += 1
        self.hub.look()
        self.at(LOOK_S, self._look)

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
            if self._mute(name):
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
            self.at(draw.uniform(0, span), self.hub.die)
        if self.case.restores and draw.random() < 0.3:
            backup = draw.uniform(0, span * 0.5)
            self.at(backup, lambda: self.backups.append(self.tables.copy()))
            self.at(backup + draw.uniform(60, span * 0.4), self._restore)
        for _ in range(draw.choice([0, 0, 1, 3]) if self.case.commands else 0):
            self.at(draw.uniform(0, span), self._person)
        if self.case.traffic:
            self._schedule_traffic(span, names)

    def _schedule_traffic(self, span: float, names: list[str]) -> None:
        """Boxes come, are made anew under another name, come back with an older disk, and are copied."""
        draw = self.random
        for n in range(draw.choice([0, 1, 3])):
            self.at(draw.uniform(0, span), lambda name=f"d-{90_000 + n}": self._enrol(name))
        for name in draw.sample(names, k=min(len(names) - 1, draw.choice([0, 1, 2]))):
            self.at(draw.uniform(0, span), lambda n=name: self._reimage(n))
        for name in draw.sample(names, k=min(len(names) - 1, draw.choice([0, 1, 2]))):
            self.at(draw.uniform(0, span * 0.7), lambda n=name: self._image(n, draw.uniform(600, span * 0.3)))
        for name in draw.sample(names, k=min(len(names) - 1, draw.choice([0, 0, 1]))):
            self.at(draw.uniform(0, span * 0.8), lambda n=name: self._clone(n))

    def _peace(self) -> None:
        """No further faults: whoever is there can be reached and is honest, and people settle what is open."""
        self.calm = True
        for name in sorted(self.clones):
            self._part(name)
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
        if box.name not in self.tables.removed:
            self.hub.stand(box.name, box.standing)
            self._hand_over(box, self.retained.get(box.name))
            self._flush(box)

    def _hear_will(self, name: str) -> None:
        box, known = self.boxes.get(name), self.tables.standings.get(name)
        if box is not None and not box.reachable and known is not None:
            gone = Standing(False, known.generation, known.document, known.running, known.version)
            self.hub.stand(name, gone)

    def _kill_box(self, name: str) -> None:
        """The effect under way is lost, the state is not: it begins again."""
        box = self.boxes.get(name)
        if box is not None:
            box.token += 1
            self.at(self.random.uniform(1, 60), lambda: self._work(box))

    def _remove(self, name: str) -> None:
        if name in self.boxes and len(self.boxes) > 1:
            del self.boxes[name]
            self.clones.pop(name, None)
            self.tables.removed.add(name)
            self.hub.changed.add(name)

    def _enrol(self, name: str) -> None:
        """A box joins the fleet: it has nothing yet."""
        self.boxes[name] = self._box(name, bare=True)
        self.tables.enrolled[name] = self.clock
        self.late[name] = self.now
        self._connect(self.boxes[name])

    def _reimage(self, name: str) -> None:
        """Installed anew, it joins as another box of the same site, and the former one is out."""
        if name in self.boxes:
            self._remove(name)
            if name not in self.boxes:
                self._enrol(f"{name}x{self.count}")

    def _image(self, name: str, later: float) -> None:
        """A copy of its disk is made, and put back later: it is what it was, with an outbox of its own."""
        box = self.boxes.get(name)
        if box is not None:
            state, document = box.state, box.document
            self.at(later, lambda: self._set_back(box, (state, document)))

    def _set_back(self, box: Box, disk: tuple[Any, Document]) -> None:
        if self.boxes.get(box.name) is not box:
            return
        box.state, box.document = disk
        self.count += 1
        box.begin_epoch(self.count)
        if box.reachable:
            self._connect(box)
        self._work(box)

    def _clone(self, name: str) -> None:
        """A second box speaks under the name until somebody takes it away; the hub finds out after some minutes."""
        box = self.boxes.get(name)
        if box is None or not box.reachable or self.calm:
            return
        fate = box.fate
        twin = Box(box.name, box.site, Random(f"{self.case.seed}{name}twin"), fate, model=box.model, prior=box.prior)
        twin.state, twin.document = deepcopy(box.state), box.document
        twin.begin_epoch(self.count + 1)
        self.clones[name] = twin
        self.spoilt.add(name)
        for n in range(6):  # they take the session from each other
            self.at(n * 60.0 + 1, lambda one=(twin if n % 2 == 0 else box): self._speak(one))
        self.at(self.random.uniform(120, 900), lambda: self._found_out(name))
        self.at(self.random.uniform(3600, 6 * 3600), lambda: self._part(name))

    def _speak(self, box: Box) -> None:
        if box.name in self.clones and box.name in self.boxes:
            self._connect(box)
            self._work(box)

    def _found_out(self, name: str) -> None:
        if name in self.clones:
            self.tables.doubled.add(name)
            self.hub.changed.add(name)

    def _part(self, name: str) -> None:
        """The copy is taken away; what was not ordered meanwhile is ordered now."""
        if self.clones.pop(name, None) is None:
            return
        self.tables.doubled.discard(name)
        box = self.boxes.get(name)
        if box is not None:
            self.count += 1
            box.begin_epoch(self.count)  # its facts were taken for the other's
            self.hub.stand(name, box.standing)
            self.hub.publish(name)
            self._work(box)

    def _restore(self) -> None:
        """The broker tells again what boxes retained there, and the hub what it believes it wants."""
        if not self.backups:
            return
        self.hub.restore(self.backups[-1])
        self.retained |= self.tables.documents
        for box in self.boxes.values():
            if box.reachable:
                self.hub.stand(box.name, box.standing)

    # --- people ---

    def _person(self) -> None:
        """A command, and the same once more some time later."""
        verb, name = self.random.choice(VERBS), self.random.choice(sorted(self.tables.rollouts))
        asked = Asked("ann", self.clock, str(self.count))
        if self.hub.command(name, verb, asked):
            self.at(self.random.uniform(0, 7200), lambda: self.hub.command_again(name, verb, asked))

    def _persons_settle(self) -> None:
        for name, rollout in list(self.tables.rollouts.items()):
            if rollout.state is State.AWAITING_APPROVAL:
                self.hub.approve(name, "bob")
            elif rollout.state is State.PAUSED:
                verb = self.random.choice(["resume", "resume", "abort", "rollback"])
                if not self.hub.command(name, verb, Asked("ann", self.clock)):
                    self.hub.command(name, "resume", Asked("ann", self.clock))
        for name in sorted(self.boxes):
            if self.hub.conflict(name):
                self._resolve(self.boxes[name])

    def _resolve(self, box: Box) -> None:
        adopts = None
        if self.random.random() < 0.5 and box.running[0]:
            release, version = box.running
            adopts = Assign(box.name, release, version, "adopted", "install", self.plan.probation)
        self.hub.resolve(box.name, adopts, box.document)

    # --- the link ---

    def carry(self, device: str, document: Document) -> None:
        """The broker keeps the document and hands it to whoever is there."""
        self.retained[device] = document
        self.at(self.random.uniform(0, 5), lambda: self._deliver(device))

    def obeys(self, device: str) -> int:
        """The generation that a device obeys."""
        box = self.boxes.get(device)
        return box.document.generation if box is not None else 0

    def _deliver(self, name: str) -> None:
        for box in (self.boxes.get(name), self.clones.get(name)):
            if box is not None and box.reachable:
                self._hand_over(box, self.retained.get(name))

    def _hand_over(self, box: Box, document: Document | None) -> None:
        if document is None or not box.obey(document):
            return
        if self.case.bug == "bare" and document.order is not None and document.order[3] == "rollback":
            box.lose()
        own = box.forks == 0 or box.name in self.spoilt
        require(own, "no device is dragged back without a person's word", box.name)
        self.hub.stand(box.name, box.standing)
        self._flush(box)
        self._work(box)

    def _flush(self, box: Box) -> None:
        """Everything not yet acknowledged, late, out of order, and some of it twice."""
        if not box.reachable:
            return
        for said in box.outbox:
            for _ in range(2 if self.random.random() < 0.1 else 1):
                self.at(self.random.uniform(0, 0 if self.calm else 40), lambda s=said: self._hear(box, s))
        box.outbox.clear()

    def _hear(self, box: Box, said: Any) -> None:
        if box.name in self.tables.removed:
            return
        self.hub.hear(box.name, said)
        if self.boxes.get(box.name) is box and box.reachable:
            self.hub.stand(box.name, box.standing)

    def _work(self, box: Box) -> None:
        took = box.begin()
        self._flush(box)
        if took is not None:
            token = box.token
            self.at(took, lambda: self._done(box, token))

    def _done(self, box: Box, token: int) -> None:
        if token != box.token or box not in (self.boxes.get(box.name), self.clones.get(box.name)):
            return
        box.end()
        self._flush(box)
        self._work(box)


def play(case: Case) -> Simulation:
    """The history of that case, played to its end."""
    simulation = Simulation(case)
    simulation.run()
    return simulation


def summary(simulation: Simulation) -> str:
    """What became of it, in one line."""
    states = {rollout.id: rollout.state.value for rollout in simulation.tables.rollouts.values()}
    return json.dumps({"seed": simulation.case.seed, "orders": simulation.orders, "states": states})
