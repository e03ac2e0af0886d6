"""Whether a model still keeps its promise, once labels are known.

A model's own entropy is the log loss it expects of itself. The difference to the loss that came true has mean zero
while the model is calibrated, whatever the mix of rows: hard weeks raise both. So an excess above zero tells that the
*relation* between rows and labels changed, and a season that is merely harder does not alarm. It is one-sided: a model
that does better than promised is nobody's incident.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from landreeve_models import evaluate
from landreeve_models.definition import DriftPolicy
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of the labelled rows of a window; ``excess`` is log loss less own entropy (nats), ``excess_error`` its
    standard error over time blocks; ``auc`` may be NaN."""

    labelled: int
    log_loss: float
    entropy: float
    excess: float
    excess_error: float
    auc: float
    label_mean: float
    prediction_mean: float

    @property
    def z(self) -> float:
        """The excess in standard errors."""
        return self.excess / self.excess_error if self.excess_error > 0 else 0.0


def measure(probability: ArrayLike, label: ArrayLike) -> Quality | None:
    """The quality of time-ordered labelled rows; None when there are fewer than two."""
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if len(y) < 2:
        return None
    losses, entropy = evaluate.losses(p, y), evaluate.entropy(p)
    excess = evaluate.paired(losses - entropy)
    return Quality(
        labelled=len(y),
        log_loss=float(losses.mean()),
        entropy=float(entropy.mean()),
        excess=excess.mean,
        excess_error=excess.standard_error,
        auc=evaluate.auc(p, y),
        label_mean=float(y.mean()),
        prediction_mean=float(p.mean()),
    )


def merge_excess(windows: list[Quality]) -> tuple[float, float]:
    """Excess and standard error of several windows together, weighted by their labels."""
    total = sum(window.labelled for window in windows)
    mean = sum(window.labelled * window.excess for window in windows) / total
    error = math.sqrt(sum((window.labelled * window.excess_error) ** 2 for window in windows)) / total
    return mean, error


def excess_is_large(excess: float, error: float, policy: DriftPolicy) -> bool:
    """Significant at ``quality_alpha`` (one-sided) and at least ``min_excess`` nats."""
    if not (math.isfinite(excess) and math.isfinite(error) and error > 0):
        return False
    return excess >= policy.min_excess and excess / error > NormalDist().inv_cdf(1 - policy.quality_alpha)


def auc_fell(quality: Quality, claimed: Mapping[str, float], policy: DriftPolicy) -> bool:
    """The AUC lies clearly under the claimed one: by ``max_auc_fall``, and beyond the noise of both (Hanley & McNeil
    1982, DOI 10.1148/radiology.143.1.7063747). A claim from few held-out rows is itself uncertain."""
    if "auc" not in claimed or not math.isfinite(quality.auc):
        return False
    fall = claimed["auc"] - quality.auc
    now = evaluate.auc_error(quality.auc, *_labels(quality.labelled, quality.label_mean))
    then = evaluate.auc_error(claimed["auc"], *_labels(claimed.get("rows", 0.0), claimed.get("label_mean", 0.5)))
    return fall >= policy.max_auc_fall and fall > NormalDist().inv_cdf(1 - policy.quality_alpha) * math.hypot(now, then)


def _labels(rows: float, mean: float) -> tuple[float, float]:
    return rows * mean, rows * (1 - mean)
