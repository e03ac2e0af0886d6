"""Do a graph's outputs on the golden set keep the release's promises? Pure.

At fp32 the outputs themselves must come back; at a reduced precision the release's own metric may worsen by a stated
amount. Stock int8 recipes have taken a classifier from .975 to .53 without any error: nothing passes unmeasured.

A small golden set measures the loss with an error. So two things are asked: the loss measured is within the allowance,
and it is below `DOUBT` times the allowance with 95 % confidence (one-sided). The error is the jackknife's over groups
of rows (Efron & Stein 1981, DOI 10.1214/aos/1176345462), which holds for metrics that are no mean of rows as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from landreeve.release.manifest import Gates
from landreeve_models.evaluate import cost
from landreeve_models.samples import Golden
from numpy.typing import NDArray

Array = NDArray[Any]
DOUBT = 3.0
GROUPS = 20
_Z = 1.645


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the outputs pass, the largest difference, the metric, and the reason in words. ``loss`` is by how much
    the metric is worse than the release's own, ``error`` its standard error."""

    accepted: bool
    difference: float
    metric: float
    why: str
    loss: float = 0.0
    error: float = 0.0


def judge(outputs: Sequence[Array], golden: Golden, gates: Gates, *, exact: bool) -> Verdict:
    """Judge outputs, one array for each of the graph's; ``exact`` asks for the golden outputs themselves (fp32).

    `ValueError` for a metric that is not known.
    """
    bad = sum(int(np.count_nonzero(~np.isfinite(output))) for output in outputs)
    if bad:
        total = sum(output.size for output in outputs)
        return Verdict(False, float("inf"), float("nan"), f"{bad} of {total} golden outputs are NaN or infinite")
    difference, told = _difference(outputs, golden)
    if not np.isfinite(difference):
        return Verdict(False, difference, float("nan"), told)
    shown = abs(cost(gates.metric, outputs, golden))
    if exact and difference > gates.max_output_difference:
        why = f"{told} (difference {difference:.2g}, allowed {gates.max_output_difference:g})"
        return Verdict(False, difference, shown, why)
    loss, error = loss_of(gates.metric, outputs, golden)
    why = _objection(gates, loss, error)
    if why and not (exact and not np.isfinite(loss)):  # at fp32 the outputs themselves have come back: that is enough
        return Verdict(False, difference, shown, why, loss, error)
    told = "" if exact else f"{gates.metric} changes by {loss:+.5f} ± {error:.5f}"
    return Verdict(True, difference, shown, told, loss, error)


def _objection(gates: Gates, loss: float, error: float) -> str:
    allowed = gates.max_metric_loss
    if not np.isfinite(loss):
        return f"{gates.metric} cannot be computed on this golden set"
    if loss > allowed:
        return f"{gates.metric} worsens by {loss:.5f}, allowed {allowed:g}"
    if loss + _Z * error > DOUBT * max(allowed, 1e-9):
        bound = f"may be {loss + _Z * error:.5f} with 95 % confidence, {DOUBT:g} times {allowed:g} is the most"
        return f"{gates.metric} worsens by {loss:.5f}, but {bound}: the golden set cannot show that this is safe"
    return ""


def loss_of(metric: str, outputs: Sequence[Array], golden: Golden) -> tuple[float, float]:
    """By how much the metric is worse than that of the release's own outputs, and the standard error of that."""
    whole = _loss(metric, outputs, golden)
    groups = min(GROUPS, golden.rows)
    if groups < 2:
        return whole, 0.0
    without = []
    for group in range(groups):
        rows = np.arange(golden.rows) % groups != group
        part = Golden((), tuple(array[rows] for array in golden.expected), golden.label[rows])
        without.append(_loss(metric, [output[rows] for output in outputs], part))
    spread = np.asarray(without) - np.mean(without)
    return whole, float(np.sqrt((groups - 1) / groups * (spread**2).sum()))


def _loss(metric: str, outputs: Sequence[Array], golden: Golden) -> float:
    return cost(metric, outputs, golden) - cost(metric, golden.expected, golden)


def _difference(outputs: Sequence[Array], golden: Golden) -> tuple[float, str]:
    """The largest difference to the expected outputs, and where it is."""
    worst, told = -1.0, ""
    for output, expected in zip(outputs, golden.expected, strict=True):
        # (n, 1) for (n,) is the same answer.
        got = output.reshape(expected.shape) if output.size == expected.size else output
        if got.shape != expected.shape:
            return float("inf"), f"outputs of shape {list(got.shape)}, the golden set has {list(expected.shape)}"
        apart = np.abs(got.astype(np.float64) - expected)
        if float(apart.max()) > worst:
            worst = float(apart.max())
            at = np.unravel_index(int(apart.argmax()), apart.shape)
            told = f"golden row {at[0]}: expected {expected[at]:.6f}, this box computes {got[at]:.6f}"
    return worst, told
