"""When a stage of a strategy gives way to the next, and when the last one ends in a commit."""

import pytest
from landreeve.wire.strategy import Strategy
from landreeve_agent.update.directing import Role, Stage
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.stepping import Progress, Step, conclude

CANARY = Strategy(kind="canary", shares=(0.1, 0.5), step_s=600, step_rows=200, max_s=7200)
TENTH = Stage(Role.SHARES, 0.1)


def verdict(text: str) -> Pass | Fail | Wait:
    return {"pass": Pass("Fine."), "fail": Fail("log_loss", "Worse."), "wait": Wait("Not yet.")}[text]


@pytest.mark.parametrize(
    ("rows", "seconds", "kind"),
    [(200, 600, Step), (199, 600, Wait), (200, 599, Wait)],
    ids=["enough", "too few rows", "too early"],
)
def test_canary_grows_after_time_and_rows_without_a_fault(rows: int, seconds: float, kind: type) -> None:
    assert isinstance(conclude(TENTH, CANARY, verdict("wait"), Progress(rows, seconds, seconds), last=False), kind)


def test_fault_ends_any_stage_at_once() -> None:
    for role in Role:
        found = conclude(Stage(role, 0.1), CANARY, verdict("fail"), Progress(0, 0, 0), last=False)
        assert found == Fail("log_loss", "Worse.")


def test_last_stage_ends_by_the_evidence_and_not_by_the_clock() -> None:
    half = Stage(Role.SHARES, 0.5)
    assert isinstance(conclude(half, CANARY, verdict("wait"), Progress(999, 999, 999), last=True), Wait)
    assert isinstance(conclude(half, CANARY, verdict("pass"), Progress(999, 999, 999), last=True), Pass)
    assert isinstance(conclude(half, CANARY, verdict("pass"), Progress(999, 10, 999), last=True), Wait)


def test_strategy_that_does_not_end_in_its_time_is_not_proven() -> None:
    found = conclude(TENTH, CANARY, verdict("wait"), Progress(3, 7200, 7200), last=False)
    assert isinstance(found, Fail)
    assert found.cause == "not_proven"


def test_listening_ends_only_when_the_comparison_has_passed() -> None:
    shadow = Strategy(kind="shadow", min_s=60, min_rows=100)
    listens = Stage(Role.LISTENS)
    assert isinstance(conclude(listens, shadow, verdict("wait"), Progress(900, 900, 900), last=False), Wait)
    assert isinstance(conclude(listens, shadow, verdict("pass"), Progress(99, 900, 900), last=False), Wait)
    assert isinstance(conclude(listens, shadow, verdict("pass"), Progress(100, 60, 60), last=False), Step)


def test_standing_by_ends_by_time_alone() -> None:
    green = Strategy(kind="blue_green", min_s=60)
    assert isinstance(conclude(Stage(Role.STANDS_BY), green, verdict("wait"), Progress(0, 59, 59), last=False), Wait)
    assert isinstance(conclude(Stage(Role.STANDS_BY), green, verdict("wait"), Progress(0, 60, 60), last=False), Step)


@pytest.mark.parametrize(
    ("rows", "seconds", "kind"), [(100, 60, Pass), (99, 60, Wait), (100, 59, Wait)], ids=["enough", "few rows", "early"]
)
def test_last_stage_also_waits_for_the_rows_and_the_time_of_the_strategy(rows: int, seconds: float, kind: type) -> None:
    strategy = Strategy(kind="direct", min_s=60, min_rows=100)
    found = conclude(Stage(Role.ANSWERS, 1.0), strategy, verdict("pass"), Progress(rows, seconds, seconds), last=True)
    assert isinstance(found, kind)


def test_listening_also_waits_for_the_time_of_the_strategy() -> None:
    shadow = Strategy(kind="shadow", min_s=60, min_rows=100)
    found = conclude(Stage(Role.LISTENS), shadow, verdict("pass"), Progress(900, 59, 900), last=False)
    assert isinstance(found, Wait)


@pytest.mark.parametrize(
    ("strategy", "role", "last", "progress", "said"),
    [
        (Strategy(kind="ab", min_s=60, min_rows=100), Role.SHARES, True, Progress(97, 50, 50), "10 s and 3 rows"),
        (Strategy(kind="shadow", min_s=60), Role.LISTENS, False, Progress(97, 50, 50), "10 s"),
        (CANARY, Role.SHARES, False, Progress(150, 700, 700), "50 rows"),
    ],
    ids=["ab", "shadow", "canary"],
)
def test_what_is_asked_for_when_the_evidence_is_enough_is_said(
    strategy: Strategy, role: Role, last: bool, progress: Progress, said: str
) -> None:
    found = conclude(Stage(role, 0.5), strategy, verdict("pass"), progress, last=last)
    assert isinstance(found, Wait)
    assert found.sentence.endswith(f"Fine. It goes on for {said} at least.")
