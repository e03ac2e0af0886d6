"""How a blob's plain bytes lie in its file: as they are, or sealed (`landreeve.sealed.blobs`).

The address of a blob is always the sha256 of its plain bytes. Every place that reads or writes blob files goes through
a codec, by position and in pieces, so a store costs the same memory whatever the blob's size.
"""

import io
import os
from pathlib import Path
from typing import Protocol

from landreeve.wire.codec import BLOCK_BYTES


class BlobReader(Protocol):
    """A blob opened for reading by position; `close` it."""

    @property
    def size(self) -> int:
        """Plain bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` plain bytes from ``offset``; fewer at the end. `CorruptBlobError` when they are damaged in a
        way the codec can tell."""
        ...

    def close(self) -> None: ...


class BlobWriter(Protocol):
    """A blob's file being filled by position, in whole blocks of 64 KiB (the last one may be shorter)."""

    def write_at(self, offset: int, data: bytes) -> None: ...

    def read_at(self, offset: int, length: int) -> bytes | None:
        """What was written there before; None where nothing whole was."""
        ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Codec(Protocol):
    """How plain bytes become a file and come back."""

    def stored_bytes(self, size: int) -> int:
        """Length of the file that holds ``size`` plain bytes."""
        ...

    def encode(self, digest: str, data: bytes) -> bytes:
        """The whole file for these plain bytes."""
        ...

    def open(self, path: Path, digest: str) -> BlobReader:
        """`OSError` when there is no such file."""
        ...

    def writer(self, path: Path, digest: str, size: int, *, fresh: bool) -> BlobWriter:
        """A file of its final length with its room on the disk taken; what is in it stays unless ``fresh``."""
        ...


class _File:
    _handle = -1

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()  # a fetch that was cancelled leaves its partial behind


class _PlainReader(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.size = os.fstat(self._handle).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        return read_all(self._handle, offset, length)


class _PlainWriter(_File):
    def write_at(self, offset: int, data: bytes) -> None:
        write_all(self._handle, offset, data)

    def read_at(self, offset: int, length: int) -> bytes | None:
        return read_all(self._handle, offset, length)

    def sync(self) -> None:
        os.fsync(self._handle)


class PlainCodec:
    """The file is the blob."""

    def stored_bytes(self, size: int) -> int:
        return size

    def encode(self, digest: str, data: bytes) -> bytes:
        return data

    def open(self, path: Path, digest: str) -> BlobReader:
        return _PlainReader(path)

    def writer(self, path: Path, digest: str, size: int, *, fresh: bool) -> BlobWriter:
        if fresh:
            path.unlink(missing_ok=True)
        return _PlainWriter(reserved(path, size))


def reserved(path: Path, length: int) -> int:
    """A descriptor of the file made exactly that long with its space taken, keeping what is in it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(handle, length)
        if hasattr(os, "posix_fallocate"):  # absent on macOS, where a developer may run us without the promise
            os.posix_fallocate(handle, 0, length)
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_all(handle: int, offset: int, length: int) -> bytes:
    """`os.pread` until all of it is there or the file ends: Linux gives at most 2 GiB at once."""
    data = os.pread(handle, length, offset)
    if not data or len(data) == length:
        return data
    parts, left = [data], length - len(data)
    while left and (data := os.pread(handle, left, offset + length - left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def write_all(handle: int, offset: int, data: bytes) -> None:
    """`os.pwrite` until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def read_whole(reader: BlobReader) -> bytes:
    """All plain bytes of a reader, held once: a model of 100 MB must not take 300 while it is opened.

    `io.BytesIO` gives out the buffer it was filled in; joining pieces would hold everything twice.
    """
    whole = io.BytesIO()
    if reader.size:
        whole.seek(reader.size - 1)
        whole.write(b"\0")  # the room at once
        whole.seek(0)
    for offset in range(0, reader.size, BLOCK_BYTES):
        whole.write(reader.read_at(offset, BLOCK_BYTES))
    whole.truncate()
    return whole.getvalue()
