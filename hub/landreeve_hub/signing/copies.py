"""Folders beside the real keys, where a drill tries things on copies of them: gone afterwards or at the next start."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "drill-"


@contextmanager
def place(state: Path) -> Iterator[Path]:
    """A folder of mode 0700 that whoever uses it holds."""
    sweep(state)
    with tempfile.TemporaryDirectory(dir=state, prefix=_PREFIX) as name, _held(Path(name)):
        yield Path(name)


def sweep(state: Path) -> None:
    """Remove what killed drills have left: copies of keys must not outlive those that are moved away."""
    for folder in state.glob(f"{_PREFIX}*/"):
        try:
            with _held(folder):
                shutil.rmtree(folder)
        except BlockingIOError:
            continue  # somebody is at it


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """`BlockingIOError` when another process holds it; a killed one holds nothing."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
