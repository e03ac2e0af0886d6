"""Successive halving among plans that passed their gates, on paired rounds. Pure.

In each round every plan runs in turn, so a busy neighbour or a falling clock rate hits all alike; what counts is each
round's ratio to the default plan, and of these the median, with a bound that holds whatever their distribution.
Source: Jamieson & Talwalkar 2016, http://proceedings.mlr.press/v51/jamieson16.html.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STAGES = ((3, 6), (4, 3), (5, 3))  # rounds of a stage, and how many plans besides the default leave it at most
BEHIND = 1.25
_CONFIDENCE = 0.95


@dataclass(slots=True)
class Samples:
    """What a plan's rounds gave, in µs a row: the median of each, all runs, CPU time."""

    medians: list[float] = field(default_factory=list)
    all_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A plan's time by the default's: the median over rounds, and a value it exceeds in 5 of 100 cases at most."""

    median: float
    high: float


def ratio_of(mine: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio over paired rounds; ``high`` is infinite below five rounds.

    The bound is an order statistic, exact by the binomial distribution (David & Nagaraja 2003, section 7.1).

    >>> ratio_of([1, 2, 1, 1, 1], [2, 2, 2, 2, 2])
    Ratio(median=0.5, high=1.0)
    """
    ratios = sorted(one / other for one, other in zip(mine, base, strict=True))
    count = len(ratios)
    middle = (ratios[(count - 1) // 2] + ratios[count // 2]) / 2
    below = 0.0
    for rank, ratio in enumerate(ratios):
        below += math.comb(count, rank) / 2**count
        if below >= _CONFIDENCE:
            return Ratio(middle, ratio)
    return Ratio(middle, math.inf)


def fallen(samples: Mapping[str, Samples], default: str, most: int) -> dict[str, str]:
    """The plans that a stage drops, with the reason: too far behind the best, or not among the ``most`` best."""
    ratios = {name: ratio_of(s.medians, samples[default].medians).median for name, s in samples.items()}
    order = sorted((name for name in samples if name != default), key=lambda name: ratios[name])
    if not order:
        return {}
    best = min(ratios.values())
    dropped: dict[str, str] = {}
    for place, name in enumerate(order):
        if ratios[name] > best * BEHIND:
            dropped[name] = f"{ratios[name] / best:.2f} times the time of the best"
        elif place >= most:
            dropped[name] = f"{ratios[name] / best:.2f} times the time of the best; only {most} go on"
    return dropped
