"""By when a probation ends at the latest, against the strategies as they are really gone through."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from landreeve.wire.messages import Probation
from landreeve.wire.strategy import Strategy
from landreeve_agent.store.stamps import moment, stamp
from landreeve_agent.update.directing import Role, is_last, stage_of
from landreeve_agent.update.latest import latest_end
from landreeve_agent.update.probation import Pass, Wait
from landreeve_agent.update.standing import Installed, Order, Phase, State
from landreeve_agent.update.stepping import Progress, Step, conclude

BEGAN = datetime(2026, 11, 29, 9, tzinfo=UTC)
GOOD = Installed("a" * 64, "v1", "{}")
MOST_S = 100


def on_probation(strategy: Strategy, *, first: bool = False, max_s: float = MOST_S) -> State:
    probation = Probation(min_rows=20, min_labelled=0, max_s=max_s)
    order = Order("delay", "b" * 64, "v2", 1, "r-000001", 1, 1, probation=probation, strategy=strategy)
    began = stamp(BEGAN)
    good = None if first else GOOD
    return State("delay", Phase.PROBATION, order=order, good=good, candidate=GOOD, since=began, step_since=began)


def slowest(state: State) -> int:
    """Seconds until the end when every evidence is undecided for as long as it can be, looked at each second."""
    strategy = state.order.strategy if state.order else Strategy()
    step_began = 0
    for second in range(2000):
        assert latest_end(state) >= stamp(BEGAN + timedelta(seconds=second)), "it lasts longer than was said"
        stage = stage_of(state)
        began = 0 if stage.role is Role.SHARES else step_began
        verdict = Pass("Enough.") if second - began >= MOST_S else Wait("Not yet.")
        progress = Progress(10_000, second - step_began, second)
        match conclude(stage, strategy, verdict, progress, last=is_last(state)):
            case Step():
                step_began = second
                state = replace(state, step=state.step + 1, step_since=stamp(BEGAN + timedelta(seconds=second)))
            case Wait():
                continue
            case _:
                return second
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("strategy", "slack_s"),
    [
        (Strategy(), 0),
        (Strategy(kind="shadow", min_s=30, min_rows=20), 0),
        (Strategy(kind="shadow", max_s=150), 0),
        (Strategy(kind="ab", key="user", shares=(0.5,), min_s=140), 0),
        (Strategy(kind="blue_green", min_s=40), 0),
        (Strategy(kind="blue_green", min_s=40, max_s=90), 0),
        (Strategy(kind="canary", shares=(0.1, 0.5), step_s=60), 100),
        (Strategy(kind="canary", shares=(0.1, 0.5, 1.0), step_s=20), 140),
    ],
    ids=lambda one: f"{one.kind}-{one.max_s:g}" if isinstance(one, Strategy) else "",
)
def test_no_probation_lasts_longer_than_is_said_and_hardly_shorter(strategy: Strategy, slack_s: int) -> None:
    state = on_probation(strategy)
    said = (moment(latest_end(state)) - BEGAN).total_seconds()
    assert 0 <= said - slowest(state) <= slack_s


def test_first_version_answers_at_once_and_ends_by_the_probation_alone() -> None:
    state = on_probation(Strategy(kind="shadow", min_rows=500, max_s=30), first=True)
    assert moment(latest_end(state)) == BEGAN + timedelta(seconds=MOST_S)


def test_nothing_is_said_where_the_traffic_decides_or_nothing_is_on_probation() -> None:
    assert not latest_end(on_probation(Strategy(kind="shadow", min_rows=21)))
    assert not latest_end(on_probation(Strategy(kind="canary", shares=(0.5,), step_rows=1)))
    assert latest_end(on_probation(Strategy(kind="canary", shares=(0.5,), step_rows=1, max_s=60)))
    committed = replace(on_probation(Strategy()), phase=Phase.COMMITTED)
    assert not latest_end(committed)
    assert not latest_end(replace(on_probation(Strategy()), order=None))
