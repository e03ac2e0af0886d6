"""Figures of many devices as one, with bounds. Pure.

Devices differ, so pooled rows are not independent: each function answers with bounds that allow for that.

- shares of devices: the exact interval (Clopper, Pearson: Biometrika 26 (1934) 404-413), and, looked at again and again
  while devices answer, a mixture of likelihood ratios that exceeds 1 / alpha with probability at most alpha however
  often one looks (Ville 1939; the same test as the agent's probation);
- rates of rows: the exact interval on the effective sample n / deff (Korn, Graubard: Survey Methodology 24 (1998)
  193-201), where deff is the ratio estimator's variance over devices by the binomial one, never below 1 (Rao, Scott: "A
  simple method for the analysis of clustered binary data", Biometrics 48 (1992) 577-585);
- means of rows: random effects by DerSimonian and Laird (Controlled Clinical Trials 7 (1986) 177-188) with the interval
  of Hartung, Knapp, Sidik and Jonkman (Sidik, Jonkman: Statistics in Medicine 21 (2002) 3153-3159), its variance never
  below that of the fixed effect;
- ratios with no variance of their own: the geometric mean with Student's interval over devices, which one device alone
  leaves open on both sides.

With fewer than `FEW` devices bounds of rates and means are at least those of the worst and the best device: they hold
for these devices however unlike they are. What the tests and decision 0018 say of errors was simulated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

FEW = 5
_TINY = 1e-300
_MOST_EXPONENT = 600.0
_MOST_TRIALS = 1e9
"""A larger sample is taken for one of this size: sums of logarithms keep no more digits."""
_FACTORS = (1.5, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """An estimate, and one-sided bounds: the truth lies above ``low`` (below ``high``) with the confidence asked for.

    ``devices`` told figures. Without any, the bounds are infinite.
    """

    estimate: float
    low: float
    high: float
    devices: int


UNKNOWN = Bounds(math.nan, -math.inf, math.inf, 0)


def exact(events: float, trials: float, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound of a share: the tail of the binomial itself, so wrong no more often than is said.

    Of an effective sample both numbers may be fractions.

    >>> tuple(round(bound, 4) for bound in exact(0, 20, 0.95)), tuple(round(bound, 4) for bound in exact(1, 10, 0.95))
    ((0.0, 0.1391), (0.0051, 0.3942))
    """
    if trials <= 0:
        return 0.0, 1.0
    if trials > _MOST_TRIALS:
        events, trials = events * _MOST_TRIALS / trials, _MOST_TRIALS
    rest = trials - events
    low = 0.0 if events <= 0 else _share(events, rest + 1, 1 - confidence)
    high = 1.0 if rest <= 0 else 1 - _share(rest, events + 1, 1 - confidence)
    return low, high


def _share(a: float, b: float, tail: float) -> float:
    """Where the beta distribution has this much below."""
    return _root(lambda share: incomplete_beta(a, b, share) - tail, 0.0, 1.0)


def evidence(events: int, trials: int, limit: float) -> float:
    """How much speaks for a share above the limit, whenever it is looked at: 20 refutes the limit at 95 %.

    >>> evidence(2, 100, 0.05) < 1 < 20 < evidence(15, 100, 0.05)
    True
    """
    if limit <= 0:
        return math.inf if events else 0.0
    if limit >= 1:
        return 0.0
    total = 0.0
    for factor in _FACTORS:
        rate = min(limit * factor, (1 + limit) / 2)
        log = events * math.log(rate / limit) + (trials - events) * math.log((1 - rate) / (1 - limit))
        total += math.exp(min(log, _MOST_EXPONENT))
    return total / len(_FACTORS)


def pooled_rate(counts: Sequence[tuple[int, int]], confidence: float) -> Bounds:
    """The rate of events over rows; ``counts`` are (events, rows) of each device.

    >>> pooled_rate([(0, 500)] * 6, 0.95).high < 0.01 < pooled_rate([(0, 500)] * 5 + [(60, 500)], 0.95).high
    True
    """
    told = [(events, rows) for events, rows in counts if rows > 0]
    if not told:
        return UNKNOWN
    events, rows = sum(e for e, _ in told), sum(n for _, n in told)
    estimate = events / rows
    if len(told) < FEW:
        each = [exact(e, n, confidence) for e, n in told]
        return Bounds(estimate, min(low for low, _ in each), max(high for _, high in each), len(told))
    effective = rows / _design_effect(told, estimate, rows)
    low, high = exact(estimate * effective, effective, confidence)
    return Bounds(estimate, low, high, len(told))


