"""One column's rule, and the elements of binary tensors as plain values.

Every refusal is a `BadRequestError` that names the input and, where there is one, the value.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from landreeve.release.manifest import Column
from landreeve_models.definition import check_value

from landreeve_agent.serving.errors import BadRequestError

FLOAT32_MAX = 3.4e38
MATRIX = "x"
# Datatype → code of `struct`, little-endian as the binary extension demands.
CODES = {
    "FP64": "d", "FP32": "f", "FP16": "e", "INT64": "q", "INT32": "i", "INT16": "h", "INT8": "b",
    "UINT64": "Q", "UINT32": "I", "UINT16": "H", "UINT8": "B", "BOOL": "?",
}  # fmt: skip
_NUMERIC = ", ".join(CODES)
_NAN = float("nan")

Values = Sequence[Any]
Raw = bytes | memoryview


class Input:
    """One column's rule; it judges every value of every request. ``ranks`` are a category's ranks in the matrix."""

    __slots__ = ("_high", "_low", "_number", "column", "high", "low", "name", "ranks", "texts")

    def __init__(self, column: Column, ranks: Mapping[str, float] | None = None) -> None:
        self.column = column
        self.name = column.name
        self.ranks = ranks or {}
        self.texts = sorted(self.ranks, key=self.ranks.__getitem__)
        self._number = column.kind == "number"
        self._low = -FLOAT32_MAX if column.low is None else max(column.low, -FLOAT32_MAX)
        self._high = FLOAT32_MAX if column.high is None else min(column.high, FLOAT32_MAX)
        # What may pass a matrix as it is: numbers within their bounds, and no category.
        self.low, self.high = (self._low, self._high) if self._number else (1.0, 0.0)

    def check(self, datatype: str, values: Values) -> None:
        """Return when the values may be used; else raise. The rules are `check_value`'s; only the common case of a
        plain number within its bounds is decided here."""
        if self._number:
            if datatype not in CODES:
                raise bad_datatype(self.name, datatype, f"a number: {_NUMERIC}")
            low, high = self._low, self._high
            for index, value in enumerate(values):
                kind = type(value)
                if not ((kind is float or kind is int) and low <= value <= high):
                    self._refuse(index, value)
            return
        if datatype != "BYTES":
            raise bad_datatype(self.name, datatype, "a category: BYTES")
        for index, value in enumerate(values):
            if check_value(self.column, value):
                self._refuse(index, value)

    def feature(self, datatype: str, value: Any) -> float:
        """One value as the graph takes it, checked."""
        if self._number:
            kind = type(value)
            if (kind is float or kind is int) and self._low <= value <= self._high and datatype in CODES:
                return value  # type: ignore[no-any-return]
        elif type(value) is str and datatype == "BYTES" and value in self.ranks:
            return self.ranks[value]  # a text that training saw passes every check
        self.check(datatype, (value,))
        return _NAN

    def from_matrix(self, index: int, value: float) -> Any:
        """What an element of the matrix says in the column's own terms: a number, a category's text, or None."""
        if self._number:
            if self._low <= value <= self._high:
                return value
        elif 0 <= value < len(self.texts) and value == int(value):
            return self.texts[int(value)]
        if value == value:  # noqa: PLR0124 - only NaN differs from itself
            if not self._number:
                most = len(self.texts) - 1
                raise BadRequestError(f"input 'x': row {index}, {self.name!r}: {value!r} is no rank from 0 to {most}")
            self._refuse(index, value)
        self._refuse(index, None)
        return None

    def _refuse(self, index: int, value: object) -> None:
        """Raise with the reason, unless the value is an allowed absence."""
        reason = check_value(self.column, value)
        if not reason and value is None:
            return
        reason = reason or f"{value!r:.40} does not fit into 32 bits"
        raise BadRequestError(f"input {self.name!r}: value {index}{_spoken(reason)}")


def _spoken(reason: str) -> str:
    """A reason after the words "value 3": its verb when it has one, else a colon before it.

    >>> _spoken("is required"), _spoken("-1 is below 0")
    (' is required', ': -1 is below 0')
    """
    return f" {reason}" if reason.startswith(("is ", "must ")) else f": {reason}"


def bad_datatype(name: str, got: str, expected: str) -> BadRequestError:
    """The refusal of a datatype."""
    return BadRequestError(f"input {name!r}: datatype {got[:20]!r}, expected {expected}")


def binary_values(name: str, datatype: str, raw: Raw, rows: int) -> Values:
    """The elements of a binary tensor as plain values; NaN becomes None.

    Plain, because captured rows are JSON, and a missing value has no place in an array.
    """
    if datatype == "BYTES":
        return _texts(name, raw, rows)
    form = _form(datatype, rows)
    if form is None:
        raise bad_datatype(name, datatype, f"{_NUMERIC} or BYTES")
    if len(raw) != form.size:
        raise BadRequestError(f"input {name!r}: {len(raw)} binary bytes, {rows} x {datatype} = {form.size}")
    return [None if v != v else v for v in form.unpack(raw)]  # noqa: PLR0124 - only NaN differs from itself


def binary_floats(name: str, datatype: str, raw: Raw, count: int) -> tuple[float, ...]:
    """The elements of a binary matrix of numbers."""
    form = _form(datatype, count)
    if form is None:
        raise bad_datatype(name, datatype, f"a number: {_NUMERIC}")
    if len(raw) != form.size:
        raise BadRequestError(f"input {name!r}: {len(raw)} binary bytes, its shape and datatype need {form.size}")
    return form.unpack(raw)


@lru_cache(maxsize=256)
def _form(datatype: str, rows: int) -> struct.Struct | None:
    """The layout of a numeric tensor; None when the datatype is unknown."""
    code = CODES.get(datatype)
    return struct.Struct(f"<{rows}{code}") if code else None


def _texts(name: str, raw: Raw, rows: int) -> list[str]:
    """Elements of BYTES: each 4 bytes little-endian length, then UTF-8."""
    data = bytes(raw)
    texts: list[str] = []
    offset = 0
    while offset + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + length > len(data):
            raise BadRequestError(f"input {name!r}: element {len(texts)} of {length} bytes goes beyond the tensor")
        try:
            texts.append(data[offset : offset + length].decode())
        except UnicodeDecodeError as error:
            raise BadRequestError(f"input {name!r}: element {len(texts)} is no UTF-8: {error}") from error
        offset += length
    if offset != len(data) or len(texts) != rows:
        raise BadRequestError(f"input {name!r}: {len(texts)} elements in the binary tensor, {rows} in shape")
    return texts
