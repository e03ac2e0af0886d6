"""The rollout machine over a simulated fleet: one hub, n boxes, one process, a virtual clock, seeded faults.

Boxes fail, fall silent, repeat themselves, report late and out of order, are removed; the hub is killed and
resumes from what it stored. Hypothesis writes the histories; the invariants hold after every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.machine import decide, failures, in_flight
from landreeve_hub.rollout.policy import parse_plan, resolve
from landreeve_hub.rollout.state import (
    FINAL,
    Assign,
    Decision,
    DeviceFact,
    Member,
    Order,
    Outcome,
    Quarantine,
    Refused,
    Report,
    Rollout,
    State,
    Withdraw,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
NEW = "f" * 64
STAGES = ("RECEIVED", "VERIFIED", "DOWNLOADING", "STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "COMMITTED")
FAILURES = ("REJECTED", "ROLLED_BACK")
RANK = list(Outcome)


@dataclass
class Box:
    """A device: what it serves, what it was told, and what it has said but the hub has not heard."""

    name: str
    serves: str
    told: Assign | None = None
    generation: int = 0
    stage: int = -1
    ended: str = ""
    reachable: bool = True
    good: str = ""
    said: list[Report] = field(default_factory=list)
    heard: list[Report] = field(default_factory=list)

    def obey(self, order: Assign | None, generation: int) -> None:
        """A newer document: whatever was under way ends at the last good release."""
        if generation <= self.generation or not self.reachable:
            return
        self.generation, self.told, self.stage, self.ended = generation, order, -1, ""
        self.serves = self.good
        if order is not None and order.action == "rollback":
            self.serves = self.good = order.release
            self.say("COMMITTED")

    def step(self, fails: str) -> None:
        """One step of its own update machine."""
        if self.told is None or self.ended or self.told.action == "rollback" or self.good == self.told.release:
            return
        if fails:
            self.ended, self.serves = fails, self.good
            self.say(fails)
            return
        self.stage += 1
        if STAGES[self.stage] == "PROBATION":
            self.serves = self.told.release
        if STAGES[self.stage] == "COMMITTED":
            self.ended, self.good = "COMMITTED", self.told.release
        self.say(STAGES[self.stage])

    def say(self, state: str) -> None:
        assert self.told is not None
        words = f"{self.name} {state}."
        self.said.append(Report(self.told.rollout, self.generation, self.told.release, state, "told", words))


class FleetHistory(RuleBasedStateMachine):
    """A random history of one rollout."""

    @initialize(
        size=st.integers(1, 6),
        first=st.integers(1, 3),
        max_in_flight=st.integers(1, 3),
        max_failures=st.integers(0, 2),
        has_prior=st.booleans(),
    )
    def begin(self, size: int, first: int, max_in_flight: int, max_failures: int, has_prior: bool) -> None:
        self.now = START
        self.boxes = {f"d-{n}": Box(f"d-{n}", f"{n:064x}" if has_prior else "") for n in range(size)}
        for box in self.boxes.values():
            box.good = box.serves
        self.first_good = {name: box.good for name, box in self.boxes.items()}
        sites = {name: name for name in self.boxes}
        gate = {"max_in_flight": max_in_flight, "max_failures": max_failures, "max_silent": 1, "deadline_s": 3600}
        plan = parse_plan({"waves": [{"devices": list(sites)[:first]}, {"rest": True}], "gate": gate})
        members = tuple(Member(d, d, n) for n, wave in enumerate(resolve(plan, sites)) for d in wave)
        self.rollout = Rollout("r-000001", "m", NEW, "v2", plan, members, State.RUNNING)
        self.assigned: dict[str, Assign | None] = dict.fromkeys(self.boxes)
        self.generations = dict.fromkeys(self.boxes, 0)
        self.installs: list[str] = []
        self.quarantined = self.stopped = False

    # --- what may happen ---

    @rule()
    def hub_looks(self) -> None:
        before = self.rollout
        decision = decide(before, self._seen(), self.now)
        self._check(before, decision)
        self.rollout = decision.rollout
        self._carry_out(decision.orders)

    @rule(rounds=st.integers(1, 9), late=st.booleans())
    def everyone_works_for_a_while(self, rounds: int, late: bool) -> None:
        """Boxes work on; the hub hears each of them at once, or only at the end."""
        for number in range(rounds):
            for box in self.boxes.values():
                box.obey(self.assigned[box.name], self.generations[box.name])
                box.step("")
                if box.reachable and (not late or number == rounds - 1):
                    box.heard.extend(box.said[-1:])
            self.hub_looks()

    @rule()
    def hub_is_killed_and_resumes(self) -> None:
        self.rollout = msgspec.convert(msgspec.json.decode(msgspec.json.encode(self.rollout)), Rollout)

    @rule(pick=st.integers(0, 5), fails=st.sampled_from(("", "", "", "", *FAILURES)))
    def box_works(self, pick: int, fails: str) -> None:
        box = self._box(pick)
        if box is None:
            return
        box.obey(self.assigned[box.name], self.generations[box.name])
        box.step(fails)

    @rule(pick=st.integers(0, 5), which=st.integers(0, 20))
    def hub_hears_something_late_or_twice(self, pick: int, which: int) -> None:
        """Any report ever made may arrive at any time, in any order, again."""
        box = self._box(pick)
        if box is not None and box.said and box.reachable:
            box.heard.append(box.said[which % len(box.said)])

    @rule(pick=st.integers(0, 5))
    def box_falls_silent_or_returns(self, pick: int) -> None:
        box = self._box(pick)
        if box is not None:
            box.reachable = not box.reachable

    @rule(pick=st.integers(1, 5))
    def box_is_removed(self, pick: int) -> None:
        box = self._box(pick)
        if box is not None and len(self.boxes) > 1:
            del self.boxes[box.name]

    @rule(seconds=st.sampled_from((1, 60, 4000)))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.rollout.state not in FINAL)
    @rule(verb=st.sampled_from(("pause", "next", "abort", "rollback")))
    def person_commands(self, verb: str) -> None:
        answer = commands.COMMANDS[verb](self.rollout, "ann", self.now)
        if not isinstance(answer, Refused):
            self.rollout, orders = answer
            self._carry_out(orders)

    # --- what must hold ---

    @invariant()
    def never_more_than_max_in_flight(self) -> None:
        assert len(in_flight(self.rollout)) <= self.rollout.plan.gate.max_in_flight

    @invariant()
    def nobody_outside_the_waves_reached_is_ordered(self) -> None:
        ordered = [m for m in self.rollout.members if m.ordered_at is not None]
        assert all(m.wave <= self.rollout.wave for m in ordered)

    @invariant()
    def nobody_is_ordered_twice(self) -> None:
        assert len(self.installs) == len(set(self.installs))

    @invariant()
    def who_went_back_is_told_its_own_last_good_release(self) -> None:
        for name, order in self.assigned.items():
            if order is not None and order.action == "rollback":
                assert order.release == self.first_good[name]

    @invariant()
    def failures_past_the_threshold_quarantine_the_release(self) -> None:
        if self.stopped:
            assert self.quarantined
            assert self.rollout.state in {State.ROLLING_BACK, State.ROLLED_BACK}

    def teardown(self) -> None:
        """However it went: once every box is reachable and honest, the rollout comes to an end by itself."""
        if not hasattr(self, "rollout"):
            return
        for box in self.boxes.values():
            box.reachable = True
        if self.rollout.state is State.PAUSED:
            self._resume()
        for _ in self._rounds():
            for box in self.boxes.values():
                box.obey(self.assigned[box.name], self.generations[box.name])
                box.step("")
                box.heard.extend(box.said[-1:])
            self.hub_looks()
            if self.rollout.state is State.PAUSED:
                self._resume()
        assert self.rollout.state in FINAL
        self._check_end()

    def _check_end(self) -> None:
        """The retained order also reaches a box that came back after the end. One that had no earlier version and
        committed while nobody heard it keeps what it has: something always serves."""
        for box in self.boxes.values():
            box.obey(self.assigned[box.name], self.generations[box.name])
        for member in self.rollout.members:
            box = self.boxes.get(member.device)
            if box is not None and member.back == "returned":
                assert box.serves == self.first_good[member.device]

    # --- the simulation ---

    def _rounds(self) -> Iterator[int]:
        for number in range(200):
            if self.rollout.state in FINAL:
                return
            self.now += timedelta(seconds=600)
            yield number

    def _resume(self) -> None:
        answer = commands.resume(self.rollout, "ann", self.now)
        assert not isinstance(answer, Refused)
        self.rollout = answer[0]

    def _box(self, pick: int) -> Box | None:
        return self.boxes.get(f"d-{pick}")

    def _seen(self) -> dict[str, DeviceFact]:
        seen = {}
        for name, box in self.boxes.items():
            order = self.assigned[name]
            seen[name] = DeviceFact(
                id=name,
                site=name,
                online=box.reachable,
                running=box.serves,
                assigned=order.release if order else self.first_good[name],
                generation=box.generation,
                desired=self.generations[name],
                report=box.heard[-1] if box.heard else None,
            )
        return seen

    def _carry_out(self, orders: tuple[Order, ...]) -> None:
        for order in orders:
            if isinstance(order, Assign | Withdraw):
                self.assigned[order.device] = order if isinstance(order, Assign) else None
                self.generations[order.device] += 1
            if isinstance(order, Assign) and order.action == "install":
                self.installs.append(order.device)
            if isinstance(order, Quarantine):
                self.quarantined = True

    def _check(self, before: Rollout, decision: Decision) -> None:
        after = decision.rollout
        for old, new in zip(before.members, after.members, strict=True):
            assert RANK.index(new.outcome) >= RANK.index(old.outcome), "an outcome never moves back"
        again = decide(after, self._seen(), self.now)
        assert not [o for o in again.orders if isinstance(o, Assign)], "the same sight again orders nothing"
        limit = max(after.plan.gate.max_failures, before.accepted_failures)
        if before.state in {State.RUNNING, State.PAUSED} and len(failures(after)) > limit:
            self.stopped = True
            assert not [o for o in decision.orders if isinstance(o, Assign) and o.action == "install"]


FleetHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestFleetHistories = FleetHistory.TestCase
