"""Which plan won on boxes of one class: most of them agree. Pure.

The answer is a hint and no more: every box gates and measures it again before it believes it.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from landreeve.wire.plans import MOST_HINTS, RunPlan, fault_of

_NO_GAIN = 1.0


@dataclass(frozen=True, slots=True)
class Vote:
    """What one box says: the plan that won there, and its time by the default plan's (None = not told)."""

    plan: RunPlan
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A plan among the boxes of a class: how many chose it, and the median of their ratios."""

    plan: RunPlan
    boxes: int
    ratio: float


def standings(votes: Iterable[Vote]) -> list[Standing]:
    """The plans by how many boxes agree on them; among equals the faster one first.

    >>> fast, slow = (RunPlan(backend=name, device="cpu", precision="fp32") for name in ("openvino", "onnxruntime"))
    >>> [s.plan.backend for s in standings([Vote(slow, 1.0), Vote(fast, 0.5)])]
    ['openvino', 'onnxruntime']
    """
    chosen: dict[RunPlan, list[float]] = defaultdict(list)
    for vote in votes:
        chosen[vote.plan].append(_NO_GAIN if vote.ratio is None else vote.ratio)
    found = (Standing(plan, len(ratios), median(ratios)) for plan, ratios in chosen.items())
    return sorted(found, key=lambda s: (-s.boxes, s.ratio, s.plan.name))


def hints(votes: Iterable[Vote]) -> tuple[RunPlan, ...]:
    """The plans to try first on a box of the class, best first; none that nobody could mean."""
    sane = [vote for vote in votes if not fault_of(vote.plan)]
    return tuple(standing.plan for standing in standings(sane)[:MOST_HINTS])
