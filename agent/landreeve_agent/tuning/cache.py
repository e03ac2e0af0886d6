"""A release's plan, kept in its folder with what it was chosen on: the next preflight here takes it after a look.

It is believed only while nothing it depends on has changed: the release's files, the box class, what was asked for, and
the made graph itself.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from landreeve.blobs.files import PLAIN, Files

from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.report import PreflightReport, Task

FILE = "preflight.json"
PROBE_ROWS = 12
_MOST_BYTES = 4 * 1024 * 1024


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A report, the sha256 of the graph its plan runs, and what that answered to the first golden rows (float32)."""

    version: int = 1
    report: PreflightReport
    graph: str
    answers: tuple[bytes, ...]


def read_kept(folder: Path, files: Files = PLAIN) -> Kept | None:
    """What is kept in a release's folder; None when there is nothing or it cannot be read."""
    path = folder / FILE
    try:
        if files.size(path) > _MOST_BYTES:
            return None
        return msgspec.json.decode(files.read(path), type=Kept)
    except (OSError, msgspec.DecodeError):
        return None


def write_kept(folder: Path, kept: Kept, files: Files = PLAIN) -> None:
    """Keep it, whole or not at all."""
    files.write(folder / FILE, msgspec.json.format(msgspec.json.encode(kept), indent=1))


def fingerprint(folder: Path, box_class: str, task: Task, files: Files = PLAIN) -> str:
    """16 hex digits of everything a choice depends on: the release's files, the box class, what was asked for."""
    parts = [box_class, task.wanted, task.objective, msgspec.json.encode(task.limits).decode(), str(task.exhaustive)]
    names = ("model.onnx", "config.json", "golden.safetensors", "calibration.safetensors")
    parts += [digest(folder / name, files) for name in names]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def digest(path: Path, files: Files = PLAIN) -> str:
    """The sha256 of a file's plain bytes; the empty text when there is none."""
    try:
        return hashlib.sha256(files.read(path)).hexdigest()
    except OSError:
        return ""


def clear(folder: Path, kept: Plan, kinds: Iterable[str]) -> None:
    """Remove graphs of earlier choices from a release's folder, all but that of the kept plan."""
    for kind in kinds:
        for path in folder.glob(f"model.{kind}*.onnx"):
            if path.name != kept.graph:
                path.unlink(missing_ok=True)
