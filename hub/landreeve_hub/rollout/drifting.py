"""Drift of a pool of devices: their windows' sketches merged, against the release's baseline, with bounds. Pure.

A verdict of each device says little about the fleet: small sites hear too little to say anything, and one site's week
is not the fleet's. Sketches over the same cells add up exactly, so the pool is judged as one window of all its rows.

The measure is the population stability index of the merged sketch, as the sites measure it
(`landreeve.sketch.divergence`). Its bounds are of two orders, since the first vanishes where nothing has drifted: the
delta method for the cells' shares, and the mean and variance of the quadratic form that is left (bias is taken off).
Devices differ, so the shares' covariance is that of a ratio estimator over devices (the linearisation of Rao and Scott,
Biometrics 48 (1992) 577-585), never below the multinomial one, with Student's quantile over devices. With fewer than
`FEW` devices it speaks of these alone: the bounds are the widest of their pool's and of each one's.

Rows that a site withheld, since their cell held too few, are spread over that site's empty cells as the baseline has
them; a column of which a site withheld more than `MOST_WITHHELD` is not told by that site. No device weighs more than
`MOST_WEIGHT` usual ones: one that counts wildly must not drown the others, or make them look alike.

Who is not heard yet widens the bounds by the square root of expected over told devices: by Lévy's inequality a sum that
is looked at while it grows exceeds at any look what it may exceed at its end with twice the probability, which the
callers' levels allow for.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from landreeve.sketch.categories import Categories
from landreeve.sketch.divergence import PRIOR
from landreeve.sketch.document import from_document
from landreeve.sketch.errors import SketchError
from landreeve.sketch.histogram import Histogram
from landreeve_models.baseline import Baseline
from numpy.typing import NDArray

from landreeve_hub.rollout.pooling import FEW, UNKNOWN, Bounds, student

Cells = NDArray[np.float64]
Sketch = Histogram | Categories
MOST_WITHHELD = 0.2
MOST_WEIGHT = 10.0
MOST_ROWS = 1e12
NATURAL_MARGIN = 1.5
"""A usual window stays under the largest difference of the training range's windows times this, as on the sites."""


@dataclass(frozen=True, slots=True)
class Window:
    """The newest closed window of a release on a device: its number, that of the first one, rows, and ``cells`` of each
    column that could be read."""

    number: int
    first: int
    rows: int
    cells: Mapping[str, Cells]


@dataclass(frozen=True, slots=True)
class Drift:
    """One column of the pool against its baseline; ``usual`` is what windows of the training range came to."""

    column: str
    bounds: Bounds
    rows: float
    usual: float


@dataclass(frozen=True, slots=True)
class Pool:
    """The newest windows under one release by device; a value, as the roster is."""

    reference: Mapping[str, Sketch]
    usual: Mapping[str, float]
    told: Mapping[str, Window] = field(default_factory=dict)

    @classmethod
    def of(cls, baseline: Baseline) -> "Pool":
        """An empty pool against that baseline."""
        usual = {name: NATURAL_MARGIN * max(scores, default=0.0) for name, scores in baseline.natural.items()}
        return cls(baseline.columns, usual)

    def put(self, windows: Mapping[str, Window | None]) -> "Pool":
        """With these windows in place of the devices' former ones; None forgets a device."""
        told = {device: one for device, one in {**self.told, **windows}.items() if one is not None}
        return replace(self, told=told)

    def read(self, number: int, first: int, sketches: Mapping[str, Any]) -> Window:
        """A window as a device told it: what cannot be read, or was sketched over other cells, is not told."""
        cells = {name: found for name in self.reference if (found := self._cells(name, sketches.get(name))) is not None}
        rows = max((float(one.sum()) for one in cells.values()), default=0.0)
        return Window(number, first, int(rows), cells)

    def _cells(self, name: str, document: object) -> Cells | None:
        try:
            sketch = from_document(document)
        except SketchError:
            return None
        own = self.reference[name]
        if not isinstance(sketch, Histogram | Categories) or not _alike(own, sketch):
            return None
        counts = np.asarray(sketch.cells(), dtype=np.float64)
        rows = float(counts.sum()) + sketch.withheld
        if not 0 < rows <= MOST_ROWS or sketch.withheld > MOST_WITHHELD * rows:
            return None
        share = np.where(counts > 0, 0.0, np.asarray(own.cells(), dtype=np.float64) + PRIOR)
        total = float(share.sum())
        return counts + sketch.withheld * share / total if total > 0 else counts

    def looks(self, devices: Collection[str]) -> int:
        """How many windows these devices have closed since the first: so often the pool has been looked at anew."""
        windows = [self.told[device] for device in devices if device in self.told]
        if not windows:
            return 1
        return max(one.number for one in windows) - min(one.first for one in windows) + 1

    def rows(self, devices: Collection[str]) -> int:
        """Rows of these devices' newest windows together."""
        return sum(self.told[device].rows for device in devices if device in self.told)

    def judge(self, devices: Collection[str], error: float) -> list[Drift]:
        """Every column over these devices, the farthest first; ``error`` is the probability with which any of the lower
        bounds may be above the truth, shared among the columns."""
        windows = [self.told[device] for device in devices if device in self.told]
        level = 1 - error / max(1, len(self.reference))
        found = []
        for name, own in self.reference.items():
            reference = np.asarray(own.cells(), dtype=np.float64)
            counts = [one.cells[name] for one in windows if name in one.cells]
            bounds = UNKNOWN
            if counts:
                bounds = index_of(reference, np.stack(counts), level, len(devices))
            rows = float(sum(one.sum() for one in counts))
            found.append(Drift(name, bounds, rows, self.usual.get(name, 0.0)))
        return sorted(found, key=lambda one: (-one.bounds.estimate if one.bounds.devices else 0.0, one.column))


