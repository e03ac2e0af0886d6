"""The figures a candidate is judged by, and the gate it must pass; numpy alone.

Rows are in order of time: neighbours in time are alike (one storm delays a hundred departures), so standard errors
come from the means of contiguous blocks and not from single rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # drift reads metrics too, and the supervisor need not load the reader of tensors
    from landreeve_models.samples import Golden

Array = NDArray[np.float64]
CLIP = 1e-6
BLOCKS = 40
CHAMPION_Z = 1.645
FIRST_Z = 1.0


def losses(probability: ArrayLike, truth: ArrayLike) -> Array:
    """Each row's log loss in nats, shape (n,); probabilities are clipped to [1e-6, 1 - 1e-6]."""
    p = np.clip(np.asarray(probability, dtype=np.float64), CLIP, 1 - CLIP)
    y = np.asarray(truth, dtype=np.float64)
    result: Array = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return result


def log_loss(probability: ArrayLike, truth: ArrayLike) -> float:
    """Mean log loss in nats.

    >>> round(log_loss([0.5, 0.5], [0, 1]), 4)
    0.6931
    """
    return float(losses(probability, truth).mean())


def entropy(probability: ArrayLike) -> Array:
    """The log loss a row would have on average were its probability true: the model's own entropy, shape (n,)."""
    p = np.clip(np.asarray(probability, dtype=np.float64), CLIP, 1 - CLIP)
    result: Array = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return result


