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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.gates import failures
from landreeve_hub.rollout.live import busy, earlier
from landreeve_hub.rollout.machine import decide, uncovered
from landreeve_hub.rollout.observing import in_flight
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.resolve import resolve
from landreeve_hub.rollout.roster import Member, Outcome, Roster
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
from landreeve_hub.rollout.waiting import Waiting

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


def resumed(rollout: Rollout) -> Rollout:
    """The rollout as a hub finds it that was killed: from what is stored of it."""
    head = msgspec.json.decode(msgspec.json.encode({n: getattr(rollout, n) for n in Head.__struct_fields__}), type=Head)
    members = msgspec.json.decode(msgspec.json.encode(list(rollout.members.values())), type=list[Member])
    return Rollout(**{name: getattr(head, name) for name in Head.__struct_fields__}, members=Roster(members))


def covers(waiting: tuple[Waiting, ...], site: str) -> bool:
    """Whether what is waited for speaks of the site, or of the whole rollout."""
    named = [getattr(one, "sites", None) for one in waiting]
    return any(sites is None or site in sites for sites in named)


class FleetHistory(RuleBasedStateMachine):
    """A random history of one rollout, and of the return it may begin."""

    @initialize(
        size=st.integers(1, 6),
        first=st.integers(1, 3),
        max_in_flight=st.integers(1, 3),
        max_failures=st.integers(0, 2),
        has_prior=st.booleans(),
        offline=st.sampled_from(("order", "wait", "exclude")),
        paired=st.booleans(),
        jitter_s=st.sampled_from((0, 300)),
        on_failure=st.sampled_from(("rollback", "pause", "abort")),
        approved=st.booleans(),
    )
    def begin(  # noqa: PLR0917 - what a history may begin with
        self,
        size: int,
        first: int,
        max_in_flight: int,
        max_failures: int,
        has_prior: bool,
        offline: str,
        paired: bool,
        jitter_s: int,
        on_failure: str,
        approved: bool,
    ) -> None:
        self.now = START
        self.boxes = {f"d-{n}": Box(f"d-{n}", f"{n:064x}" if has_prior else "") for n in range(size)}
        for box in self.boxes.values():
            box.good = box.serves
        self.first_good = {name: box.good for name, box in self.boxes.items()}
        sites = {name: name for name in self.boxes}
        gate = {"max_in_flight": max_in_flight, "max_failures": max_failures, "max_silent": 1, "deadline_s": 3600}
        gate["on_failure"] = on_failure
        more = {"offline": {"policy": offline, "after_s": 600}, "jitter_s": jitter_s}
        plan = parse_plan({"waves": [{"devices": list(sites)[:first]}, {"rest": True}], "gate": gate, **more})
        members = [
            Member(d, d, n, place=f"pair-{int(d[2:]) // 2}" if paired else "")
            for n, wave in enumerate(resolve(plan, sites))
            for d in wave
        ]
        rollout = Rollout(
            id="r-000001", model="m", digest=NEW, version="v2", plan=plan,
            state=State.RUNNING if approved else State.AWAITING_APPROVAL, wave_since=START if approved else None,
            members=Roster(members),
        )  # fmt: skip
        self.rollouts = {rollout.id: rollout}
        self.assigned: dict[str, Assign | None] = dict.fromkeys(self.boxes)
        self.generations = dict.fromkeys(self.boxes, 0)
        self.installs: list[tuple[str, str]] = []
        self.quarantined = self.stopped = False

    @property
    def rollout(self) -> Rollout:
        return self.rollouts["r-000001"]

    # --- what may happen ---

    @rule()
    def hub_looks(self) -> None:
        for name in sorted(self.rollouts):
            before = self.rollouts[name]
            decision = decide(before, self._seen(), self.now, self._around(before))
            self._carry_out(decision.orders)
            self._check(before, decision)
            self.rollouts[name] = decision.rollout

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
        self.rollouts = {name: resumed(rollout) for name, rollout in self.rollouts.items()}

    @rule(pick=st.integers(0, 5), fails=st.sampled_from(("", "", "", "", *FAILURES)))
    def box_works(self, pick: int, fails: str) -> None:
        box = self._box(pick)
        if box is None:
            return
        box.obey(self.assigned[box.name], self.generations[box.name])
        box.step(fails)

    @rule(pick=st.integers(0, 5))
    def box_fails_and_says_so(self, pick: int) -> None:
        box = self._box(pick)
        if box is None or not box.reachable:
            return
        box.obey(self.assigned[box.name], self.generations[box.name])
        box.step("ROLLED_BACK")
        box.heard.extend(box.said[-1:])

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

    @rule(
        verb=st.sampled_from(("approve", "pause", "next", "abort", "rollback", "retry", "resume")),
        key=st.integers(0, 9),
    )
    def person_commands(self, verb: str, key: int) -> None:
        asked = Asked("ann", self.now, str(key))
        answer = commands.obey(self.rollout, verb, asked)
        if isinstance(answer, Refused):
            return
        self.rollouts["r-000001"], orders = answer
        self._carry_out(orders)
        again = commands.obey(self.rollout, verb, asked)
        assert again == (self.rollout, ()), "the same command again does nothing again"

    # --- what must hold ---

    @invariant()
    def never_more_than_max_in_flight(self) -> None:
        assert len(in_flight(self.rollout)) <= self.rollout.plan.gate.max_in_flight

    @invariant()
    def never_two_of_one_site_in_flight(self) -> None:
        places = [member.where for member in in_flight(self.rollout)]
        assert len(places) == len(set(places))

    @invariant()
    def nobody_outside_the_waves_reached_is_ordered(self) -> None:
        ordered = [m for m in self.rollout.members.values() if m.ordered_at is not None]
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

    @invariant()
    def counts_of_the_roster_are_those_of_its_members(self) -> None:
        for rollout in self.rollouts.values():
            fresh = Roster(rollout.members.values())
            for outcome in Outcome:
                assert set(rollout.members.of(outcome)) == set(fresh.of(outcome))
            assert set(rollout.members.flying) == {m.device for m in fresh.values() if m.flying}
            assert rollout.members.heard == fresh.heard or set(fresh.heard) <= set(rollout.members.heard)

    def teardown(self) -> None:
        """However it went: once every box is reachable and honest, the rollout comes to an end by itself."""
        if not hasattr(self, "rollouts"):
            return
        for box in self.boxes.values():
            box.reachable = True
        for _ in self._rounds():
            if self.rollout.state is State.PAUSED:
                self._resume()
            if self.rollout.state is State.AWAITING_APPROVAL:
                self.person_commands("approve", 99)
            for box in self.boxes.values():
                box.obey(self.assigned[box.name], self.generations[box.name])
                box.step("")
                box.heard.extend(box.said[-1:])
            self.hub_looks()
        assert all(rollout.state in FINAL for rollout in self.rollouts.values())
        self._check_end()

    def _check_end(self) -> None:
        """The retained order also reaches a box that came back after the end. One that had no earlier version and
        committed while nobody heard it keeps what it has: something always serves."""
        for box in self.boxes.values():
            box.obey(self.assigned[box.name], self.generations[box.name])
        for member in self.rollout.members.values():
            box = self.boxes.get(member.device)
            if box is not None and member.back == "returned":
                assert box.serves == self.first_good[member.device]

    # --- the simulation ---

    def _rounds(self) -> Iterator[int]:
        for number in range(200):
            if all(rollout.state in FINAL for rollout in self.rollouts.values()):
                return
            self.now += timedelta(seconds=600)
            yield number

    def _resume(self) -> None:
        answer = commands.resume(self.rollout, Asked("ann", self.now))
        assert not isinstance(answer, Refused)
        self.rollouts["r-000001"] = answer[0]

    def _box(self, pick: int) -> Box | None:
        return self.boxes.get(f"d-{pick}")

    def _around(self, rollout: Rollout) -> Around:
        others = [other for other in self.rollouts.values() if other.id != rollout.id]
        return Around(busy(others), earlier(rollout, others), self.rollouts.get(rollout.back_id))

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
                self.installs.append((order.device, order.rollout))
            if isinstance(order, Quarantine):
                self.quarantined = True
            if isinstance(order, Begin):
                self.rollouts.setdefault(order.rollout.id, order.rollout)

    def _check(self, before: Rollout, decision: Decision) -> None:
        after = decision.rollout
        for device, old in before.members.items():
            new = after.members[device]
            assert RANK.index(new.outcome) >= RANK.index(old.outcome), "an outcome never moves back"
        self._check_waiting(decision)
        again = decide(after, self._seen(), self.now, self._around(after))
        assert not [o for o in again.orders if isinstance(o, Assign)], "the same sight again orders nothing"
        self._check_wake(decision)
        if before.kind == "return":
            return
        limit = max(after.plan.gate.max_failures, before.accepted_failures)
        if before.state in {State.RUNNING, State.PAUSED} and len(failures(after)) > limit:
            self.stopped = after.plan.gate.on_failure == "rollback"
            assert not [o for o in decision.orders if isinstance(o, Assign) and o.action == "install"]

    def _check_waiting(self, decision: Decision) -> None:
        """A rollout under way never stands without a word, and each device that is due is spoken of."""
        after = decision.rollout
        if after.state not in FINAL:
            assert decision.waiting
        if after.state is State.RUNNING:
            slots = any(type(one).__name__ == "ForSlot" for one in decision.waiting)
            assert all(slots or covers(decision.waiting, m.site) for m in uncovered(after))

    def _check_wake(self, decision: Decision) -> None:
        """Until the moment a decision names, time alone changes nothing."""
        after = decision.rollout
        late = decision.wake - timedelta(seconds=1) if decision.wake is not None else self.now + timedelta(days=30)
        if late > self.now:
            then = decide(after, self._seen(), late, self._around(after), ())
            assert then.rollout == after
            assert then.orders == ()


FleetHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestFleetHistories = FleetHistory.TestCase
