"""What a release's rows and predictions looked like when it was made: the reference that drift is measured against.

Besides a sketch for each column it carries how much one window naturally differs from the others within the training
range, because weeks differ: a threshold that only knows sampling noise alarms on every change of weather.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from landreeve.release.manifest import BadReleaseError
from landreeve.sketch.categories import Categories
from landreeve.sketch.divergence import psi
from landreeve.sketch.document import from_document
from landreeve.sketch.errors import SketchError
from landreeve.sketch.histogram import Histogram
from numpy.typing import NDArray

from landreeve_models.definition import Definition

PREDICTION = "prediction"
BINS = 32
K = 10
Reference = Histogram | Categories
Row = Mapping[str, Any]


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    rows: int
    k: int
    columns: dict[str, dict[str, Any]]
    prediction: dict[str, Any]
    natural: dict[str, tuple[float, ...]]
    figures: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Baseline:
    """``columns`` maps a column (and `PREDICTION`) to its reference sketch; ``natural`` to the PSI of each window of
    the training range against the rest of it; ``figures`` are the claimed figures on held-out rows (``log_loss``,
    ``entropy``, ``auc``); groups under ``k`` rows were withheld."""

    rows: int
    k: int
    columns: dict[str, Reference]
    natural: dict[str, tuple[float, ...]]
    figures: dict[str, float]

    @classmethod
    def fit(
        cls,
        definition: Definition,
        rows: Sequence[Row],
        prediction: NDArray[Any],
        windows: NDArray[np.int64],
        figures: Mapping[str, float],
    ) -> "Baseline":
        """The baseline of training rows, their predictions (n,), the number of the window each lies in (n,), and the
        claimed figures."""
        columns: dict[str, Reference] = {}
        natural: dict[str, tuple[float, ...]] = {}
        for name, values in _series(definition, rows, prediction).items():
            category = any(column.name == name for column in definition.categories)
            columns[name] = Categories.fit(values, k=K) if category else Histogram.fit(values, BINS, K)
            natural[name] = _natural(columns[name], values, windows)
        return cls(len(rows), K, columns, natural, dict(figures))

    def sketch(self, definition: Definition, rows: Sequence[Row], prediction: Sequence[float]) -> dict[str, Reference]:
        """The sketches of a window over this baseline's cells."""
        series = _series(definition, rows, prediction)
        return {name: reference.empty().add(series[name]) for name, reference in self.columns.items() if name in series}

    def to_bytes(self) -> bytes:
        """``baseline.json``."""
        documents = {name: sketch.to_document() for name, sketch in self.columns.items()}
        prediction = documents.pop(PREDICTION)
        document = _Document(
            rows=self.rows,
            k=self.k,
            columns=documents,
            prediction=prediction,
            natural=self.natural,
            figures=self.figures,
        )
        return msgspec.json.encode(document, order="sorted")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Baseline":
        """The baseline of a release; `BadReleaseError` when it is none."""
        try:
            document = msgspec.json.decode(data, type=_Document)
            columns = {name: _reference(sketch) for name, sketch in document.columns.items()}
            columns[PREDICTION] = _reference(document.prediction)
        except (msgspec.DecodeError, UnicodeDecodeError, SketchError) as error:
            raise BadReleaseError(f"baseline.json: {error}") from error
        return cls(document.rows, document.k, columns, document.natural, document.figures)


def _reference(document: dict[str, Any]) -> Reference:
    sketch = from_document(document)
    if not isinstance(sketch, (Histogram, Categories)):
        raise SketchError("a reference is a histogram or categories")
    return sketch


def _series(definition: Definition, rows: Sequence[Row], prediction: Any) -> dict[str, Any]:
    series: dict[str, Any] = {column.name: [row.get(column.name) for row in rows] for column in definition.columns}
    series[PREDICTION] = np.asarray(prediction, dtype=np.float64)
    return series


def _natural(reference: Reference, values: Any, windows: NDArray[np.int64]) -> tuple[float, ...]:
    """The PSI of each whole window against all the others; empty when there are fewer than three."""
    numbers, counts = np.unique(windows, return_counts=True)
    # The first and last window are cut by the training range: a few hours are no typical week.
    whole = numbers[counts >= 0.8 * np.median(counts)]
    if len(whole) < 3:
        return ()
    parts = [_of(reference, values, windows == number) for number in whole]
    scores = []
    for i, part in enumerate(parts):
        rest = reference.empty()
        for j, other in enumerate(parts):
            rest = rest if i == j else _join(rest, other)
        scores.append(psi(rest, part))
    return tuple(round(score, 6) for score in scores)


def _of(reference: Reference, values: Any, chosen: NDArray[np.bool_]) -> Reference:
    return reference.empty().add([values[i] for i in np.flatnonzero(chosen)])


def _join(a: Reference, b: Reference) -> Reference:
    if isinstance(a, Histogram) and isinstance(b, Histogram):
        return a.merge(b)
    if isinstance(a, Categories) and isinstance(b, Categories):
        return a.merge(b)
    raise SketchError("sketches of different kinds cannot be joined")
