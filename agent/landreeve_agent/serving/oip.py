"""The Open Inference Protocol, version 2, with its binary tensor extension: bytes to columns, numbers to bytes.

A model's columns are the named input tensors, each of shape ``[rows]`` or ``[rows, 1]``. Numbers come as any
numeric datatype, categories as BYTES. Every refusal is a `BadRequestError` that names the field.
Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's
``extension_binary_data.md``.
"""

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from landreeve.release.manifest import TensorSpec
from landreeve_models.samples import DTYPES

from landreeve_agent.serving.columns import MATRIX, Raw, Values, binary_floats, binary_values
from landreeve_agent.serving.errors import BadRequestError, TooLargeError
from landreeve_agent.serving.interface import Array, Interface
from landreeve_agent.serving.messages import Body, Infer, InputTensor, Parameters
from landreeve_agent.serving.onerow import Found
from landreeve_agent.store.stamps import moment

MAX_ROWS = 4096
MAX_ID_CHARS = 200
PRIORITIES = 3
_NAN = float("nan")


class _OutTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, int] | None = None


class _Answer(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    id: str
    outputs: list[_OutTensor]
    parameters: dict[str, list[str]] | None = None


_decoder = msgspec.json.Decoder(Body)
_encoder = msgspec.json.Encoder()
_encode = _encoder.encode
_pack_one = struct.Struct("<f").pack
_DTYPES = {name: np.dtype(kind).newbyteorder("<") for name, kind in DTYPES.items()}
_ONE, _ONE_BY_ONE = (1,), (1, 1)
_NOTHING: Raw = b""
_JSON_ONLY, _BINARY_ONLY = (False,), (True,)


def decode(body: Raw, json_bytes: int | None, interface: Interface) -> Infer:
    """The request in a body. ``json_bytes`` is the header ``Inference-Header-Content-Length``, if it was sent."""
    if json_bytes is None:
        head, tail = body, _NOTHING
    else:
        if not 0 < json_bytes <= len(body):
            raise BadRequestError(f"Inference-Header-Content-Length: {json_bytes} lies outside the body of {len(body)}")
        head, tail = body[:json_bytes], body[json_bytes:]
    if (usual := interface.one_row) is not None:
        found = usual.json(head) if json_bytes is None else usual.binary(head, tail)
        if found is not None:
            return of_row(found[0], found, interface)
    return read(_parse(head), tail, interface)


def of_row(message: Any, found: Found, interface: Interface) -> Infer:
    """The request of a message whose one row has been read."""
    request = _begin(message, 1, interface)
    request.records, request.features = [found[1]], [found[2]]
    return request


def read(message: Body, tail: Raw, interface: Interface) -> Infer:
    """The request in a message, whatever it came over; ``tail`` are its binary tensors, one after another."""
    rows = _rows(message.inputs)
    request = _begin(message, rows, interface)
    if interface.tensors:
        request.tensors = _tensors(message.inputs, tail, rows, interface)
    else:
        _set_rows(request, message.inputs, tail, interface)
    return request


def _begin(message: Any, rows: int, interface: Interface) -> Infer:
    """The request without its tensors, of a `Body` or what is like one."""
    parameters = message.parameters
    request = Infer(
        _check_id(message.id, "id") if message.id is not None else "", None, _no_ats(rows), rows, {}, [], _JSON_ONLY
    )
    request.interface = interface
    if parameters is not None:
        _set_parameters(request, parameters)
    request.wanted = _wanted(message, interface.outputs)
    return request


def _no_ats(rows: int) -> list[str | None]:
    return [None] if rows == 1 else [None] * rows


def _set_parameters(request: Infer, parameters: Parameters) -> None:
    if parameters.ids is not None:
        request.ids = _ids(parameters.ids, request.rows)
    if parameters.at is not None:
        request.ats = _ats(parameters.at, request.rows)
    if parameters.key is not None:
        request.key = _check_id(parameters.key, "parameters.key")
    if parameters.priority:  # 0 means: as usual
        request.priority = min(max(parameters.priority, 1), PRIORITIES)
    if parameters.timeout:
        request.timeout_us = max(parameters.timeout, 0)


def _set_rows(request: Infer, inputs: list[InputTensor], tail: Raw, interface: Interface) -> None:
    """The rows of a tabular model, by the quickest way that fits what was sent."""
    if len(inputs) == 1 and inputs[0].name == MATRIX and MATRIX not in interface.inputs:
        _set_matrix(request, inputs[0], tail, interface)
    elif request.rows != 1 or tail or not _set_one_row(request, inputs, interface):
        request.columns = _columns(inputs, tail, request.rows, interface)


def _set_one_row(request: Infer, inputs: list[InputTensor], interface: Interface) -> bool:
    """One row in JSON, in one pass over its tensors; False when something is unusual, for `_columns` to say what."""
    features = [_NAN] * len(interface.columns)
    record: dict[str, Any] = {}
    places = interface.places
    for tensor in inputs:
        at = places.get(tensor.name)
        data = tensor.data
        shape = tensor.shape
        if at is None or data is None or len(data) != 1 or (shape != _ONE and shape != _ONE_BY_ONE):  # noqa: PLR1714
            return False
        value = data[0]
        if tensor.parameters is not None or type(value) is list:
            return False
        rule = interface.columns[at]
        features[at] = rule.feature(tensor.datatype, value)
        record[rule.name] = value
    if len(record) != len(features) or len(inputs) != len(features):
        if len(record) != len(inputs):
            return False
        for rule in interface.columns:
            if rule.name not in record:
                if rule.column.required:
                    return False
                record[rule.name] = None
    request.records, request.features = [record], [features]
    return True


def _set_matrix(request: Infer, tensor: InputTensor, tail: Raw, interface: Interface) -> None:
    """All columns as one tensor ``x`` of shape [rows, width], in the order of the metadata: the shortest request.

    A category is its rank, as the metadata lists them; NaN is unknown.
    """
    columns = interface.columns
    width = len(columns)
    if tensor.shape != (request.rows, width) or request.rows < 1:
        raise BadRequestError(f"input 'x': shape {list(tensor.shape)} does not fit [rows, {width}]")
    size = None if tensor.parameters is None else tensor.parameters.binary_data_size
    if size is None:
        values: Sequence[Any] = _matrix_json(tensor, request.rows * width)
    else:
        _require_piece(tensor, len(tail), 0, size)
        if size != len(tail):
            raise BadRequestError(f"body: {len(tail) - size} bytes after the last binary tensor belong to no input")
        values = binary_floats(MATRIX, tensor.datatype, tail, request.rows * width)
    records: list[dict[str, Any]] = []
    features: list[Sequence[float]] = []
    names, lows, highs = interface.bounds
    for row in range(request.rows):
        part = values[row * width : (row + 1) * width]
        record: dict[str, Any] = dict(zip(names, part, strict=True))
        # Two passes: most elements are numbers within their bounds, and finding the others is quick.
        for at in [i for i, value in enumerate(part) if not lows[i] <= value <= highs[i]]:
            record[names[at]] = columns[at].from_matrix(row, part[at])
        records.append(record)
        features.append(part)
    request.records, request.features = records, features


def _matrix_json(tensor: InputTensor, count: int) -> list[float]:
    data = tensor.data
    if data is None:
        raise BadRequestError("input 'x': has neither data nor binary_data_size")
    if data and type(data[0]) is list:
        data = [value for row in data for value in (row if type(row) is list else [row])]
    if len(data) != count:
        raise BadRequestError(f"input 'x': {len(data)} values in data, its shape is {list(tensor.shape)}")
    for index, value in enumerate(data):
        if type(value) is not float and type(value) is not int and value is not None:
            raise BadRequestError(f"input 'x': value {index}: expected a number or null, got {value!r:.40}")
    return [_NAN if value is None else value for value in data]


def _parse(data: Raw) -> Body:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"body: {error}") from error
    except RecursionError as error:
        raise BadRequestError("body: nested too deeply") from error


