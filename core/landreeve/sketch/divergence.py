"""How far a window's sketch lies from its baseline: the population stability index, over exactly the same cells."""

import math

from landreeve.sketch.categories import Categories
from landreeve.sketch.errors import UnlikeSketchesError
from landreeve.sketch.histogram import Histogram

# Added to every cell's count, so that a cell empty on one side weighs much but not without end (Jeffreys' prior).
PRIOR = 0.5


def psi(reference: Histogram | Categories, window: Histogram | Categories) -> float:
    """The population stability index, Σ (q - p) ln(q / p) over all cells, unknown values being one of them.

    Without any change it is about (1/n + 1/m)·χ² with cells-1 degrees of freedom (Yurdakul & Naranjo 2020,
    DOI 10.21314/JRMV.2020.227).

    >>> a = Histogram((0.0,), (50, 50))
    >>> round(psi(a, a), 6), round(psi(a, Histogram((0.0,), (20, 80))), 3)
    (0.0, 0.404)
    """
    _check_alike(reference, window)
    p, q = _smooth(reference.cells()), _smooth(window.cells())
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def degrees_of_freedom(reference: Histogram | Categories, window: Histogram | Categories) -> int:
    """Cells that occur on either side, less one; at least one."""
    used = sum(1 for a, b in zip(reference.cells(), window.cells(), strict=True) if a or b)
    return max(used - 1, 1)


def _check_alike(reference: Histogram | Categories, window: Histogram | Categories) -> None:
    if isinstance(reference, Histogram) and isinstance(window, Histogram) and reference.edges == window.edges:
        return
    if isinstance(reference, Categories) and isinstance(window, Categories) and reference.values == window.values:
        return
    raise UnlikeSketchesError("only sketches over the same reference can be compared")


def _smooth(cells: tuple[int, ...]) -> list[float]:
    total = sum(cells) + PRIOR * len(cells)
    return [(count + PRIOR) / total for count in cells]
