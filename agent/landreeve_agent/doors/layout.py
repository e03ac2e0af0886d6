"""What a served model takes and answers, and rows as requests of it. Pure: bytes and values in, values out.

A row is a mapping of names to cells; a cell of a CSV file is text, one of a JSON document a value. A tabular model's
inputs are columns, one value a row; an input of a tensor model is one nested list (or text) a row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from landreeve_agent.doors.errors import BadFileError, BadModelError, UnreachableError

Row = Mapping[str, Any]
_FLOATS = ("FP64", "FP32", "FP16", "BF16")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_ENCODE = msgspec.json.Encoder().encode


class BadRowError(ValueError):
    """A row that cannot be asked about; the text names the cell and what is wrong with it."""


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    versions: tuple[str, ...]
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()


class _Output(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    data: list[Any]


class _Answer(msgspec.Struct, frozen=True):
    model_version: str
    outputs: tuple[_Output, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One input. ``shape`` is that of one row, empty for a column."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer of one request, row by row: each maps an output's name to a number or a nested list."""

    version: str
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A model's inputs and the names of its outputs."""

    model: str
    version: str
    fields: tuple[Field, ...]
    outputs: tuple[str, ...]

    @classmethod
    def parse(cls, metadata: bytes) -> "Layout":
        """From the answer to ``GET /v2/models/{model}``. `BadModelError` when it tells no inputs."""
        try:
            found = msgspec.json.decode(metadata, type=_Metadata)
        except msgspec.DecodeError as error:
            raise UnreachableError(f"no metadata of a model: {error}") from error
        if not found.inputs:
            raise BadModelError(f"model {found.name!r}: its inputs are not known while it is not ready")
        fields = tuple(Field(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in found.inputs)
        return cls(found.name, found.versions[0], fields, tuple(tensor.name for tensor in found.outputs))

    def check_names(self, names: Sequence[str]) -> None:
        """Return when at least one input is among the names; else `BadFileError` lists both."""
        wanted = [field.name for field in self.fields]
        if not set(wanted) & set(names):
            raise BadFileError(
                f"none of the columns {', '.join(names[:20])} is an input of {self.model!r}; its inputs are "
                f"{', '.join(wanted)}"
            )

    def cells(self, row: Row) -> dict[str, Any]:
        """The row's cells that are inputs, as JSON values; `BadRowError` names one that cannot be."""
        return {field.name: _value(field, row[field.name]) for field in self.fields if field.name in row}


def encode_rows(
    layout: Layout, rows: Sequence[Row], ids: Sequence[str], ats: Sequence[str | None], request: str
) -> bytes:
    """One request about rows whose cells went through `Layout.cells`.

    Rows in which an input is missing send null for it. Times are sent when every row has one.
    """
    inputs = []
    for field in layout.fields:
        if not any(field.name in row for row in rows):
            continue  # an optional input nobody has; the worker says so if it is required
        data = [row.get(field.name) for row in rows]
        shape = [len(rows), *_shape_of(data[0])] if field.shape else [len(rows)]
        inputs.append({"name": field.name, "datatype": field.datatype, "shape": shape, "data": data})
    parameters: dict[str, Any] = {"ids": list(ids)}
    if all(ats):
        parameters["at"] = list(ats)
    return _ENCODE({"id": request, "parameters": parameters, "inputs": inputs})


def decode_answer(body: bytes, rows: int) -> Answered:
    """The answer's outputs, cut into rows. `UnreachableError` when it is none."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except msgspec.DecodeError as error:
        raise UnreachableError(f"no answer of an inference server: {error}") from error
    cut: list[dict[str, Any]] = [{} for _ in range(rows)]
    for output in answer.outputs:
        if not output.shape or output.shape[0] != rows:
            raise UnreachableError(f"output {output.name!r} has shape {list(output.shape)} for {rows} rows")
        for target, value in zip(cut, _rows_of(output.data, output.shape[1:]), strict=True):
            target[output.name] = value
    return Answered(answer.model_version, tuple(cut))


def _rows_of(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Flat data as one nested list for each row."""
    for length in reversed(shape):
        data = [data[i : i + length] for i in range(0, len(data), length)]
    return data


def _shape_of(value: Any) -> list[int]:
    """The shape of a nested list, by its first elements; the worker checks the rest."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _value(field: Field, cell: Any) -> Any:
    if isinstance(cell, str):
        return _from_text(field, cell)
    if isinstance(cell, Decimal):
        return float(cell)
    if isinstance(cell, float) and not math.isfinite(cell):
        if math.isnan(cell):
            return None
        raise BadRowError(f"{field.name}: {cell} is no finite number")
    return cell


def _from_text(field: Field, text: str) -> Any:
    """A cell of text as the input's datatype has it. Empty means absent, and so does NaN in a column of numbers."""
    if field.datatype == "BYTES":
        return text or None
    text = text.strip()
    if not text:
        return None
    if field.shape and text.startswith("["):
        return _nested(field, text)
    if field.datatype == "BOOL":
        if text.lower() not in _TRUTHS:
            raise BadRowError(f"{field.name}: {text[:40]!r} is neither true nor false")
        return _TRUTHS[text.lower()]
    return _number(field, text)


def _number(field: Field, text: str) -> float | int | None:
    try:
        number = float(text) if field.datatype in _FLOATS else int(text)
    except ValueError:
        kind = "number" if field.datatype in _FLOATS else "whole number"
        raise BadRowError(f"{field.name}: {text[:40]!r} is no {kind}") from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise BadRowError(f"{field.name}: {text[:40]!r} is no finite number")
    return number


def _nested(field: Field, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise BadRowError(f"{field.name}: {text[:40]!r} is no list of numbers") from None