def _rows(inputs: list[InputTensor]) -> int:
    if not inputs:
        raise BadRequestError("inputs: empty; send one tensor for each column of the model")
    rows = inputs[0].shape[0] if inputs[0].shape else 0
    if rows > MAX_ROWS:
        raise TooLargeError(f"inputs[0].shape: {rows} rows; at most {MAX_ROWS} are answered at once")
    return rows


def _columns(inputs: list[InputTensor], tail: Raw, rows: int, interface: Interface) -> dict[str, Values]:
    """Each input's values, checked; one pass, for this is the hottest loop of the worker."""
    ready: dict[str, Values] = {}
    shapes = ((rows,), (rows, 1))
    offset = 0
    for tensor in inputs:
        name = tensor.name
        rule = interface.inputs.get(name)
        if rule is None:
            raise interface.unknown(name)
        if name in ready:
            raise BadRequestError(f"input {name!r}: occurs twice")
        if tensor.shape not in shapes or rows < 1:
            raise _bad_shape(tensor)
        size = None if tensor.parameters is None else tensor.parameters.binary_data_size
        if size is None:
            values: Values = _json_values(tensor, rows)
        else:
            values = binary_values(name, tensor.datatype, _piece(tensor, tail, offset, size), rows)
            offset += size
        rule.check(tensor.datatype, values)
        ready[name] = values
    if offset != len(tail):
        raise BadRequestError(f"body: {len(tail) - offset} bytes after the last binary tensor belong to no input")
    if len(ready) != len(interface.inputs):
        interface.fill(ready, rows)
    return ready


