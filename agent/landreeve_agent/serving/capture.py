"""The spool: every answered row on file before its answer leaves.

One `os.write` to a file opened with O_APPEND puts all lines of a request into the page cache, where they survive
kill -9 of worker and supervisor. Only a power cut can lose the last seconds: an fsync per request would cost a
thousand times the prediction. The supervisor tails the files into its database, remembering (file, offset).

Names are ``<generation>-<n>.jsonl``; the generation is the worker's start in unix nanoseconds, so names sort by
age and are never used twice, even after the files of an earlier worker have been deleted. A worker holds a lock on the
file it writes: one that is being replaced may still add to a file that is no longer the newest.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

import msgspec

ROTATE_BYTES = 4 * 1024 * 1024
SUFFIX = ".jsonl"


class Line(msgspec.Struct, omit_defaults=True):
    """One answered row. ``p`` is null when the run failed, with the reason in ``err``; ``us`` is the service time
    of its request in microseconds, ``t`` the wall clock in unix seconds, ``at`` the row's own event time. ``unit`` and
    what follows say how a split of the traffic chose who answered (`landreeve_agent.serving.split.Assigned`)."""

    id: str
    at: str | None
    model: str
    version: str
    release: str
    row: dict[str, str | float | None]
    p: float | None
    us: int
    t: float
    shadow: float | None = None
    shadow_release: str | None = None
    err: str | None = None
    unit: str | None = None
    by: str | None = None
    arm: str | None = None
    against: str | None = None
    share: float | None = None


class Sealer(Protocol):
    """What seals lines (`landreeve.sealed.lines.LineSealer`)."""

    def seal(self, name: str, lines: bytes | bytearray) -> bytes: ...


class SpoolError(OSError):
    """The rows could not be written; the text says why. Nothing of them is left in the file."""


class Spool:
    """Appends lines; a new file every 4 MiB. Not safe for threads: the event loop owns it.

    ``now_ns`` is the wall clock at the worker's start.
    """

    def __init__(
        self, folder: Path, now_ns: int, rotate_bytes: int = ROTATE_BYTES, sealer: Sealer | None = None
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._generation = max(now_ns, _newest_generation(folder) + 1)
        self._rotate_bytes = rotate_bytes
        self._sealer = sealer
        self._name = ""
        self._number = 0
        self._size = 0
        self._fd = self._open()

    def _open(self) -> int:
        self._name = f"{self._generation:020d}-{self._number:06d}{SUFFIX}"
        path = self._folder / self._name
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: the reader's patience must do
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return opened

    def append(self, lines: bytes | bytearray) -> None:
        """Write whole lines at once, or nothing and `SpoolError`."""
        if self._sealer is not None:
            lines = self._sealer.seal(self._name, lines)
        try:
            written = os.write(self._fd, lines)
            if written != len(lines):  # the disk is full: take the torn line back, or a reader would choke on it
                os.ftruncate(self._fd, self._size)
        except OSError as error:
            raise SpoolError(f"{self._folder}: {error.strerror}") from error
        if written != len(lines):
            raise SpoolError(f"{self._folder}: only {written} of {len(lines)} bytes fit on the disk")
        self._size += written
        if self._size >= self._rotate_bytes:
            self._rotate()

    def _rotate(self) -> None:
        number, old, name = self._number, self._fd, self._name
        self._number += 1
        try:
            self._fd = self._open()
        except OSError:
            # No room for a new file: the old one goes on growing, which loses nothing.
            self._number, self._name = number, name
            return
        self._size = 0
        os.close(old)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _newest_generation(folder: Path) -> int:
    """The highest generation on file: a clock that went back must not give an older name to newer rows."""
    names = [path.name.partition("-")[0] for path in folder.glob(f"*{SUFFIX}")]
    return max((int(name) for name in names if name.isdigit()), default=0)