def _alike(own: Sketch, other: Sketch) -> bool:
    if isinstance(own, Histogram) and isinstance(other, Histogram):
        return own.edges == other.edges
    return isinstance(own, Categories) and isinstance(other, Categories) and own.values == other.values


def index_of(reference: Cells, counts: NDArray[np.float64], level: float, expected: int) -> Bounds:
    """The stability index of devices' counts (devices, cells) together against the reference's (cells,).

    >>> even, same = np.full(4, 500.0), np.full((8, 4), 100.0)
    >>> drifted = np.tile([40.0, 60.0, 120.0, 180.0], (8, 1))
    >>> index_of(even, same, 0.95, 8).low, index_of(even, drifted, 0.95, 8).low > 0.15
    (0.0, True)
    """
    rows = counts.sum(axis=1)
    weight = np.minimum(1.0, MOST_WEIGHT * np.median(rows) / rows)
    counts, rows = counts * weight[:, None], rows * weight
    told = len(rows)
    widen = math.sqrt(max(1.0, expected / told))
    whole = _moments(reference, counts.sum(axis=0), _between(counts, rows))
    if told >= FEW:
        half = student(level, told - 1) * whole.error * widen
        return Bounds(whole.index, max(0.0, whole.index - half), whole.index + half, told)
    half = NormalDist().inv_cdf(level) * widen
    each = [_moments(reference, one, _multinomial(one)) for one in (counts.sum(axis=0), *counts)]
    low, high = min(one.index - half * one.error for one in each), max(one.index + half * one.error for one in each)
    return Bounds(whole.index, max(0.0, low), high, told)


@dataclass(frozen=True, slots=True)
class _Moments:
    index: float
    error: float


def _moments(reference: Cells, counts: Cells, covariance: NDArray[np.float64]) -> _Moments:
    """The index without its bias, and its standard error."""
    p, q = _smooth(reference), _smooth(counts)
    index = float(((q - p) * np.log(q / p)).sum())
    floor = _multinomial(counts)
    slope, curve = np.log(q / p) + 1 - p / q, 1 / q + p / q**2
    linear = max(float(slope @ covariance @ slope), float(slope @ floor @ slope))
    bias = max(_trace(curve, covariance), _trace(curve, floor)) / 2
    spread = max(_square(curve, covariance), _square(curve, floor)) / 2
    own, turn, bend = _multinomial(reference), np.log(p / q) + 1 - q / p, 1 / p + q / p**2
    variance = linear + spread + float(turn @ own @ turn) + _square(bend, own) / 2
    return _Moments(max(0.0, index - bias - _trace(bend, own) / 2), math.sqrt(max(0.0, variance)))


def _trace(curve: Cells, covariance: NDArray[np.float64]) -> float:
    return float((curve * np.diag(covariance)).sum())


def _square(curve: Cells, covariance: NDArray[np.float64]) -> float:
    """The trace of (H V)², H being diagonal."""
    product = curve[:, None] * covariance
    return float((product * product.T).sum())


def _smooth(counts: Cells) -> Cells:
    return (counts + PRIOR) / float((counts + PRIOR).sum())


def _multinomial(counts: Cells) -> NDArray[np.float64]:
    share = _smooth(counts)
    return (np.diag(share) - np.outer(share, share)) / max(1.0, float(counts.sum()))


def _between(counts: NDArray[np.float64], rows: Cells) -> NDArray[np.float64]:
    """The covariance of the cells' shares, from how the devices differ."""
    total = float(rows.sum())
    rest = (counts - np.outer(rows, counts.sum(axis=0) / total)) / total
    return (rest.T @ rest) * (len(rows) / max(1, len(rows) - 1))