def _design_effect(told: Sequence[tuple[int, int]], rate: float, rows: int) -> float:
    binomial = rate * (1 - rate) / rows
    if binomial <= 0:
        return 1.0
    k = len(told)
    between = k / (k - 1) * sum((e - rate * n) ** 2 for e, n in told) / rows**2
    return max(1.0, between / binomial)


def pooled_mean(samples: Sequence[tuple[int, float, float]], confidence: float) -> Bounds:
    """The mean over devices; ``samples`` are (rows, mean, sum of squared deviations) of each device.

    Devices with fewer than two rows tell nothing.
    """
    told = [(mean, max(m2 / (n - 1) / n, _TINY)) for n, mean, m2 in samples if n > 1]
    if not told:
        return UNKNOWN
    if len(told) == 1:
        return _widest(told, confidence)
    estimate, error = _random_effects(told)
    half = student(confidence, len(told) - 1) * error
    pool = Bounds(estimate, estimate - half, estimate + half, len(told))
    if len(told) >= FEW:
        return pool
    each = _widest(told, confidence)
    return Bounds(each.estimate, min(each.low, pool.low), max(each.high, pool.high), len(told))


def _widest(told: Sequence[tuple[float, float]], confidence: float) -> Bounds:
    """The plain mean of means, within the bounds of the worst and the best device."""
    z = NormalDist().inv_cdf(confidence)
    low = min(mean - z * math.sqrt(variance) for mean, variance in told)
    high = max(mean + z * math.sqrt(variance) for mean, variance in told)
    return Bounds(sum(mean for mean, _ in told) / len(told), low, high, len(told))


def _random_effects(told: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Estimate and standard error."""
    weights = [1 / variance for _, variance in told]
    total = sum(weights)
    fixed = sum(w * mean for w, (mean, _) in zip(weights, told, strict=True)) / total
    spread = sum(w * (mean - fixed) ** 2 for w, (mean, _) in zip(weights, told, strict=True))
    scale = total - sum(w * w for w in weights) / total
    tau2 = max(0.0, (spread - (len(told) - 1)) / scale) if scale > 0 else 0.0
    weights = [1 / (variance + tau2) for _, variance in told]
    total = sum(weights)
    estimate = sum(w * mean for w, (mean, _) in zip(weights, told, strict=True)) / total
    rest = sum(w * (mean - estimate) ** 2 for w, (mean, _) in zip(weights, told, strict=True)) / (len(told) - 1)
    return estimate, math.sqrt(max(rest, 1.0) / total)


def pooled_ratio(ratios: Sequence[float], confidence: float) -> Bounds:
    """The geometric mean of ratios, one of each device.

    >>> bounds = pooled_ratio([1.1, 0.9, 1.0, 1.2, 1.0, 0.95], 0.95)
    >>> bounds.low < 1 < bounds.high < 1.2
    True
    """
    told = [math.log(ratio) for ratio in ratios if ratio > 0 and math.isfinite(ratio)]
    if not told:
        return UNKNOWN
    mean = sum(told) / len(told)
    if len(told) == 1:
        return Bounds(math.exp(mean), 0.0, math.inf, 1)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in told) / (len(told) - 1))
    half = student(confidence, len(told) - 1) * deviation / math.sqrt(len(told))
    return Bounds(math.exp(mean), math.exp(mean - half), math.exp(min(mean + half, _MOST_EXPONENT)), len(told))


def student(confidence: float, freedom: int) -> float:
    """The quantile of Student's t, from the incomplete beta function.

    >>> round(student(0.95, 4), 3), round(student(0.975, 30), 3)
    (2.132, 2.042)
    """
    if confidence <= 0.5:
        return 0.0

    def excess(t: float) -> float:
        return 1 - incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2 - confidence

    high = 1.0
    while excess(high) < 0 and high < 1e9:
        high *= 2
    return _root(excess, 0.0, high)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if function(middle) < 0:
            low = middle
        else:
            high = middle
        if high - low <= 1e-12 * max(1.0, high):
            break
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by Lentz's continued fraction (DLMF 8.17.22).

    >>> round(incomplete_beta(2, 3, 0.4), 4)
    0.5248
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / _safe(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 400):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _safe(1 + step * d)
            c = _safe(1 + step / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * fraction


def _safe(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
