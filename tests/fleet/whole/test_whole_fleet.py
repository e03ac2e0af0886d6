"""The whole product in one process under seeded faults: see `tests.fleet.whole.world`.

`make test` plays a few histories; `make test-fleet` hundreds, every planted mistake, and what of the machines they
pass.
"""

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from landreeve.wire.strategy import Strategy
from landreeve_agent.update.machine import Attempted, Event, NextTaken, Ordered, RollbackAsked, Stepped, Unordered
from landreeve_agent.update.standing import TERMINAL, Phase

from tests.agent.test_update_machine import LEGAL, Histories, order, outcome
from tests.fleet.invariants import InvariantBrokenError
from tests.fleet.test_rollout_histories import FleetHistory
from tests.fleet.whole.coverage import BOX, Visited, watched
from tests.fleet.whole.mistakes import MISTAKES
from tests.fleet.whole.story import Case
from tests.fleet.whole.world import play

SEEDS = int(os.environ.get("FLEET_WHOLE_SEEDS", "60"))
FEW = (Case(0, size=3), Case(1, size=3))
MANY = settings(
    max_examples=500, stateful_step_count=40, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
BY_HUB = frozenset({"Ordered", "Unordered", "RollbackAsked", "NextTaken", "Failed"})
"""Events that may come in any phase, seldom in each."""
INVARIANTS = (
    Histories.only_verified_artifacts_ever_serve,
    Histories.something_always_serves_once_something_was_good,
    Histories.what_serves_is_pinned,
)


def test_few_histories_of_a_whole_fleet_break_no_invariant() -> None:
    for case in FEW:
        assert play(case).orders > 5


def test_a_history_as_short_can_break_a_rule() -> None:
    with pytest.raises(InvariantBrokenError) as broken:
        play(Case(0, size=4, bug="side_by_side"))
    assert broken.value.name == MISTAKES["side_by_side"].rule


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_histories_break_no_invariant() -> None:
    """What of both machines they and the two Hypothesis machines pass is printed."""
    visited = Visited()
    with watched(visited):
        for seed in range(SEEDS):
            play(Case(seed))
        for machine in (Histories, FleetHistory):
            run_state_machine_as_test(machine, settings=MANY)
    print(visited.table())
    assert all(pair in visited.box for pair in BOX if pair[1] not in BY_HUB), visited.table()


@pytest.mark.parametrize("phase", list(Phase))
def test_pairs_of_the_agents_machine_that_change_something_are_those_of_the_table_and_keep_its_invariants(
    phase: Phase,
) -> None:
    """Every pair is visited, and none is left out of the table."""
    visited = Visited()
    with watched(visited):
        for event in events():
            history = Histories()
            shadow = isinstance(event, Stepped)
            history.begin(has_good=True, phase=phase, strategy=Strategy(kind="shadow") if shadow else Strategy())
            if isinstance(event, NextTaken) and phase in TERMINAL:
                history.state = replace(history.state, queued=order("c", 9))
            visited.box.clear()
            history.feed(event)
            changed = set(visited.box) & {(str(phase), type(event).__name__)}
            wanted = (str(phase), type(event).__name__) in BOX or _is_queue_that_cannot_be(event, phase)
            assert bool(changed) == wanted, (phase, event)
            for rule in INVARIANTS:
                rule(history)


def _is_queue_that_cannot_be(event: object, phase: Phase) -> bool:
    """The machine takes up what waits at any end; nothing can wait at these."""
    return isinstance(event, NextTaken) and phase in {Phase.IDLE, Phase.COMMITTED, Phase.REJECTED}


def events() -> list[Event]:
    """One of each kind, for the order that is under way."""
    outcomes = [outcome(kind, 2) for kind in (*LEGAL, Attempted)]
    return [Ordered(order("c", 9)), Unordered(9), RollbackAsked("ann"), NextTaken(), *outcomes]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bug", sorted(MISTAKES))
def test_planted_mistake_is_seen_by_its_rule(bug: str) -> None:
    seen = set()
    for seed in (MISTAKES[bug].seed, *range(40)):
        try:
            play(Case(seed, bug=bug))
        except InvariantBrokenError as broken:
            seen.add(broken.name)
            if broken.name == MISTAKES[bug].rule:
                return
    pytest.fail(f"{bug}: seen were only {seen}")
