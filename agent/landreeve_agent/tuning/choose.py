"""The winner among measured plans. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from landreeve_agent.serving.control import Plan

# The gain below which two plans count as equal: rounds on a busy box differ by this much by themselves.
MARGIN = 0.05
MIN_JOIN_GAIN = 1.5


@dataclass(frozen=True, slots=True)
class Timed:
    """A plan that passed its gates. ``ratio`` is the median over rounds of its time by the default plan's in the
    same round; ``cpu_us`` is CPU time a run over all threads."""

    plan: Plan
    p50_us: float
    p95_us: float
    cpu_us: float
    ratio: float


def choose(timed: Sequence[Timed], wanted: str) -> Timed:
    """The plan to use: the fastest, among near equals the one that costs least CPU, never slower than the default.

    ``timed[0]`` is the default plan. A wanted device is preferred where a plan for it passed; where none did, the
    winner's plan carries the reason.
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
    best = min(pool, key=lambda t: t.ratio)
    near = [t for t in pool if t.ratio <= best.ratio * (1 + MARGIN)]
    winner = min(near, key=lambda t: t.cpu_us)
    if winner.ratio > 1 - MARGIN:
        winner = default
    return Timed(
        msgspec.structs.replace(winner.plan, reason=reason),
        winner.p50_us,
        winner.p95_us,
        winner.cpu_us,
        winner.ratio,
    )


def joined_rows(one_row_us: float, many_rows_us: float, rows: int) -> int:
    """How many waiting rows to join into a run: ``rows`` when that saves a third or more a row, else 1.

    >>> joined_rows(10.0, 40.0, 32), joined_rows(5000.0, 150000.0, 32)
    (32, 1)
    """
    return rows if one_row_us * rows >= many_rows_us * MIN_JOIN_GAIN else 1
