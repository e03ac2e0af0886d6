"""The Open Inference Protocol, version 2, with its binary tensor extension: bytes to columns, numbers to bytes.

A model's columns are the named input tensors, each of shape ``[rows]`` or ``[rows, 1]``. Numbers come as any
numeric datatype, categories as BYTES. Every refusal is a `BadRequestError` that names the field.
Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's
``extension_binary_data.md``.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from landreeve.release.manifest import Column
from landreeve_models.definition import check_value
from numpy.typing import NDArray

from landreeve_agent.serving.errors import BadRequestError, TooLargeError

MAX_ROWS = 4096
MAX_ID_CHARS = 200
FLOAT32_MAX = 3.4e38
_DTYPES = {
    "FP64": "<f8", "FP32": "<f4", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "INT16": "<i2", "INT8": "<i1",
    "UINT64": "<u8", "UINT32": "<u4", "UINT16": "<u2", "UINT8": "<u1", "BOOL": "?",
}  # fmt: skip
_NUMERIC = ", ".join(_DTYPES)

Values = Sequence[Any]


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any] | None = None
    parameters: _InputParameters | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(msgspec.Struct):
    at: str | list[str] | None = None
    ids: list[str] | None = None
    binary_data_output: bool = False


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = None


class _OutTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = None
    parameters: dict[str, int] | None = None


class _Answer(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    id: str
    outputs: list[_OutTensor]
    parameters: dict[str, list[str]] | None = None


@dataclass(slots=True)
class Infer:
    """A decoded request. ``columns`` maps a name to its ``rows`` values; numbers that are absent are None."""

    id: str
    ids: list[str] | None
    ats: list[str | None]
    rows: int
    columns: dict[str, Values]
    binary: bool


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers, and the name of its output tensor."""

    model: str
    version: str
    output: str


_decoder = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


def decode(body: bytes, json_bytes: int | None, columns: Sequence[Column], output: str) -> Infer:
    """The request in a body. ``json_bytes`` is the header ``Inference-Header-Content-Length``, if it was sent."""
    if json_bytes is None:
        message, tail = _parse(body), b""
    else:
        if not 0 < json_bytes <= len(body):
            raise BadRequestError(f"Inference-Header-Content-Length: {json_bytes} lies outside the body of {len(body)}")
        message, tail = _parse(body[:json_bytes]), body[json_bytes:]
    rows = _rows(message.inputs)
    given = _tensors(message.inputs, tail, rows)
    parameters = message.parameters
    return Infer(
        id=_check_id(message.id, "id") if message.id is not None else "",
        ids=_ids(parameters.ids, rows) if parameters and parameters.ids is not None else None,
        ats=_ats(parameters.at if parameters else None, rows),
        rows=rows,
        columns=_columns(given, columns, rows),
        binary=_wants_binary(message, output),
    )


def _parse(data: bytes) -> _Body:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"body: {error}") from error


def _rows(inputs: list[_Input]) -> int:
    if not inputs:
        raise BadRequestError("inputs: empty; send one tensor for each column of the model")
    rows = inputs[0].shape[0] if inputs[0].shape else 0
    if rows > MAX_ROWS:
        raise TooLargeError(f"inputs[0].shape: {rows} rows; at most {MAX_ROWS} are answered at once")
    for tensor in inputs:
        if tensor.shape not in ((rows,), (rows, 1)) or rows < 1:
            raise BadRequestError(
                f"input {tensor.name!r}: shape {list(tensor.shape)} does not fit; "
                "expected [rows] or [rows, 1], with the same number of rows, 1 or more, for every input"
            )
    return rows


def _tensors(inputs: list[_Input], tail: bytes, rows: int) -> dict[str, tuple[str, Values]]:
    given: dict[str, tuple[str, Values]] = {}
    offset = 0
    for tensor in inputs:
        name = tensor.name
        if name in given:
            raise BadRequestError(f"input {name!r}: occurs twice")
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is None:
            given[name] = (tensor.datatype, _json_values(tensor, rows))
            continue
        if tensor.data is not None:
            raise BadRequestError(f"input {name!r}: has both data and binary_data_size; send one of them")
        if size < 0 or offset + size > len(tail):
            raise BadRequestError(
                f"input {name!r}: binary_data_size {size} goes beyond the {len(tail) - offset} bytes left"
            )
        given[name] = (tensor.datatype, _binary_values(tensor, tail[offset : offset + size], rows))
        offset += size
    if offset != len(tail):
        raise BadRequestError(f"body: {len(tail) - offset} bytes after the last binary tensor belong to no input")
    return given


def _json_values(tensor: _Input, rows: int) -> list[Any]:
    if tensor.data is None:
        raise BadRequestError(f"input {tensor.name!r}: has neither data nor binary_data_size")
    data = tensor.data
    if data and type(data[0]) is list:  # [[1], [2]] is allowed for shape [rows, 1]
        data = [value for row in data for value in (row if type(row) is list else [row])]
    if len(data) != rows:
        raise BadRequestError(f"input {tensor.name!r}: {len(data)} values in data, {rows} in shape")
    return data


def _binary_values(tensor: _Input, raw: bytes, rows: int) -> Values:
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, raw, rows)
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise _bad_datatype(tensor.name, tensor.datatype, f"{_NUMERIC} or BYTES")
    expected = rows * np.dtype(dtype).itemsize
    if len(raw) != expected:
        raise BadRequestError(
            f"input {tensor.name!r}: {len(raw)} binary bytes, {rows} x {tensor.datatype} = {expected}"
        )
    array: NDArray[Any] = np.frombuffer(raw, dtype)
    # Plain numbers from here on: captured rows are JSON, and a missing value is None, which no array can hold.
    return [None if v != v else v for v in array.tolist()]  # noqa: PLR0124 - NaN is the one value unlike itself


