"""How far a new version's answers lie from those of the last good one on the same rows, at every look.

The distance is Kolmogorov-Smirnov's: the largest difference between the two empirical distribution functions. Each
of them lies within `band` of the true one at *every* count at once, with probability 1 - alpha: Howard and Ramdas,
"Sequential estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28
(2022), Theorem 2 with A = 0.85 and m = 1. So looking often finds no shift that is not there.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

_A = 0.85
_C = 1612.0


def distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference (0 to 1) between the distribution functions of two samples; 0 when one is empty.

    >>> round(distance([0.1, 0.2, 0.3], [0.1, 0.2, 0.9]), 3)
    0.333
    """
    if not ours or not theirs:
        return 0.0
    a, b = sorted(ours), sorted(theirs)
    return max(abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in {*a, *b})


def band(n: int, alpha: float) -> float:
    """Half the width of the band that holds the true distribution function at every count.

    >>> round(band(1000, 0.05), 3)
    0.087
    """
    if n < 2:
        return 1.0
    return min(1.0, _A * math.sqrt((math.log(math.log(math.e * n)) + 0.8 * math.log(_C / alpha)) / n))


def surely_apart(shift: float, n: int, alpha: float) -> float:
    """The least distance the two true distributions have, given the distance seen on ``n`` rows each."""
    return max(0.0, shift - 2 * band(n, alpha / 2))
