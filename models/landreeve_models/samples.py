"""The rows a release carries: its golden set and its calibration sample, read with reasons.

A tabular release keeps ``x``, ``expected`` and ``label``; a tensor model ``input.<name>`` and ``expected.<name>`` for
each of its tensors, and ``label``. In memory both are alike: one array for each input and output of the graph, in its
order.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.manifest import TensorSpec
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, load_file

from landreeve_models.definition import Definition

Array = NDArray[Any]
DTYPES: Mapping[str, type[np.generic]] = {
    "FP64": np.float64, "FP32": np.float32, "FP16": np.float16, "INT64": np.int64, "INT32": np.int32,
    "INT16": np.int16, "INT8": np.int8, "UINT64": np.uint64, "UINT32": np.uint32, "UINT16": np.uint16,
    "UINT8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
SEEN = 4096
_MOST_HEAD_BYTES = 1024 * 1024
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


class BadSampleError(ValueError):
    """A golden or calibration set that does not fit its model; the text says which tensor and why."""


@dataclass(frozen=True, slots=True)
class Golden:
    """``inputs`` and the release's own ``expected`` outputs, in the graph's order, each with n rows; ``label`` is the
    truth, float32 (n,)."""

    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]
    label: NDArray[np.float32]

    @property
    def rows(self) -> int:
        """Rows in the set."""
        return len(self.label)

    def part(self, first: int, last: int) -> tuple[Array, ...]:
        """The inputs of rows ``first`` up to ``last``."""
        return tuple(array[first:last] for array in self.inputs)


def read_golden(folder: Path, definition: Definition, files: Files = PLAIN) -> Golden:
    """The golden set of a release folder, every shape checked; `BadSampleError` when something does not fit."""
    tensors = _load(folder / "golden.safetensors", files)
    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]
    if definition.tabular:
        width = len(definition.columns)
        inputs = (_array(tensors, "x", TensorSpec(name="x", datatype="FP32", shape=(-1, width))),)
        expected = (_array(tensors, "expected", TensorSpec(name="expected", datatype="FP32", shape=(-1,))),)
    else:
        inputs = tuple(_array(tensors, f"input.{spec.name}", spec) for spec in definition.tensors)
        expected = tuple(_array(tensors, f"expected.{spec.name}", spec) for spec in definition.outputs)
    label = _array(tensors, "label", TensorSpec(name="label", datatype="FP32", shape=(-1,)))
    rows = {len(array) for array in (*inputs, *expected, label)}
    if len(rows) != 1 or 0 in rows:
        raise BadSampleError(f"golden.safetensors: its tensors have {sorted(rows)} rows; all need the same, 1 or more")
    return Golden(inputs, expected, label)


def read_calibration(folder: Path, definition: Definition, files: Files = PLAIN) -> tuple[Array, ...]:
    """The calibration sample of a release folder, one array for each input; `BadSampleError` when it does not fit."""
    tensors = _load(folder / "calibration.safetensors", files)
    found = tuple(_array(tensors, name, spec) for name, spec in _inputs(definition).items())
    if len({len(array) for array in found}) != 1:
        raise BadSampleError("calibration.safetensors: its tensors differ in rows")
    return found


def read_first_row(folder: Path, definition: Definition, files: Files = PLAIN) -> tuple[Array, ...]:
    """The first row of the calibration sample, one array for each input, the others unread: a set of pictures is larger
    than the model that is to be warmed up with one. `BadSampleError` when it does not fit."""
    path, specs = folder / "calibration.safetensors", _inputs(definition)
    try:
        (length,) = struct.unpack("<Q", files.part(path, 0, 8))
        head = json.loads(files.part(path, 8, min(length, _MOST_HEAD_BYTES)))
        rows = {name: _first_row(files, path, 8 + length, head[name]) for name in specs if name in head}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise BadSampleError(f"{path.name}: {error}") from error
    return tuple(_array(rows, name, spec) for name, spec in specs.items())


def _inputs(definition: Definition) -> dict[str, TensorSpec]:
    """The tensors of the calibration sample, by name."""
    if definition.tabular:
        return {"x": TensorSpec(name="x", datatype="FP32", shape=(-1, len(definition.columns)))}
    return {f"input.{spec.name}": spec for spec in definition.tensors}


def _first_row(files: Files, path: Path, begin: int, entry: Mapping[str, Any]) -> Array:
    """One row by the tensor's entry in the file's head (https://github.com/huggingface/safetensors, "Format")."""
    dtype, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), [1, *entry["shape"][1:]]
    wanted = int(np.prod(shape)) * dtype.itemsize
    first, last = entry["data_offsets"]
    if not entry["shape"] or entry["shape"][0] < 1 or last - first < wanted:
        raise ValueError("it has no row")
    row = np.frombuffer(files.part(path, begin + first, wanted), dtype).reshape(shape)
    return np.array(row)


def derived_rows(definition: Definition, inputs: Sequence[Array]) -> list[dict[str, float]]:
    """The numbers a tensor model's rows are captured by, a dict for each row: see `definition.derived_columns`.

    Mean and standard deviation are of at most `SEEN` evenly spaced elements: enough to see a lamp fail or a language
    change, and cheap beside any run.
    """
    rows: list[dict[str, float]] = [{} for _ in range(len(inputs[0]))]
    for spec, array in zip(definition.tensors, inputs, strict=True):
        flat = array.reshape(len(array), -1)
        seen = flat[:, :: max(1, -(-flat.shape[1] // SEEN))].astype(np.float64)
        for row, mean, std in zip(rows, seen.mean(axis=1).tolist(), seen.std(axis=1).tolist(), strict=True):
            row[f"{spec.name}.mean"], row[f"{spec.name}.std"] = mean, std
    return rows


def predictions(definition: Definition, outputs: Sequence[Array]) -> list[float]:
    """One number for each row's answer: the probability or score itself, a classification's highest score, the mean
    component of an embedding. It is what is captured and watched for drift."""
    first = outputs[0].reshape(len(outputs[0]), -1)
    if definition.task == "classification":
        found: list[float] = first.max(axis=1).tolist()
    elif definition.task == "embedding":
        found = first.mean(axis=1).tolist()
    else:
        found = first[:, 0].tolist()
    return found


def _load(path: Path, files: Files) -> dict[str, Array]:
    try:
        return load_file(path) if files is PLAIN else load(files.read(path))
    except (OSError, SafetensorError) as error:
        raise BadSampleError(f"{path.name}: {error}") from error


def _array(tensors: Mapping[str, Array], name: str, spec: TensorSpec) -> Array:
    found = tensors.get(name)
    if found is None:
        raise BadSampleError(f"tensor {name!r} is missing; there are: {', '.join(sorted(tensors)) or 'none'}")
    fits = len(found.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, found.shape, strict=True)
    )
    if not fits:
        raise BadSampleError(f"tensor {name!r}: shape {list(found.shape)} does not fit {list(spec.shape)}")
    return np.ascontiguousarray(found, DTYPES[spec.datatype])
