"""Counts of a category over fixed reference values and "other": merge(sketch(a), sketch(b)) == sketch(a + b)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from landreeve.sketch.errors import BadSketchError, UnlikeSketchesError


@dataclass(frozen=True, slots=True)
class Categories:
    """``counts[i]`` rows had ``values[i]``, ``other`` a value outside the reference, ``missing`` none; ``withheld``
    rows belong to groups too small to leave the site."""

    values: tuple[str, ...]
    counts: tuple[int, ...]
    other: int = 0
    missing: int = 0
    withheld: int = 0

    @classmethod
    def fit(cls, values: Iterable[str | None], top: int = 64, k: int = 1) -> "Categories":
        """The reference of the ``top`` most frequent values with at least ``k`` rows each, and their counts.

        >>> Categories.fit(["a", "b", "a", None], top=1)
        Categories(values=('a',), counts=(2,), other=1, missing=1, withheld=0)
        """
        tally = Counter(values)
        missing = tally.pop(None, 0)
        ranked = sorted(((str(v), n) for v, n in tally.items() if n >= k), key=lambda pair: (-pair[1], pair[0]))[:top]
        counts = tuple(n for _, n in ranked)
        other = sum(tally.values()) - sum(counts)
        return cls(tuple(v for v, _ in ranked), counts, other, missing if missing >= k else 0)

    @property
    def rows(self) -> int:
        """All values seen, the unknown and the withheld ones too."""
        return sum(self.counts) + self.other + self.missing + self.withheld

    def cells(self) -> tuple[int, ...]:
        """The counts, then other, then unknown."""
        return (*self.counts, self.other, self.missing)

    def empty(self) -> "Categories":
        """The same reference without a row."""
        return Categories(self.values, (0,) * len(self.values))

    def add(self, values: Iterable[str | None]) -> "Categories":
        """These counts and those of more values."""
        tally = Counter(values)
        missing = tally.pop(None, 0)
        counts = tuple(tally.pop(value, 0) for value in self.values)
        return self.merge(Categories(self.values, counts, sum(tally.values()), missing))

    def merge(self, other: "Categories") -> "Categories":
        """The sketch of both sets of rows; `UnlikeSketchesError` when the references differ."""
        if self.values != other.values:
            raise UnlikeSketchesError("categories of different references cannot be merged: their baselines differ")
        return Categories(
            self.values,
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            self.other + other.other,
            self.missing + other.missing,
            self.withheld + other.withheld,
        )

    def withhold(self, k: int) -> "Categories":
        """The form that may leave the site: cells of fewer than ``k`` rows are zeroed and only their sum is told."""
        counts = tuple(count if count >= k else 0 for count in self.counts)
        other = self.other if self.other >= k else 0
        missing = self.missing if self.missing >= k else 0
        hidden = self.rows - self.withheld - sum(counts) - other - missing
        return replace(self, counts=counts, other=other, missing=missing, withheld=self.withheld + hidden)

    def to_document(self) -> dict[str, Any]:
        """JSON members: ``kind``, ``values``, ``counts``, ``other``, ``missing``, ``withheld``."""
        return {
            "kind": "categories",
            "values": list(self.values),
            "counts": list(self.counts),
            "other": self.other,
            "missing": self.missing,
            "withheld": self.withheld,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Categories":
        """The sketch of a document; `BadSketchError` names what is wrong."""
        try:
            values = tuple(str(value) for value in document["values"])
            counts = tuple(int(count) for count in document["counts"])
            rest = (int(document["other"]), int(document["missing"]), int(document.get("withheld", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise BadSketchError(f"categories: {error!r}") from error
        if len(values) != len(counts) or len(set(values)) != len(values) or min((*counts, *rest)) < 0:
            raise BadSketchError("categories: needs one count for each distinct value, none below zero")
        return cls(values, counts, *rest)
