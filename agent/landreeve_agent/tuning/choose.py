"""The winner among measured plans. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from landreeve_agent.serving.control import Plan

# The gain below which a plan is not worth leaving the default for: a box that is busy in another way could undo it.
MARGIN = 0.05
# Plans this near to the fastest count as equal: then CPU time decides, which is what a shared box is short of.
TIE = 0.03
MIN_JOIN_GAIN = 1.5


@dataclass(frozen=True, slots=True)
class Timed:
    """A plan that passed its gates. ``ratio`` is the median over rounds of its time by the default plan's in the
    same round, ``high`` its upper bound at 95 %; ``cpu_us`` is CPU time a row over all threads."""

    plan: Plan
    p50_us: float
    p95_us: float
    cpu_us: float
    ratio: float
    high: float = 0.0


def choose(timed: Sequence[Timed], wanted: str) -> Timed:
    """The plan to use: the fastest, among near equals the one that costs least CPU, never slower than the default.

    ``timed[0]`` is the default plan; another must beat it by `MARGIN`, and certainly. A wanted device is preferred
    where a plan for it passed; where none did, the winner's plan carries the reason.
    """
    default = timed[0]
    pool: Sequence[Timed] = timed
    reason = ""
    if wanted != "auto":
        pool = [t for t in timed if t.plan.device == wanted]
        if not pool:
            pool, reason = timed, f"no plan for {wanted.upper()} works on this box"
        elif wanted != "cpu":
            return min(pool, key=lambda t: t.ratio)
    certain = [t for t in pool if t.ratio <= 1 - MARGIN and t.high < 1] or [default]
    best = min(certain, key=lambda t: t.ratio)
    near = [t for t in certain if t.ratio <= best.ratio * (1 + TIE)]
    winner = min(near, key=lambda t: t.cpu_us)
    plan = msgspec.structs.replace(winner.plan, reason=reason)
    return Timed(plan, winner.p50_us, winner.p95_us, winner.cpu_us, winner.ratio, winner.high)


def joined_rows(one_row_us: float, many_rows_us: float, rows: int) -> int:
    """How many waiting rows to join into a run: ``rows`` when that saves a third or more a row, else 1.

    >>> joined_rows(10.0, 40.0, 32), joined_rows(5000.0, 150000.0, 32)
    (32, 1)
    """
    return rows if one_row_us * rows >= many_rows_us * MIN_JOIN_GAIN else 1
