"""An output that appears under its name only when it is whole, and how far it has come.

While it is made it is called ``.NAME.part``, with the rows that were refused in ``.NAME.rejected.part`` and the
progress in ``.NAME.progress``. The progress is replaced in one step after each batch; whoever goes on after a kill
cuts both files back to what it says, so no row is there twice and none is missing.
"""

import os
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from landreeve_agent.doors.errors import StorageError


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How far a file has come. ``key`` says of what: another input or other options begin anew."""

    key: str
    offset: int = 0
    line: int = 1
    out_bytes: int = 0
    rejected_bytes: int = 0
    answered: int = 0
    rejected: int = 0
    first_reason: str = ""
    whole: bool = False


class Part:
    """The two growing files and their mark. One process works on it at a time."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.rejected = rejected_beside(output)
        self._out_path = output.with_name(f".{output.name}.part")
        self._rejected_path = output.with_name(f".{output.name}.rejected.part")
        self._mark_path = output.with_name(f".{output.name}.progress")
        self._out: BinaryIO | None = None
        self._bad: BinaryIO | None = None

    def open(self, key: str) -> Mark:
        """Go on where the last attempt at the same ``key`` stopped, or begin anew. `StorageError` when that
        cannot be written."""
        mark = self._read_mark(key)
        if mark.whole:
            return mark  # only its last steps are left: the files may have their names already
        try:
            self._out = _cut(self._out_path, mark.out_bytes)
            self._bad = _cut(self._rejected_path, mark.rejected_bytes)
        except OSError as error:
            raise _unwritten(self.output, error) from error
        return mark

    @property
    def out(self) -> BinaryIO:
        """The growing output, for who writes it in another way than by appending."""
        if self._out is None:
            raise RuntimeError("the part has not been opened")
        return self._out

    def append(self, mark: Mark, out: bytes, rejected: bytes) -> Mark:
        """Add to the files, then say so: in this order, or a kill in between would count rows that are not there."""
        grown = msgspec.structs.replace(
            mark, out_bytes=mark.out_bytes + len(out), rejected_bytes=mark.rejected_bytes + len(rejected)
        )
        try:
            for file, data in ((self._out, out), (self._bad, rejected)):
                if file is not None and data:
                    _write(file, data)
            self._write_mark(grown)
        except OSError as error:
            raise _unwritten(self.output, error) from error
        return grown

    def finish(self, mark: Mark) -> None:
        """Give both files their names. Safe to repeat after a kill at any moment."""
        try:
            for file in (self._out, self._bad):
                if file is not None and not file.closed:
                    os.fsync(file.fileno())
            self.close()
            self._write_mark(msgspec.structs.replace(mark, whole=True))
            if mark.rejected:
                _move(self._rejected_path, self.rejected)
            else:
                self._rejected_path.unlink(missing_ok=True)
            _move(self._out_path, self.output)
            _sync_folder(self.output.parent)
        except OSError as error:
            raise _unwritten(self.output, error) from error

    def forget(self) -> None:
        """Drop the mark and what is unfinished: the output is whole, or not wanted any more."""
        self.close()
        for path in (self._out_path, self._rejected_path, self._mark_path):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for file in (self._out, self._bad):
            if file is not None:
                file.close()

    def _read_mark(self, key: str) -> Mark:
        """The stored progress, if it is of the same work and its files hold at least what it says."""
        try:
            mark = msgspec.json.decode(self._mark_path.read_bytes(), type=Mark)
            if mark.key != key:
                return Mark(key=key)
            if mark.whole:
                return mark
            sizes = self._out_path.stat().st_size, self._rejected_path.stat().st_size
        except (OSError, msgspec.DecodeError):
            return Mark(key=key)
        return mark if sizes[0] >= mark.out_bytes and sizes[1] >= mark.rejected_bytes else Mark(key=key)

    def _write_mark(self, mark: Mark) -> None:
        fresh = self._mark_path.with_name(self._mark_path.name + ".new")
        fresh.write_bytes(msgspec.json.encode(mark))
        fresh.replace(self._mark_path)


def _unwritten(output: Path, error: OSError) -> StorageError:
    return StorageError(f"{output.parent}: {error.strerror}; the result cannot be written there")


def rejected_beside(output: Path) -> Path:
    """Where the refused rows of an output are listed."""
    return output.with_name(f"{output.stem}.rejected.jsonl")


def _cut(path: Path, size: int) -> BinaryIO:
    """The file, cut to its first bytes; unbuffered, so that closing it has nothing left to fail at."""
    file = path.open("r+b" if path.exists() else "w+b", buffering=0)
    file.truncate(size)
    file.seek(size)
    return cast("BinaryIO", file)


def _write(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _move(source: Path, target: Path) -> None:
    if source.exists():  # else an attempt before this one has done it
        source.replace(target)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
