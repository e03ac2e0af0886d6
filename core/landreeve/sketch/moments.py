"""Count, mean and spread of a number, mergeable (Chan, Golub & LeVeque 1983)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from landreeve.sketch.errors import BadSketchError


@dataclass(frozen=True, slots=True)
class Moments:
    """``n`` values with mean ``mean`` and sum of squared deviations ``m2``."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def variance(self) -> float:
        """The unbiased sample variance; NaN below two values."""
        return self.m2 / (self.n - 1) if self.n > 1 else math.nan

    def add(self, values: Iterable[float]) -> "Moments":
        """These moments and those of more values (Welford).

        >>> Moments().add([1.0, 2.0, 3.0])
        Moments(n=3, mean=2.0, m2=2.0)
        """
        n, mean, m2 = self.n, self.mean, self.m2
        for value in values:
            n += 1
            step = value - mean
            mean += step / n
            m2 += step * (value - mean)
        return Moments(n, mean, m2)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of values."""
        n = self.n + other.n
        if n == 0:
            return Moments()
        step = other.mean - self.mean
        return Moments(n, self.mean + step * other.n / n, self.m2 + other.m2 + step * step * self.n * other.n / n)

    def to_document(self) -> dict[str, Any]:
        """JSON members: ``kind``, ``n``, ``mean``, ``m2``."""
        return {"kind": "moments", "n": self.n, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Moments":
        """The moments of a document; `BadSketchError` names what is wrong."""
        try:
            made = cls(int(document["n"]), float(document["mean"]), float(document["m2"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadSketchError(f"moments: {error!r}") from error
        if made.n < 0 or not made.m2 >= 0 or not math.isfinite(made.mean):
            raise BadSketchError("moments: n and m2 must not be negative and the mean finite")
        return made
