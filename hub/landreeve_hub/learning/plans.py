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
    """What one box says: the plan that won there, its time by the default plan's (None = not told), and whether it had
    been hinted that plan."""

    plan: RunPlan
    ratio: float | None = None
    hinted: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """A plan among the boxes of a class: how many chose it, how many of them unasked, the median of their ratios."""

    plan: RunPlan
    boxes: int
    ratio: float
    found: int = 0


def standings(votes: Iterable[Vote]) -> list[Standing]:
    """The plans by how many boxes agree on them; among equals the faster one first.

    A box that was hinted a plan and took it mostly did not look further. Its voice counts only after those that found
    the plan by themselves, or the first box of a class would decide for all that come after.

    >>> fast, slow = (RunPlan(backend=name, device="cpu", precision="fp32") for name in ("openvino", "onnxruntime"))
    >>> [s.plan.backend for s in standings([Vote(slow, 1.0), Vote(fast, 0.5)])]
    ['openvino', 'onnxruntime']
    """
    chosen: dict[RunPlan, list[Vote]] = defaultdict(list)
    for vote in votes:
        chosen[vote.plan].append(vote)
    told = (_standing(plan, own) for plan, own in chosen.items())
    return sorted(told, key=lambda s: (-s.found, -s.boxes, s.ratio, s.plan.name))


def _standing(plan: RunPlan, votes: list[Vote]) -> Standing:
    ratio = median(_NO_GAIN if vote.ratio is None else vote.ratio for vote in votes)
    return Standing(plan, len(votes), ratio, sum(not vote.hinted for vote in votes))


def hints(votes: Iterable[Vote]) -> tuple[RunPlan, ...]:
    """The plans to try first on a box of the class, best first; none that nobody could mean."""
    sane = [vote for vote in votes if not fault_of(vote.plan)]
    return tuple(standing.plan for standing in standings(sane)[:MOST_HINTS])
