"""Two rollouts of which one comes after the other, over any history of reports and silence: pure, a decision a step."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.wire.ordering import FEATURE
from landreeve_hub.rollout.live import busy
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.roster import Member, Outcome, Roster
from landreeve_hub.rollout.state import FINAL, Around, Assign, DeviceFact, First, Report, Rollout, State

T0 = datetime(2026, 11, 29, tzinfo=UTC)
SITES = [f"d-{n}" for n in range(5)]
OLD, ONE, TWO = "0" * 64, "1" * 64, "2" * 64
GATE = {"max_failures": 5, "max_silent": 5, "min_committed": 0, "deadline_s": 60}
STEP = st.tuples(
    st.sampled_from(SITES), st.sampled_from(["first", "second"]), st.sampled_from(["COMMITTED", "ROLLED_BACK", "late"])
)


def rollout(name: str, model: str, digest: str, after: list[str]) -> Rollout:
    plan = parse_plan({"gate": GATE, "after": after})
    members = Roster(Member(device, device, 0) for device in SITES)
    return Rollout(
        id=name,
        model=model,
        digest=digest,
        version="v2",
        plan=plan,
        members=members,
        state=State.RUNNING,
        wave_since=T0,
    )


class History:
    """Both rollouts and what the hub knows of each device, apart for each component."""

    def __init__(self, keepers: frozenset[str]) -> None:
        self.now = T0
        self.first, self.second = rollout("r-1", "agent", ONE, []), rollout("r-2", "delay", TWO, ["agent"])
        fact = {
            device: DeviceFact(
                device, device, running=OLD, assigned=OLD, features=(FEATURE,) if device in keepers else ()
            )
            for device in SITES
        }
        self.facts = {"first": dict(fact), "second": dict(fact)}
        self.ordered: list[tuple[str, Outcome]] = []

    def look(self) -> None:
        around = Around(busy=busy([self.second]))
        self.first = decide(self.first, self.facts["first"], self.now, around).rollout
        first = First("agent", "r-1", self.first.state, self.first.members)
        decision = decide(self.second, self.facts["second"], self.now, Around(busy=busy([self.first]), first=(first,)))
        self.second = decision.rollout
        given = [order.device for order in decision.orders if isinstance(order, Assign) and order.action == "install"]
        self.ordered += [(device, self.first.members[device].outcome) for device in given]

    def step(self, device: str, which: str, state: str) -> None:
        if state == "late":
            self.now += timedelta(seconds=61)
        else:
            whole = self.first if which == "first" else self.second
            if whole.members[device].outcome is Outcome.ORDERED:
                report = Report(whole.id, 2, whole.digest, state)
                self.facts[which][device] = replace(self.facts[which][device], report=report)
        self.look()


@given(st.frozensets(st.sampled_from(SITES)), st.lists(STEP, max_size=40))
@settings(max_examples=80, deadline=None)
def test_nobody_is_ordered_the_second_before_the_first_ended_there_and_both_come_to_an_end(
    keepers: frozenset[str], steps: list[tuple[str, str, str]]
) -> None:
    history = History(keepers)
    history.look()
    for step in steps:
        history.step(*step)
    for _ in range(10):  # then everyone is silent: nothing waits for ever
        history.step(SITES[0], "first", "late")
    for device, outcome in history.ordered:
        assert outcome is Outcome.COMMITTED or (outcome is Outcome.SILENT and device in keepers)
    assert len({device for device, _ in history.ordered}) == len(history.ordered)
    assert history.first.state in FINAL
    assert history.second.state in FINAL
    left = {m.device for m in history.second.members.of(Outcome.EXCLUDED)}
    assert left | {device for device, _ in history.ordered} == set(SITES)
