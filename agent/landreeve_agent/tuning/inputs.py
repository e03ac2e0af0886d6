"""What preflight needs of a release folder, read with reasons."""

from pathlib import Path

import numpy as np
from landreeve.release.manifest import BadReleaseError, Gates, parse_config
from safetensors import SafetensorError
from safetensors.numpy import load_file

from landreeve_agent.serving.session import Tensor
from landreeve_agent.tuning.gate import Golden


class RefusedError(Exception):
    """The release fails preflight."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(f"{cause}: {sentence}")
        self.cause = cause
        self.sentence = sentence


def read_gates(folder: Path) -> Gates:
    """The release's gates; `RefusedError` when its config is none."""
    try:
        return parse_config((folder / "config.json").read_bytes()).gates
    except (OSError, BadReleaseError) as error:
        raise RefusedError("bad_release", f"config.json: {error}") from error


def read_golden(folder: Path) -> Golden:
    """The golden set, every shape checked; `RefusedError` when they do not fit."""
    try:
        tensors = load_file(folder / "golden.safetensors")
        golden = Golden(*(np.ascontiguousarray(tensors[name], np.float32) for name in ("x", "expected", "label")))
    except (OSError, KeyError, SafetensorError) as error:
        raise RefusedError("bad_release", f"golden.safetensors: {error}") from error
    rows = len(golden.x)
    if golden.x.ndim != 2 or rows < 1 or golden.expected.shape != (rows,) or golden.label.shape != (rows,):
        shapes = f"x {golden.x.shape}, expected {golden.expected.shape}, label {golden.label.shape}"
        raise RefusedError("bad_release", f"golden.safetensors: shapes do not fit: {shapes}")
    return golden


def read_calibration(folder: Path) -> Tensor:
    """The calibration sample, float32 (n, width); `ValueError` says what is wrong with it."""
    try:
        return np.ascontiguousarray(load_file(folder / "calibration.safetensors")["x"], np.float32)
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"calibration.safetensors: {error}") from error