def _texts(name: str, raw: bytes, rows: int) -> list[str]:
    """Elements of BYTES: each 4 bytes little-endian length, then UTF-8."""
    texts: list[str] = []
    offset = 0
    while offset + 4 <= len(raw):
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise BadRequestError(f"input {name!r}: element {len(texts)} of {length} bytes goes beyond the tensor")
        try:
            texts.append(raw[offset : offset + length].decode())
        except UnicodeDecodeError as error:
            raise BadRequestError(f"input {name!r}: element {len(texts)} is no UTF-8: {error}") from error
        offset += length
    if offset != len(raw) or len(texts) != rows:
        raise BadRequestError(f"input {name!r}: {len(texts)} elements in the binary tensor, {rows} in shape")
    return texts


def _columns(given: dict[str, tuple[str, Values]], columns: Sequence[Column], rows: int) -> dict[str, Values]:
    ready: dict[str, Values] = {}
    for column in columns:
        name = column.name
        sent = given.pop(name, None)
        if sent is None:
            if column.required:
                raise BadRequestError(f"input {name!r}: missing")
            ready[name] = [None] * rows
            continue
        datatype, values = sent
        if column.kind == "number":
            _check_numbers(column, datatype, values)
        else:
            _check_categories(column, datatype, values)
        ready[name] = values
    if given:
        known = ", ".join(column.name for column in columns)
        raise BadRequestError(f"input {min(given)!r}: unknown; the model's inputs are {known}")
    return ready


def _check_numbers(column: Column, datatype: str, values: Values) -> None:
    if datatype not in _DTYPES:
        raise _bad_datatype(column.name, datatype, f"a number: {_NUMERIC}")
    low = -FLOAT32_MAX if column.low is None else max(column.low, -FLOAT32_MAX)
    high = FLOAT32_MAX if column.high is None else min(column.high, FLOAT32_MAX)
    for index, value in enumerate(values):
        kind = type(value)
        if (kind is float or kind is int) and low <= value <= high:
            continue
        reason = check_value(column, value)
        if reason or value is not None:
            reason = reason or f"{value!r:.40} does not fit into 32 bits"
            raise BadRequestError(f"input {column.name!r}: value {index}{_spoken(reason)}")


def _check_categories(column: Column, datatype: str, values: Values) -> None:
    if datatype != "BYTES":
        raise _bad_datatype(column.name, datatype, "a category: BYTES")
    for index, value in enumerate(values):
        reason = check_value(column, value)
        if reason:
            raise BadRequestError(f"input {column.name!r}: value {index}{_spoken(reason)}")


def _spoken(reason: str) -> str:
    """A reason after the words "value 3": its verb when it has one, else a colon before it.

    >>> _spoken("is required"), _spoken("-1 is below 0")
    (' is required', ': -1 is below 0')
    """
    return f" {reason}" if reason.startswith(("is ", "must ")) else f": {reason}"


def _bad_datatype(name: str, got: str, expected: str) -> BadRequestError:
    return BadRequestError(f"input {name!r}: datatype {got[:20]!r}, expected {expected}")


def _check_id(text: str, field: str) -> str:
    if not text or len(text) > MAX_ID_CHARS:
        raise BadRequestError(f"{field}: {len(text)} characters; an id has 1 to {MAX_ID_CHARS}")
    return text


def _ids(ids: list[str], rows: int) -> list[str]:
    if len(ids) != rows:
        raise BadRequestError(f"parameters.ids: {len(ids)} ids for {rows} rows")
    if len(set(ids)) != rows:
        raise BadRequestError("parameters.ids: an id occurs twice")
    return [_check_id(text, f"parameters.ids[{i}]") for i, text in enumerate(ids)]


def _ats(at: str | list[str] | None, rows: int) -> list[str | None]:
    if at is None:
        return [None] * rows
    if isinstance(at, str):
        _check_at(at, "parameters.at")
        return [at] * rows
    if len(at) != rows:
        raise BadRequestError(f"parameters.at: {len(at)} times for {rows} rows")
    for index, text in enumerate(at):
        _check_at(text, f"parameters.at[{index}]")
    return list(at)


def _check_at(text: str, field: str) -> None:
    try:
        aware = msgspec.convert(text, datetime).tzinfo is not None
    except msgspec.ValidationError:
        aware = False
    if not aware:
        raise BadRequestError(f"{field}: {text[:40]!r} is no RFC 3339 time with a zone, such as 2026-01-31T09:30:00Z")


def _wants_binary(message: _Body, output: str) -> bool:
    binary = message.parameters.binary_data_output if message.parameters else False
    for index, wanted in enumerate(message.outputs or ()):
        if wanted.name != output:
            raise BadRequestError(f"outputs[{index}].name: {wanted.name[:60]!r} is unknown; the output is {output!r}")
        if wanted.parameters and wanted.parameters.binary_data is not None:
            binary = wanted.parameters.binary_data
    return binary


def encode(answer: Answering, request: Infer, ids: Sequence[str], p: NDArray[np.float32]) -> tuple[bytes, int | None]:
    """The answer's body and, when the tensor follows in binary, the length of its JSON part."""
    parameters = {"ids": list(ids)} if request.rows > 1 else None
    if not request.binary:
        tensor = _OutTensor(answer.output, "FP32", [request.rows], data=p.tolist())
        return _encoder.encode(_Answer(answer.model, answer.version, request.id, [tensor], parameters)), None
    raw = p.astype("<f4", copy=False).tobytes()
    tensor = _OutTensor(answer.output, "FP32", [request.rows], parameters={"binary_data_size": len(raw)})
    head = _encoder.encode(_Answer(answer.model, answer.version, request.id, [tensor], parameters))
    return head + raw, len(head)