def auc(probability: ArrayLike, truth: ArrayLike) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted half; NaN when only one label occurs.

    >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    positives = float(y.sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_error(auc: float, positives: float, negatives: float) -> float:
    """The standard error of an AUC of independent rows (Hanley & McNeil 1982, DOI 10.1148/radiology.143.1.7063747).

    >>> round(auc_error(0.7, 100, 300), 3)
    0.032
    """
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return math.sqrt(max(variance, 0.0) / max(positives * negatives, 1.0))


def ece(probability: ArrayLike, truth: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over bins of equal count (Naeini et al. 2015, adaptive form).

    >>> ece([0.25] * 4, [0, 0, 0, 1], bins=1)
    0.0
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    parts = np.array_split(order, min(bins, max(len(p), 1)))
    gaps = [len(part) * abs(float(p[part].mean() - y[part].mean())) for part in parts if len(part)]
    return sum(gaps) / max(len(p), 1)


def summary(probability: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """``log_loss``, ``auc``, ``calibration``, ``entropy``, ``label_mean``, ``rows``; AUC is left out where unknown."""
    figures = {
        "log_loss": log_loss(probability, truth),
        "auc": auc(probability, truth),
        "calibration": ece(probability, truth),
        "entropy": float(entropy(probability).mean()),
        "label_mean": float(np.asarray(truth, dtype=np.float64).mean()),
        "rows": float(len(np.asarray(truth))),
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference in nats and its standard error over time blocks."""

    mean: float
    standard_error: float

    @property
    def z(self) -> float:
        """The mean in standard errors."""
        if self.standard_error > 0:
            return self.mean / self.standard_error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0


def paired(values: ArrayLike, blocks: int = BLOCKS) -> Difference:
    """Mean of time-ordered values, with the standard error of non-overlapping block means (Carlstein 1986)."""
    array = np.asarray(values, dtype=np.float64)
    parts = np.array_split(array, min(blocks, len(array)))
    means = np.array([part.mean() for part in parts])
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.inf
    return Difference(float(array.mean()), error)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a challenger passes, why in a word and a sentence, and the figures it was decided by."""

    passed: bool
    cause: str
    sentence: str
    figures: dict[str, Any]


def gate(
    truth: ArrayLike, challenger: ArrayLike, champion: ArrayLike | None, base_rate: float, min_z: float | None = None
) -> Verdict:
    """Judge a challenger on held-out, time-ordered rows.

    It must beat the champion — or, where there is none, the constant ``base_rate`` of the training rows — by more
    than noise: a paired mean difference above ``min_z`` standard errors. Unless said otherwise that is 1.645 against a
    champion (one-sided 5 %) and 1 against the base rate: there, nothing is replaced that is known to work, but the
    challenger's order must be right as well, its AUC above one half by 1.645 standard errors.
    """
    needed = min_z if min_z is not None else (FIRST_Z if champion is None else CHAMPION_Z)
    p = np.asarray(challenger, dtype=np.float64)
    if not np.isfinite(p).all() or float(np.ptp(p)) < CLIP:
        return Verdict(False, "degenerate_output", "the challenger's outputs are constant or not numbers", {})
    other = np.full(len(p), base_rate) if champion is None else np.asarray(champion, dtype=np.float64)
    gain = paired(losses(other, truth) - losses(p, truth))
    rival = "the base rate" if champion is None else "the model in use"
    figures: dict[str, Any] = {
        "challenger": summary(p, truth),
        "rival": rival,
        "rival_log_loss": log_loss(other, truth),
        "gain": gain.mean,
        "gain_standard_error": gain.standard_error,
        "needed_z": needed,
    }
    if champion is not None:
        figures["champion"] = summary(other, truth)
    told = f"{figures['challenger']['log_loss']:.4f} against {figures['rival_log_loss']:.4f} nats of {rival}"
    noise = f"gain {gain.mean:+.4f} ± {gain.standard_error:.4f} on {len(p)} held-out rows"
    if gain.z > needed and (champion is not None or _orders(figures["challenger"])):
        return Verdict(True, "better", f"better: {told}; {noise}", figures)
    cause = "not_better" if gain.mean <= 0 else "within_noise"
    return Verdict(False, cause, f"not clearly better: {told}; {noise}", figures)


def _orders(figures: dict[str, float]) -> bool:
    """Whether the AUC is clearly above one half."""
    if "auc" not in figures:
        return False
    positives = figures["rows"] * figures["label_mean"]
    error = auc_error(figures["auc"], positives, figures["rows"] - positives)
    return figures["auc"] - 0.5 > CHAMPION_Z * error


def accuracy(scores: ArrayLike, truth: ArrayLike) -> float:
    """The share of rows whose highest score, of (n, classes), is at the true class's index.

    >>> accuracy([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    0.5
    """
    best = np.asarray(scores).reshape(len(np.asarray(truth)), -1).argmax(axis=1)
    return float((best == np.asarray(truth)).mean())


def cosine(vectors: ArrayLike, expected: ArrayLike) -> float:
    """The mean cosine of each row's vector, (n, d), with the expected one.

    >>> cosine([[2.0, 0.0]], [[1.0, 0.0]])
    1.0
    """
    a, b = _unit(vectors), _unit(expected)
    return float((a * b).sum(axis=1).mean())


def neighbours(vectors: ArrayLike, expected: ArrayLike) -> float:
    """The share of rows whose nearest other row by cosine is the same one as among the expected vectors, (n, d).

    >>> neighbours([[1, 0], [0.9, 0.1], [0, 1]], [[1, 0], [0.8, 0.1], [0, 1]])
    1.0
    """
    found, wanted = _nearest(_unit(vectors)), _nearest(_unit(expected))
    return float((found == wanted).mean())


def agreement(vectors: ArrayLike, labels: ArrayLike) -> float:
    """The share of rows whose nearest other row by cosine, of (n, d), carries the same label (n,).

    >>> agreement([[1, 0], [0.9, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1])
    1.0
    """
    truth = np.asarray(labels)
    return float((truth[_nearest(_unit(vectors))] == truth).mean())


def _unit(vectors: ArrayLike) -> Array:
    array = np.asarray(vectors, dtype=np.float64)
    array = array.reshape(len(array), -1)
    result: Array = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return result


def _nearest(units: Array) -> NDArray[np.int64]:
    similar = units @ units.T
    np.fill_diagonal(similar, -np.inf)
    result: NDArray[np.int64] = similar.argmax(axis=1)
    return result


METRICS = ("log_loss", "auc", "accuracy", "cosine", "neighbours")


def cost(metric: str, outputs: Sequence[NDArray[Any]], golden: "Golden") -> float:
    """A graph's outputs on the golden set as a cost: smaller is better; `ValueError` for a metric that is not known.

    All metrics read the first output: ``log_loss`` (nats), ``auc``, ``accuracy`` against the labels; ``cosine`` and
    ``neighbours`` against the release's own outputs.
    """
    first = outputs[0]
    if metric == "log_loss":
        return log_loss(first.reshape(-1), golden.label)
    if metric == "auc":
        return -auc(first.reshape(-1), golden.label)
    if metric == "accuracy":
        return -accuracy(first, golden.label)
    if metric == "cosine":
        return -cosine(first, golden.expected[0])
    if metric == "neighbours":
        return -neighbours(first, golden.expected[0])
    raise ValueError(f"gates.metric {metric!r} is unknown; known are {', '.join(METRICS)}")


def figures(task: str, outputs: Sequence[NDArray[Any]], labels: ArrayLike) -> dict[str, float]:
    """What a release claims of its own outputs on its golden set, by task, with the number of ``rows``.

    Of an embedding that is ``agreement`` of neighbours with the labels, and ``cosine`` and ``neighbours`` as one, which
    a reduced precision is held against.
    """
    first = outputs[0]
    rows = {"rows": float(len(first))}
    if task == "classification":
        return rows | {"accuracy": accuracy(first, labels)}
    if task == "embedding":
        return rows | {"agreement": agreement(first, labels), "cosine": 1.0, "neighbours": 1.0}
    if task == "anomaly":
        return rows | {"auc": auc(first.reshape(-1), labels), "label_mean": float(np.mean(np.asarray(labels)))}
    return summary(first.reshape(-1), labels)
