"""Do a graph's outputs on the golden set keep the release's promises? Pure.

At fp32 the outputs themselves must come back; at a reduced precision the metric may worsen by a stated amount.
Stock int8 recipes have taken a classifier from .975 to .53 without any error: nothing passes unmeasured.
"""

from dataclasses import dataclass

import numpy as np
from landreeve.release.manifest import Gates
from landreeve_models.evaluate import auc, log_loss
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs float32 (n, width), the release's own outputs (n,), and the truth (n,)."""

    x: NDArray[np.float32]
    expected: Vector
    label: Vector


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the outputs pass, the largest difference, the metric, and the reason in words."""

    accepted: bool
    difference: float
    metric: float
    why: str


def cost(metric: str, p: Vector, label: Vector) -> float:
    """The metric as a cost: smaller is better. `ValueError` for a metric that is not known."""
    if metric == "log_loss":
        return log_loss(p, label)
    if metric == "auc":
        return -auc(p, label)
    raise ValueError(f"gates.metric {metric!r} is unknown; known are log_loss and auc")


def judge(p: Vector, golden: Golden, gates: Gates, *, exact: bool) -> Verdict:
    """Judge outputs; ``exact`` asks for the golden outputs themselves (fp32)."""
    bad = int(np.count_nonzero(~np.isfinite(p)))
    if bad:
        return Verdict(False, float("inf"), float("nan"), f"{bad} of {len(p)} golden outputs are NaN or infinite")
    difference = float(np.abs(p.astype(np.float64) - golden.expected).max())
    value = cost(gates.metric, p, golden.label)
    shown = abs(value)
    if exact and difference > gates.max_output_difference:
        at = int(np.abs(p - golden.expected).argmax())
        why = (
            f"golden row {at}: expected {golden.expected[at]:.6f}, this box computes {p[at]:.6f} "
            f"(difference {difference:.2g}, allowed {gates.max_output_difference:g})"
        )
        return Verdict(False, difference, shown, why)
    loss = value - cost(gates.metric, golden.expected, golden.label)
    if loss > gates.max_metric_loss:
        why = f"{gates.metric} worsens by {loss:.5f}, allowed {gates.max_metric_loss:g}"
        return Verdict(False, difference, shown, why)
    return Verdict(True, difference, shown, "" if exact else f"{gates.metric} changes by {loss:+.5f}")
