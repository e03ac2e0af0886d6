"""What may follow the end of an update, and the end of a stage."""

from dataclasses import replace

from landreeve.wire.strategy import Strategy
from landreeve_agent.update.machine import (
    ATTEMPTS,
    Attempted,
    Effect,
    NextTaken,
    Ordered,
    RollbackAsked,
    Stepped,
    Unordered,
    decide,
    effect_of,
)
from landreeve_agent.update.standing import Phase, State

from tests.agent.test_update_machine import NOON, at, good, onwards, order


def test_what_a_person_on_the_site_cancelled_does_not_come_again_by_itself() -> None:
    refused = decide(at(Phase.DOWNLOADING), RollbackAsked("ann"))
    assert refused.phase is Phase.CANCELLED
    again = decide(refused, Ordered(order("b", 3)))
    assert (again.phase, effect_of(again)) == (Phase.CANCELLED, None)
    assert decide(refused, Ordered(order("b", 3, rollout="another"))).phase is Phase.RECEIVED
    withdrawn = decide(at(Phase.DOWNLOADING), Unordered(3))
    assert decide(withdrawn, Ordered(order("b", 4))).phase is Phase.RECEIVED


def test_order_that_comes_while_a_return_fails_is_taken_up_and_returns_where_the_return_led() -> None:
    """What could not be loaded again may be mended by another version; until then the good one is still aimed at."""
    failed = at(Phase.ROLLBACK_FAILED)
    assert failed.target == good("a")
    taken = decide(failed, Ordered(order("c", 3)))
    assert (taken.phase, taken.good, taken.queued) == (Phase.RECEIVED, good("a"), None)
    moved = replace(failed, good=good("d"))
    assert decide(moved, Ordered(order("c", 3))).good == good("a")
    waiting = replace(failed, queued=order("c", 3))
    assert effect_of(waiting) is Effect.TAKE_NEXT
    assert decide(waiting, NextTaken()).order == order("c", 3)


def test_each_stage_of_a_strategy_has_its_own_attempts() -> None:
    strategy = Strategy(kind="canary", shares=(0.1, 0.5))
    start = State("demo", generation=1, good=good("a"))
    state = onwards(decide(start, Ordered(order("b", 2, strategy=strategy))), Phase.PROBATION)
    for _ in range(ATTEMPTS[Phase.PROBATION]):
        state = decide(state, Attempted(2))
    stepped = decide(state, Stepped(2, NOON, "On."))
    assert (stepped.step, stepped.attempt) == (1, 0)
