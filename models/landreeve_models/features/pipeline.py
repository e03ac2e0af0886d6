"""Rows to the tensor: one float32 matrix, one column per input column; numpy alone.

Numbers pass through (unknown is NaN); a category becomes its rank by smoothed label rate in the training rows (an
unseen one is NaN). Everything else a recipe needs — imputation, standardisation, missing indicators — is inside its
graph, so this code is the whole difference between a caller's row and the tensor, in training and in serving.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from landreeve.release.manifest import BadReleaseError, Column
from numpy.typing import NDArray

from landreeve_models.definition import Definition

PRIOR_WEIGHT = 50.0
_NAN = float("nan")


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """``features.json``: the columns in tensor order, and each category's ranks from lowest label rate up."""

    version: int = 1
    columns: tuple[Column, ...]
    categories: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A fitted pipeline; ``ranks`` maps a categorical column to value → rank."""

    columns: tuple[Column, ...]
    ranks: dict[str, dict[str, float]]

    @property
    def width(self) -> int:
        """Columns of the tensor."""
        return len(self.columns)

    @classmethod
    def fit(
        cls, rows: Sequence[Mapping[str, Any]], labels: Sequence[float] | NDArray[Any], definition: Definition
    ) -> "Pipeline":
        """Learn each category's rank by its label rate, smoothed towards the mean with `PRIOR_WEIGHT` rows.

        The ranking is target encoding reduced to an order (Micci-Barreca 2001, DOI 10.1145/507533.507538): it keeps
        graphs small and leaks nothing but an order.
        """
        truth = np.asarray(labels, dtype=np.float64)
        ranks = {column.name: _rank([row.get(column.name) for row in rows], truth) for column in definition.categories}
        return cls(definition.columns, ranks)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """float32 (n, width) of checked rows."""
        x = np.empty((len(rows), len(self.columns)), dtype=np.float32)
        for j, column in enumerate(self.columns):
            name = column.name
            if column.kind == "category":
                ranks = self.ranks[name]
                x[:, j] = [ranks.get(row.get(name), _NAN) for row in rows]  # type: ignore[arg-type]
            else:
                x[:, j] = [_NAN if (value := row.get(name)) is None else value for row in rows]
        return x

    def encode_columns(self, columns: Mapping[str, Sequence[Any] | NDArray[Any]], n: int) -> NDArray[np.float32]:
        """float32 (n, width) of checked columns, each of length n; an absent column is unknown throughout."""
        x = np.empty((n, len(self.columns)), dtype=np.float32)
        for j, column in enumerate(self.columns):
            values = columns.get(column.name)
            if values is None:
                x[:, j] = _NAN
            elif column.kind == "category":
                ranks = self.ranks[column.name]
                x[:, j] = [ranks.get(value, _NAN) for value in values]
            elif isinstance(values, np.ndarray) and values.dtype != object:
                x[:, j] = values
            else:
                x[:, j] = [_NAN if value is None else value for value in values]
        return x

    def to_bytes(self) -> bytes:
        """``features.json``."""
        ordered = {name: tuple(sorted(ranks, key=ranks.__getitem__)) for name, ranks in self.ranks.items()}
        return msgspec.json.encode(_Document(columns=self.columns, categories=ordered), order="sorted")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Pipeline":
        """The pipeline of a release; `BadReleaseError` when it is none."""
        try:
            document = msgspec.json.decode(data, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadReleaseError(f"features.json: {error}") from error
        if document.version != 1:
            raise BadReleaseError(f"features.json: version {document.version} is unknown; update the agent")
        for column in document.columns:
            if column.kind == "category" and column.name not in document.categories:
                raise BadReleaseError(f"features.json: category {column.name!r} has no ranks")
        ranks = {name: {value: float(i) for i, value in enumerate(o)} for name, o in document.categories.items()}
        return cls(document.columns, ranks)


def _rank(values: Sequence[object], truth: NDArray[np.float64]) -> dict[str, float]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for value, label in zip(values, truth.tolist(), strict=True):
        if isinstance(value, str):
            sums[value] = sums.get(value, 0.0) + label
            counts[value] = counts.get(value, 0) + 1
    base = float(truth.mean()) if len(truth) else 0.0
    rate = {value: (sums[value] + base * PRIOR_WEIGHT) / (counts[value] + PRIOR_WEIGHT) for value in sums}
    # Ties break by name: the same rows always give the same bytes.
    return {value: float(i) for i, value in enumerate(sorted(rate, key=lambda value: (rate[value], value)))}
