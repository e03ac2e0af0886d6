"""Do a graph's outputs on the golden set keep the release's promises? Pure.

At fp32 the outputs themselves must come back; at a reduced precision the metric may worsen by a stated amount.
Stock int8 recipes have taken a classifier from .975 to .53 without any error: nothing passes unmeasured.
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the outputs pass, the largest difference, the metric, and the reason in words."""

    accepted: bool
    difference: float
    metric: float
    why: str


def judge(outputs: Sequence[Array], golden: Golden, gates: Gates, *, exact: bool) -> Verdict:
    """Judge outputs, one array for each of the graph's; ``exact`` asks for the golden outputs themselves (fp32).

    `ValueError` for a metric that is not known.
    """
    bad = sum(int(np.count_nonzero(~np.isfinite(output))) for output in outputs)
    if bad:
        total = sum(output.size for output in outputs)
        return Verdict(False, float("inf"), float("nan"), f"{bad} of {total} golden outputs are NaN or infinite")
    difference, told = _difference(outputs, golden)
    value = cost(gates.metric, outputs, golden)
    shown = abs(value)
    if exact and difference > gates.max_output_difference:
        why = f"{told} (difference {difference:.2g}, allowed {gates.max_output_difference:g})"
        return Verdict(False, difference, shown, why)
    loss = value - cost(gates.metric, golden.expected, golden)
    if loss > gates.max_metric_loss:
        why = f"{gates.metric} worsens by {loss:.5f}, allowed {gates.max_metric_loss:g}"
        return Verdict(False, difference, shown, why)
    return Verdict(True, difference, shown, "" if exact else f"{gates.metric} changes by {loss:+.5f}")


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
