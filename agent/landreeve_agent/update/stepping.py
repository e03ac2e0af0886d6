"""Whether a stage of a strategy has shown enough for the next. Pure.

The evidence is judged by `landreeve_agent.update.probation` in every stage; here only time, rows and order are added,
so a fault ends any stage at once and nothing is committed before the last one.
"""

from dataclasses import dataclass

from landreeve.wire.strategy import Strategy

from landreeve_agent.update.directing import Role, Stage
from landreeve_agent.update.probation import Fail, Pass, Wait


@dataclass(frozen=True, slots=True)
class Step:
    """The next stage may begin."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows the candidate answered in this stage (as a shadow: was compared on), seconds of it, and seconds in all."""

    rows: int
    stage_s: float
    whole_s: float


def conclude(
    stage: Stage, strategy: Strategy, verdict: Pass | Fail | Wait, progress: Progress, *, last: bool
) -> Pass | Fail | Wait | Step:
    """What follows from the verdict on the evidence in this stage.

    >>> conclude(Stage(Role.STANDS_BY), Strategy(), Wait(""), Progress(0, 5, 5), last=False)
    Step(sentence='It stood by, loaded and warm, for 5 s.')
    """
    if isinstance(verdict, Fail):
        return verdict
    done = _done(stage, strategy, verdict, progress, last=last)
    if done is None and 0 < strategy.max_s <= progress.whole_s:
        return Fail("not_proven", f"The {strategy.kind} did not come to its end in {strategy.max_s / 3600:.1f} h.")
    return done or Wait(_doing(stage, verdict) + _still(stage, strategy, verdict, progress, last=last))


def _done(
    stage: Stage, strategy: Strategy, verdict: Pass | Wait, progress: Progress, *, last: bool
) -> Pass | Step | None:
    if last:
        enough = progress.rows >= strategy.min_rows and progress.whole_s >= strategy.min_s
        return verdict if isinstance(verdict, Pass) and enough and _stepped(strategy, progress) else None
    if stage.role is Role.STANDS_BY:
        text = f"It stood by, loaded and warm, for {progress.stage_s:.0f} s."
        return Step(text) if progress.stage_s >= strategy.min_s else None
    if stage.role is Role.LISTENS:
        enough = progress.rows >= strategy.min_rows and progress.stage_s >= strategy.min_s
        return Step(verdict.sentence) if isinstance(verdict, Pass) and enough else None
    text = f"It answered {stage.share:.0%} of the requests, {progress.rows} rows, without a fault."
    return Step(text) if _stepped(strategy, progress) else None


def _stepped(strategy: Strategy, progress: Progress) -> bool:
    return progress.stage_s >= strategy.step_s and progress.rows >= strategy.step_rows


def _still(stage: Stage, strategy: Strategy, verdict: Pass | Wait, progress: Progress, *, last: bool) -> str:
    """What the strategy asks for when the evidence is enough, as a sentence after another one; often empty."""
    if isinstance(verdict, Wait) or stage.role is Role.STANDS_BY:
        return ""
    whole = last or stage.role is Role.LISTENS  # steps before the last one are bounded by themselves alone
    passed_s = progress.whole_s if last else progress.stage_s
    rows = max(strategy.step_rows, strategy.min_rows if whole else 0) - progress.rows
    seconds = max(strategy.step_s - progress.stage_s, strategy.min_s - passed_s if whole else 0.0)
    left = [f"{seconds:.0f} s"] if seconds > 0 else []
    left += [f"{rows} rows"] if rows > 0 else []
    return f" It goes on for {' and '.join(left)} at least." if left else ""


def _doing(stage: Stage, verdict: Pass | Wait) -> str:
    match stage.role:
        case Role.SHARES:
            return f"At {stage.share:.0%} of the requests. {verdict.sentence}"
        case Role.LISTENS:
            return f"Listening. {verdict.sentence}"
        case Role.STANDS_BY:
            return "Loaded and warm, standing by."
        case Role.ANSWERS:
            return verdict.sentence
