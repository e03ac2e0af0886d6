"""The files in a tar, read into memory within limits. Nothing is ever unpacked to a path an archive names."""

import gzip
import io
import tarfile
import zlib
from typing import IO

from landreeve.release.manifest import BadReleaseError
from landreeve.release.paths import check_plain, check_together

MAX_FILES = 96
MAX_ARCHIVE_BYTES = 2 * 1024**3
# Weights hardly shrink and JSON by ten or twenty; zeros shrink a thousandfold.
MAX_RATIO = 64
FREE_BYTES = 16 * 1024 * 1024
_GZIP = b"\x1f\x8b"


def read_members(stream: IO[bytes], limit: int = MAX_ARCHIVE_BYTES) -> dict[str, bytes]:
    """Every plain file of a tar (plain or gzip) by its path; `BadReleaseError` says why an archive is refused.

    Refused are links, devices, sparse files, absolute paths and ``..``, names that collide, archives that unpack to
    more than ``limit`` bytes or to ``MAX_RATIO`` times what was sent.
    """
    source = _Counted(stream)
    head = source.peek(2)
    try:
        inner: IO[bytes] = gzip.GzipFile(fileobj=source) if head == _GZIP else source  # type: ignore[assignment]
        bounded = _Bounded(inner, source, limit)
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            files = _read(archive, limit)
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        if isinstance(error, BadReleaseError):
            raise
        raise BadReleaseError(f"archive: not a tar file that can be read ({error}); send tar or tar.gz") from error
    check_together(files)
    return files


def _read(archive: tarfile.TarFile, limit: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    room, seen = limit, 0
    for member in archive:
        seen += 1
        room -= max(0, member.size)
        if room < 0 or seen > MAX_FILES * 2 or len(files) >= MAX_FILES:
            raise BadReleaseError(f"archive: more than {MAX_FILES} files or {limit:,} bytes")
        if member.isdir():
            continue
        name = _plain(member)
        if name in files:
            raise BadReleaseError(f"archive: {name!r} occurs twice")
        content = archive.extractfile(member)
        files[name] = content.read() if content else b""
        if len(files[name]) != member.size:
            raise BadReleaseError(f"archive: {name!r} is cut off")
    return files


def _plain(member: tarfile.TarInfo) -> str:
    name = member.name.removeprefix("./")
    if not member.isfile() or member.issparse():
        raise BadReleaseError(f"archive: {name[:120]!r} is no plain file; links and devices are not accepted")
    return check_plain(name)


class _Counted(io.RawIOBase):
    """What was sent, counted."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._ahead = b""
        self.count = 0

    def peek(self, size: int) -> bytes:
        """The first bytes, which are read again."""
        self._ahead = self._stream.read(size)
        return self._ahead

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data, self._ahead = (self._ahead[:size], self._ahead[size:]) if self._ahead else (self._stream.read(size), b"")
        self.count += len(data)
        return data


class _Bounded(io.RawIOBase):
    """What it unpacks to, refused where that is out of proportion."""

    def __init__(self, inner: IO[bytes], source: _Counted, limit: int) -> None:
        super().__init__()
        self._inner = inner
        self._source = source
        self._limit = limit + 512 * 4 * MAX_FILES
        self._count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._count += len(data)
        if self._count > min(self._limit, FREE_BYTES + MAX_RATIO * self._source.count):
            raise BadReleaseError(f"archive: unpacks to more than {MAX_RATIO} times its size, or {self._limit:,} bytes")
        return data
