"""The rollout machine and the agents' own update machine together, under seeded faults.

`make test-fleet` plays thousands of histories (``FLEET_SEEDS``), and a thousand boxes in some of them.
"""

import os

import pytest

from tests.fleet.simulator import BUGS, Case, InvariantBrokenError, play

SEEDS = int(os.environ.get("FLEET_SEEDS", "20"))
FAILS = (0.0, 0.02, 0.1)
MUTE = (0.0, 0.03)

CAUGHT_BY = {
    "in_flight": "never more than max in flight",
    "site": "never two of one site",
    "waves": "nobody outside the waves reached",
    "threshold": "failures past the limit stop new orders",
    "prior": "each goes back to its own last good",
    "drag": "no device is dragged back without a person's word",
    "forget": "nobody is ordered twice",
    "quarantine": "a release that failed the fleet is quarantined",
    "wordless": "a rollout under way is never without a word",
    "sleep": "every rollout ends",
    "twice": "a document that did not change keeps its number",
    "deaf": "every failure is counted",
    "windows": "no order outside the site's window",
}


def case(seed: int, size: int = 30, bug: str = "") -> Case:
    return Case(seed, size, FAILS[seed % 3], MUTE[seed % 2], bug)


def test_histories_of_thirty_boxes_break_no_invariant() -> None:
    for seed in range(SEEDS):
        play(case(seed))


def test_history_of_a_thousand_boxes_breaks_no_invariant() -> None:
    simulation = play(case(3, 1000))
    assert simulation.orders > 900


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_seen_by_its_invariant(bug: str) -> None:
    seen = set()
    for seed in range(80):
        try:
            play(case(seed, bug=bug))
        except InvariantBrokenError as broken:
            seen.add(broken.name)
            if broken.name == CAUGHT_BY[bug]:
                return
    pytest.fail(f"{bug}: seen were only {seen}")


@pytest.mark.slow
def test_thousand_boxes_on_many_seeds() -> None:
    for seed in range(max(3, SEEDS // 100)):
        play(case(seed, 1000))
