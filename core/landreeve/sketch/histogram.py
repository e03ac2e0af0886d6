"""Counts of a number over fixed reference bins: merge(sketch(a), sketch(b)) == sketch(a + b), exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landreeve.sketch.errors import BadSketchError, UnlikeSketchesError

Values = Sequence[float | None] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts[i]`` values lie in [edges[i-1], edges[i]); the first and last bins are open. ``missing`` values were
    unknown; ``withheld`` rows belong to bins too small to leave the site."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int = 0
    withheld: int = 0

    @classmethod
    def fit(cls, values: Values, bins: int = 32, k: int = 1) -> "Histogram":
        """Reference bins of about equal count from these values, each of at least ``k`` of them, and their counts.

        >>> Histogram.fit([1, 2, 2, 3, None], bins=8)
        Histogram(edges=(1.5, 2.5), counts=(1, 2, 1), missing=1, withheld=0)
        """
        known, missing = _known(values)
        edges = _merge_small(known, _quantile_edges(known, bins), k)
        return cls(edges, _count(known, edges), missing if missing >= k else 0)

    @property
    def rows(self) -> int:
        """All values seen, the unknown and the withheld ones too."""
        return sum(self.counts) + self.missing + self.withheld

    def cells(self) -> tuple[int, ...]:
        """The counts with the unknown ones as the last cell."""
        return (*self.counts, self.missing)

    def empty(self) -> "Histogram":
        """The same bins without a value."""
        return Histogram(self.edges, (0,) * len(self.counts))

    def add(self, values: Values) -> "Histogram":
        """These counts and those of more values."""
        known, missing = _known(values)
        more = Histogram(self.edges, _count(known, self.edges), missing)
        return self.merge(more)

    def merge(self, other: "Histogram") -> "Histogram":
        """The sketch of both sets of values; `UnlikeSketchesError` when the bins differ."""
        if self.edges != other.edges:
            raise UnlikeSketchesError("histograms of different bins cannot be merged: their baselines differ")
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(self.edges, counts, self.missing + other.missing, self.withheld + other.withheld)

    def withhold(self, k: int) -> "Histogram":
        """The form that may leave the site: cells of fewer than ``k`` rows are zeroed and only their sum is told."""
        counts = tuple(count if count >= k else 0 for count in self.counts)
        missing = self.missing if self.missing >= k else 0
        hidden = sum(self.counts) - sum(counts) + self.missing - missing
        return replace(self, counts=counts, missing=missing, withheld=self.withheld + hidden)

    def to_document(self) -> dict[str, Any]:
        """JSON members: ``kind``, ``edges``, ``counts``, ``missing``, ``withheld``."""
        return {
            "kind": "histogram",
            "edges": list(self.edges),
            "counts": list(self.counts),
            "missing": self.missing,
            "withheld": self.withheld,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Histogram":
        """The histogram of a document; `BadSketchError` names what is wrong."""
        try:
            edges = tuple(float(edge) for edge in document["edges"])
            counts = tuple(int(count) for count in document["counts"])
            made = cls(edges, counts, int(document["missing"]), int(document.get("withheld", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise BadSketchError(f"histogram: {error!r}") from error
        if len(counts) != len(edges) + 1 or min(*made.cells(), made.withheld) < 0:
            raise BadSketchError("histogram: needs one count more than edges, none below zero")
        if any(a >= b for a, b in pairwise(edges)) or not np.isfinite(edges).all():
            raise BadSketchError("histogram: edges must be finite and rise")
        return made


def _known(values: Values) -> tuple[NDArray[np.float64], int]:
    array = np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)
    known = array[np.isfinite(array)]
    return known, len(array) - len(known)


def _quantile_edges(known: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    distinct = np.unique(known)
    if len(distinct) <= bins:
        return tuple(((distinct[:-1] + distinct[1:]) / 2).tolist())
    inner = np.quantile(known, np.arange(1, bins) / bins)
    # The lowest value as an edge would leave a bin that nothing of the reference lies in.
    return tuple(edge for edge in np.unique(inner).tolist() if edge > distinct[0])


def _merge_small(known: NDArray[np.float64], edges: tuple[float, ...], k: int) -> tuple[float, ...]:
    """Drop edges until every bin holds k values: a small bin joins the one on its left, the first its right one."""
    kept = list(edges)
    while kept:
        counts = _count(known, tuple(kept))
        small = next((i for i, count in enumerate(counts) if count < k), None)
        if small is None:
            break
        kept.pop(max(small - 1, 0))
    return tuple(kept)


def _count(known: NDArray[np.float64], edges: tuple[float, ...]) -> tuple[int, ...]:
    places = np.searchsorted(np.asarray(edges), known, side="right")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())
