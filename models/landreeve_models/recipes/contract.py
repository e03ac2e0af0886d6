"""What every recipe offers: fit, predict, export; and the checkpoint that survives a power cut."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import safetensors.numpy
from landreeve.blobs.files import PLAIN, Files
from numpy.typing import NDArray
from safetensors import SafetensorError

Floats = NDArray[np.float32]
Probabilities = NDArray[np.float64]
Progress = Callable[[float, str], None]


class BadConfigurationError(ValueError):
    """A recipe's configuration that cannot be used; the text names the setting."""


class Fitted(Protocol):
    """A fitted recipe."""

    def predict(self, x: Floats) -> Probabilities:
        """Probability of label 1 for each row of x (n, width)."""
        ...

    def export_onnx(self) -> bytes:
        """The graph of every release: ``x`` float32 (n, width) to float32 probability (n,)."""
        ...


@dataclass(frozen=True, slots=True)
class Data:
    """Training rows and validation rows, in order of time: x float32 (n, width) with NaN for unknown, y 0 or 1."""

    x: Floats
    y: Floats
    x_val: Floats
    y_val: Floats


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file of named arrays, replaced atomically: after kill -9 it is the old one or the new one."""

    path: Path
    files: Files = PLAIN

    def load(self, fingerprint: str) -> dict[str, NDArray[Any]] | None:
        """The arrays last saved for this fingerprint, or None when there are none (or of another fit)."""
        try:
            arrays = safetensors.numpy.load(self.files.read(self.path))
        except (OSError, SafetensorError):
            return None  # there is none, or the disk damaged it: starting over gives the same weights, only later
        kept = arrays.pop("fingerprint", None)
        return arrays if kept is not None and kept.tobytes() == bytes.fromhex(fingerprint) else None

    def save(self, fingerprint: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep these arrays instead."""
        named = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        named["fingerprint"] = np.frombuffer(bytes.fromhex(fingerprint), dtype=np.uint8)
        self.files.write(self.path, safetensors.numpy.save(named))


def fingerprint_of(data: Data, config: Mapping[str, Any]) -> str:
    """What a checkpoint belongs to: the data and the configuration, as a sha256."""
    digest = hashlib.sha256(msgspec.json.encode(dict(config), order="sorted"))
    for array in (data.x, data.y, data.x_val, data.y_val):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
