"""The rollout machine and the agents' own update machine together, under seeded faults.

`make test-fleet` plays thousands of histories (``FLEET_SEEDS``), and a thousand boxes in some of them.
"""

import os

import pytest

from tests.fleet.bugs import CAUGHT_BY, SEEN_AT
from tests.fleet.hub import Case
from tests.fleet.invariants import InvariantBrokenError
from tests.fleet.simulator import play

SEEDS = int(os.environ.get("FLEET_SEEDS", "8"))
FAILS = (0.0, 0.02, 0.1)
MUTE = (0.0, 0.03)


def case(seed: int, size: int = 30, bug: str = "") -> Case:
    return Case(seed, size, FAILS[seed % 3], MUTE[seed % 2], bug)


def test_histories_of_thirty_boxes_break_no_invariant() -> None:
    for seed in range(SEEDS):
        play(case(seed))


def test_history_of_two_hundred_boxes_breaks_no_invariant() -> None:
    assert play(case(9, 200)).orders > 300


@pytest.mark.parametrize("bug", sorted(CAUGHT_BY))
def test_planted_bug_is_seen_by_its_invariant(bug: str) -> None:
    seen = set()
    for seed in (SEEN_AT.get(bug, 0), *range(80)):
        try:
            play(case(seed, bug=bug))
        except InvariantBrokenError as broken:
            seen.add(broken.name)
            if broken.name == CAUGHT_BY[bug]:
                return
    pytest.fail(f"{bug}: seen were only {seen}")


@pytest.mark.slow
def test_thousand_boxes_on_many_seeds() -> None:
    orders = [play(case(seed, 1000)).orders for seed in range(max(4, SEEDS // 100))]
    assert max(orders) > 900
