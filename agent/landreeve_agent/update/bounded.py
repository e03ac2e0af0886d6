"""Whether the mean of bounded values is below a limit, at every look and from the first row on. Pure.

A gambler who does not believe it stakes a fixed part of his fortune on every value being low: while the mean given the
past is at or above the limit his fortune is no more than fair, so it ever exceeds 1 / alpha with probability at most
alpha, whatever the values are spread like (Ville 1939; Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", Journal of the Royal Statistical Society B 86 (2024), section 4). Several such gamblers share
one purse. Their fortunes do not depend on the order of the values, so counts are enough.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

BINS = 200
_STAKES = (0.06, 0.12, 0.25, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Spread:
    """How many values from -1 to 1 there were, by the upper edge of 200 bins (so that no value counts as lower than it
    was): ``counts[k]`` at ``-1 + (k + 1) / 100``."""

    counts: tuple[int, ...] = (0,) * BINS

    @property
    def n(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Within half a bin; 0 without any value."""
        n = self.n
        return sum(count * (edge - 1 / BINS) for count, edge in zip(self.counts, _EDGES, strict=True)) / n if n else 0.0


_EDGES = tuple(-1.0 + (k + 1) * 2.0 / BINS for k in range(BINS))


NO_VALUES = Spread()


def spread(values: Iterable[float]) -> Spread:
    """Counts of values from -1 to 1.

    >>> spread([-0.8, -0.8, 0.1]).n
    3
    """
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, max(0, math.ceil((value + 1.0) * BINS / 2.0 - 1e-9) - 1))] += 1
    return Spread(tuple(counts))


def evidence_below(seen: Spread, limit: float) -> float:
    """Evidence (an e-value) that the mean is below ``limit`` (-1 to 1): 20 or more refutes "at or above" at alpha 0.05.

    >>> evidence_below(spread([-0.36] * 2), -0.3) < 1.2, evidence_below(spread([-0.9] * 20), -0.3) > 20
    (True, True)
    """
    most = 1.0 / (1.0 - limit) if limit < 1.0 else 1.0
    purses = []
    for stake in _STAKES:
        part = stake * most
        purses.append(sum(c * math.log1p(-part * (e - limit)) for c, e in zip(seen.counts, _EDGES, strict=True) if c))
    return sum(math.exp(min(value, 700.0)) for value in purses) / len(purses)