def _tensors(inputs: list[InputTensor], tail: Raw, rows: int, interface: Interface) -> list[Array]:
    """A tensor model's inputs in the graph's order, checked; the arrays look into the request's own bytes."""
    ready: dict[str, Array] = {}
    view = memoryview(tail)
    offset = 0
    for tensor in inputs:
        rule = interface.tensors.get(tensor.name)
        if rule is None:
            raise interface.unknown(tensor.name)
        if tensor.name in ready:
            raise BadRequestError(f"input {tensor.name!r}: occurs twice")
        if tensor.shape[:1] != (rows,) or rows < 1:
            raise BadRequestError(f"input {tensor.name!r}: shape {list(tensor.shape)}: all inputs need the same rows")
        size = None if tensor.parameters is None else tensor.parameters.binary_data_size
        raw = None
        if size is not None:
            _require_piece(tensor, len(tail), offset, size)
            raw = view[offset : offset + size]
            offset += size
        ready[tensor.name] = rule.array(tensor.datatype, tensor.shape, raw, tensor.data)
    if offset != len(tail):
        raise BadRequestError(f"body: {len(tail) - offset} bytes after the last binary tensor belong to no input")
    missing = [name for name in interface.tensors if name not in ready]
    if missing:
        raise BadRequestError(f"input {missing[0]!r}: missing")
    return [ready[name] for name in interface.tensors]


def _bad_shape(tensor: InputTensor) -> BadRequestError:
    return BadRequestError(
        f"input {tensor.name!r}: shape {list(tensor.shape)} does not fit; "
        "expected [rows] or [rows, 1], with the same number of rows, 1 or more, for every input"
    )


def _json_values(tensor: InputTensor, rows: int) -> list[Any]:
    data = tensor.data
    if data is None:
        raise BadRequestError(f"input {tensor.name!r}: has neither data nor binary_data_size")
    if data and type(data[0]) is list:  # [[1], [2]] is allowed for shape [rows, 1]
        data = [value for row in data for value in (row if type(row) is list else [row])]
    if len(data) != rows:
        raise BadRequestError(f"input {tensor.name!r}: {len(data)} values in data, {rows} in shape")
    return data


def _piece(tensor: InputTensor, tail: Raw, offset: int, size: int) -> Raw:
    """The tensor's own bytes behind the JSON part."""
    _require_piece(tensor, len(tail), offset, size)
    return tail[offset : offset + size]


def _require_piece(tensor: InputTensor, tail_bytes: int, offset: int, size: int) -> None:
    if tensor.data is not None:
        raise BadRequestError(f"input {tensor.name!r}: has both data and binary_data_size; send one of them")
    if size < 0 or offset + size > tail_bytes:
        left = tail_bytes - offset
        raise BadRequestError(f"input {tensor.name!r}: binary_data_size {size} goes beyond the {left} bytes left")


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
        moment(text)  # as the store will read it: what passed here must not fail there
    except (ValueError, OverflowError) as error:
        raise BadRequestError(
            f"{field}: {text[:40]!r} is no RFC 3339 time with a zone, such as 2026-01-31T09:30:00Z"
        ) from error


def _wanted(message: Any, outputs: tuple[TensorSpec, ...]) -> tuple[bool | None, ...]:
    """For each output of the model: its bytes, its JSON, or nothing of it."""
    whole = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        if len(outputs) == 1:
            return _BINARY_ONLY if whole else _JSON_ONLY
        return (whole,) * len(outputs)
    wanted: dict[str, bool | None] = dict.fromkeys(spec.name for spec in outputs)
    for index, asked in enumerate(message.outputs):
        if asked.name not in wanted:
            known = ", ".join(wanted)
            raise BadRequestError(f"outputs[{index}].name: {asked.name[:60]!r} is unknown; there are: {known}")
        binary = asked.parameters.binary_data if asked.parameters else None
        wanted[asked.name] = whole if binary is None else binary
    return tuple(wanted.values())


def encode_values(interface: Interface, request: Infer, ids: Sequence[str], values: list[float]) -> bytes:
    """The JSON answer of a model with one float output for each row: the common case, put together from pieces."""
    if request.rows == 1:
        begin, output_begin = interface.begin, interface.output_begin
        return b'%b%b%b1],"data":%b}]}' % (begin, _encode(request.id), output_begin, _encode(values))
    rows = b"%d" % request.rows
    tail = b'],"parameters":{"ids":%b}}' % _encode(ids)
    return b"".join(
        (interface.begin, _encode(request.id), interface.output_begin, rows, b'],"data":', _encode(values), b"}", tail)
    )


def encode_raw(interface: Interface, request: Infer, ids: Sequence[str], values: list[float]) -> tuple[bytes, int]:
    """The same in binary, with the length of its JSON part."""
    rows = len(values)
    begin, output_begin = interface.begin, interface.output_begin
    if rows == 1:
        head = b'%b%b%b1],"parameters":{"binary_data_size":4}}]}' % (begin, _encode(request.id), output_begin)
        return head + _pack_one(values[0]), len(head)
    tail = b'}}],"parameters":{"ids":%b}}' % _encode(ids)
    size = b'%d],"parameters":{"binary_data_size":%d' % (rows, 4 * rows)
    head = b"".join((begin, _encode(request.id), output_begin, size, tail))
    return head + struct.pack(f"<{rows}f", *values), len(head)


def encode(
    interface: Interface, request: Infer, ids: Sequence[str], outputs: Sequence[Array]
) -> tuple[bytes, int | None]:
    """The answer's body and, when tensors follow in binary, the length of its JSON part."""
    parameters = {"ids": list(ids)} if request.rows > 1 else None
    tensors: list[_OutTensor] = []
    raws: list[bytes] = []
    for spec, output, wanted in zip(interface.outputs, outputs, request.wanted, strict=True):
        if wanted is None:
            continue
        tensor = _OutTensor(spec.name, spec.datatype, list(output.shape))
        if wanted:
            raw = np.ascontiguousarray(output, _DTYPES[spec.datatype]).tobytes()
            tensor.parameters = {"binary_data_size": len(raw)}
            raws.append(raw)
        else:
            tensor.data = output.reshape(-1).tolist()
        tensors.append(tensor)
    head = _encode(_Answer(interface.model, interface.version, request.id, tensors, parameters))
    return (head + b"".join(raws), len(head)) if raws else (head, None)
