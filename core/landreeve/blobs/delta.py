"""From the version that is here to the next one: deltas of blobs, decoded as a stream in constant memory.

Four methods, of which the hub ships the smallest:

``xor``    target XOR base, bytes regrouped by their place in a 4-byte word, zstd: weights that moved a little differ
           only in low bits, and those of one place resemble each other. Without a base it only regroups.
``patch``  zstd with the base as its dictionary ("patch from"), for files that grew or shifted. Cut into segments of
           8 MiB, each with at most 8 MiB of the base, so that neither side needs memory for a whole file.
``whole``  zstd without a base.
``words``  numbers as differences, sorted by how large a difference is expected (`landreeve.blobs.words`): weights that
           were trained on. Only for devices that say so; made by `landreeve_hub.registry.word_delta`.

A delta begins with ``LRD1``, its method (1 to 4) and three zero bytes, then base and target, each as 32 bytes of
sha256 and 8 bytes of length (big-endian; a base of length 0 is none). A delta proves nothing: who decodes it checks
what comes out, block by block, against digests that were signed.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, BinaryIO, Protocol, cast

import zstandard

from landreeve.blobs.errors import BlobError
from landreeve.wire.ids import check_digest

HEADER_BYTES = 88
CHUNK_BYTES = 1024 * 1024
SEGMENT_BYTES = 8 * 1024 * 1024
MAX_TARGET_BYTES = 4 * 1024**3
# zstd 19 gains 1 to 15 % on 9 and costs a second for two MB, once for a whole fleet; large files do with 9.
LEVEL, LARGE_LEVEL, LARGE_BYTES = 19, 9, 64 * 1024 * 1024
_WORD_BYTES = 4
_READ_BYTES = 64 * 1024
_WINDOW_LOG, _PATCH_WINDOW_LOG = 22, 24  # 4 MiB; and a segment with all of its base
_HEADER = struct.Struct(">4sB3s32sQ32sQ")
_SEGMENT = struct.Struct(">QII")
_MAGIC = b"LRD1"
_NOTHING = "0" * 64


class BadDeltaError(BlobError):
    """Bytes that are no delta, or not the one they should be; the text says what is wrong and where."""


class Method(StrEnum):
    """How a delta was made. The values travel in messages."""

    XOR = "xor"
    PATCH = "patch"
    WHOLE = "whole"
    WORDS = "words"


_NUMBERS = {Method.XOR: 1, Method.PATCH: 2, Method.WHOLE: 3, Method.WORDS: 4}
_METHODS = {number: method for method, number in _NUMBERS.items()}


class Source(Protocol):
    """A blob that can be read at any place."""

    @property
    def size(self) -> int: ...
    def read_at(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Named:
    """A blob and its sha256."""

    digest: str
    source: Source


class Readable(Protocol):
    """A file, as far as it is read from front to end."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Header:
    """What a delta leads from and to. ``base`` is empty for none."""

    method: Method
    base: str
    base_bytes: int
    target: str
    target_bytes: int

    def encode(self) -> bytes:
        base = bytes.fromhex(check_digest(self.base or _NOTHING))
        number, target = _NUMBERS[self.method], bytes.fromhex(check_digest(self.target))
        return _HEADER.pack(_MAGIC, number, bytes(3), base, self.base_bytes, target, self.target_bytes)


def read_header(delta: Readable) -> Header:
    """The header at the front of a delta; `BadDeltaError` when there is none."""
    data = delta.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        raise BadDeltaError(f"delta of {len(data)} bytes: shorter than its header of {HEADER_BYTES}")
    magic, number, reserved, base, base_bytes, target, target_bytes = _HEADER.unpack(data)
    if magic != _MAGIC or reserved != bytes(3) or number not in _METHODS:
        raise BadDeltaError(f"delta: {data[:8].hex()} begins no format that is known here")
    if not 0 < target_bytes <= MAX_TARGET_BYTES:
        raise BadDeltaError(f"delta: a target of {target_bytes} bytes; accepted are 1 to {MAX_TARGET_BYTES}")
    if (base_bytes == 0) != (base == bytes(32)):
        raise BadDeltaError("delta: names a base without a length, or a length without a base")
    method = _METHODS[number]
    if method in ({Method.WHOLE} if base_bytes else {Method.PATCH, Method.WORDS}):
        raise BadDeltaError(f"delta: method {method} with a base of {base_bytes} bytes")
    return Header(method, base.hex() if base_bytes else "", base_bytes, target.hex(), target_bytes)


def decode(delta: Readable, header: Header, base: Source | None) -> Iterator[bytes]:
    """The target in pieces of at most 1 MiB, ``header.target_bytes`` in all; ``delta`` stands after its header.

    `BadDeltaError` as soon as the delta cannot be one: it would give more or fewer bytes, needs more memory than
    the format allows, reads outside the base, or goes on after its end. What came before is to be doubted as well.
    """
    if header.base_bytes and (base is None or base.size != header.base_bytes):
        found = "none" if base is None else f"one of {base.size}"
        raise BadDeltaError(f"delta: needs a base of {header.base_bytes} bytes, here is {found}")
    try:
        if header.method is Method.PATCH:
            assert base is not None  # noqa: S101 - read_header
            yield from _patched(delta, header, base)
        elif header.method is Method.WORDS:
            assert base is not None  # noqa: S101 - read_header
            yield from _worded(delta, header, base)
        else:
            yield from _streamed(delta, header, base)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BadDeltaError(f"delta: {error or 'out of memory'}") from error
    if delta.read(1):
        raise BadDeltaError("delta: goes on after its end")


def encode(method: Method, base: Named | None, target: Named, out: BinaryIO) -> None:
    """Write the delta from ``base`` (None for no base) to ``target``.

    Memory stays below some 300 MB whatever the sizes (zstd 19 over 16 MiB); the sources are believed. Every method but
    `Method.WORDS`, which only the hub can make.
    """
    if method is Method.WORDS:
        raise ValueError("words are told by the hub alone")
    origin = ("", 0) if base is None else (base.digest, base.source.size)
    out.write(Header(method, *origin, target.digest, target.source.size).encode())
    if method is Method.PATCH:
        if base is None:
            raise ValueError("a patch needs a base")
        _write_patch(base.source, target.source, out)
        return
    turn = _crossed(base.source if base is not None else None) if method is Method.XOR else _as_it_is
    level = LARGE_LEVEL if target.source.size > LARGE_BYTES else LEVEL
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=_WINDOW_LOG)
    size = target.source.size
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    pieces = ((offset, target.source.read_at(offset, CHUNK_BYTES)) for offset in range(0, size, CHUNK_BYTES))
    out.writelines(packer.compress(turn(*piece)) for piece in pieces)
    out.write(packer.flush())


def _streamed(delta: Readable, header: Header, base: Source | None) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    back = _uncrossed(base) if header.method is Method.XOR else _as_it_is
    # The reader takes more of the file than the frame has; what follows a frame is found by asking it for more.
    with unpacker.stream_reader(
        cast("IO[bytes]", delta), read_size=65536, read_across_frames=True, closefd=False
    ) as frame:
        for offset in range(0, header.target_bytes, CHUNK_BYTES):
            yield back(offset, _exactly(frame.read, min(CHUNK_BYTES, header.target_bytes - offset), offset))
        if frame.read(1):
            raise BadDeltaError(f"delta: gives more than the {header.target_bytes} bytes of its target")


def _worded(delta: Readable, header: Header, base: Source) -> Iterator[bytes]:
    from landreeve.blobs import words  # with numpy: only where there is such a delta

    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    left, waiting = header.target_bytes, bytearray()

    def read(size: int) -> bytes:
        return _exactly(frame.read, size, header.target_bytes - left)

    def known(at: int, size: int) -> bytes:
        return base.read_at(at, size) if at + size <= base.size else b""

    with unpacker.stream_reader(
        cast("IO[bytes]", delta), read_size=65536, read_across_frames=True, closefd=False
    ) as frame:
        while left:
            at = header.target_bytes - left
            try:
                piece = words.read_chunk(read, known, left)
            except words.BadChunkError as error:
                raise BadDeltaError(f"delta: at byte {at} of what it gives, {error}") from error
            left -= len(piece)
            waiting += piece
            whole = len(waiting) if not left else len(waiting) // CHUNK_BYTES * CHUNK_BYTES
            for start in range(0, whole, CHUNK_BYTES):
                yield bytes(waiting[start : min(whole, start + CHUNK_BYTES)])
            del waiting[:whole]
        if frame.read(1):
            raise BadDeltaError(f"delta: gives more than the {header.target_bytes} bytes of its target")


def _patched(delta: Readable, header: Header, base: Source) -> Iterator[bytes]:
    for start in range(0, header.target_bytes, SEGMENT_BYTES):
        offset, length, packed_bytes = _SEGMENT.unpack(_exactly(delta.read, _SEGMENT.size, start))
        if length > SEGMENT_BYTES or offset + length > base.size:
            raise BadDeltaError(f"delta: reads {length} bytes of the base at {offset}, which has {base.size}")
        if packed_bytes > SEGMENT_BYTES + SEGMENT_BYTES // 64:
            raise BadDeltaError(f"delta: a segment of {packed_bytes} bytes for at most {SEGMENT_BYTES}")
        size = min(SEGMENT_BYTES, header.target_bytes - start)
        yield from _segment(_Part(delta, packed_bytes), size, _dictionary(base, offset, length))


def _segment(packed: "_Part", size: int, known: zstandard.ZstdCompressionDict) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor(dict_data=known, max_window_size=1 << _PATCH_WINDOW_LOG)
    with unpacker.stream_reader(
        cast("IO[bytes]", packed), read_size=65536, read_across_frames=False, closefd=False
    ) as frame:
        for done in range(0, size, CHUNK_BYTES):
            yield _exactly(frame.read, min(CHUNK_BYTES, size - done), done)
        if frame.read(1) or packed.left:
            raise BadDeltaError(f"delta: a segment gives more than its {size} bytes")


def _write_patch(base: Source, target: Source, out: BinaryIO) -> None:
    for start in range(0, target.size, SEGMENT_BYTES):
        data = target.read_at(start, SEGMENT_BYTES)
        offset, length = _counterpart(start, len(data), base.size, target.size)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, window_log=_PATCH_WINDOW_LOG, enable_ldm=True
        )
        known = _dictionary(base, offset, length)
        packed = zstandard.ZstdCompressor(compression_params=parameters, dict_data=known).compress(data)
        out.write(_SEGMENT.pack(offset, length, len(packed)) + packed)


def _counterpart(start: int, size: int, base_bytes: int, target_bytes: int) -> tuple[int, int]:
    """Which part of the base is most like this segment: the one at the same share of the way.

    >>> _counterpart(0, 4_000_000, 3_000_000, 4_000_000)
    (0, 3000000)
    """
    middle = (start + size // 2) * base_bytes // target_bytes
    length = min(SEGMENT_BYTES, base_bytes)
    return max(0, min(middle - length // 2, base_bytes - length)), length


def _dictionary(base: Source, offset: int, length: int) -> zstandard.ZstdCompressionDict:
    data = base.read_at(offset, length)
    if len(data) != length:
        raise BadDeltaError(f"delta: the base ends after {len(data)} of {length} bytes at {offset}")
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


class _Part:
    """The next bytes of a file, and no more."""

    def __init__(self, file: Readable, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def _exactly(read: Callable[[int], bytes], size: int, at: int) -> bytes:
    parts, left = [], size
    while left:
        part = read(left)
        if not part:
            raise BadDeltaError(f"delta: ends {left} bytes too early, at byte {at + size - left} of what it gives")
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _as_it_is(_offset: int, data: bytes) -> bytes:
    return data


def _crossed(base: Source | None) -> Callable[[int, bytes], bytes]:
    return lambda offset, data: regroup(_xor(data, _part_of(base, offset, len(data))))


def _uncrossed(base: Source | None) -> Callable[[int, bytes], bytes]:
    return lambda offset, data: _xor(ungroup(data), _part_of(base, offset, len(data)))


def _part_of(base: Source | None, offset: int, length: int) -> bytes:
    return base.read_at(offset, length) if base is not None and offset < base.size else b""


def _xor(data: bytes, other: bytes) -> bytes:
    """As long as ``data``; where ``other`` has ended, ``data`` stays as it is."""
    mixed = int.from_bytes(data, "little") ^ int.from_bytes(other, "little")
    return mixed.to_bytes(len(data), "little")


def regroup(data: bytes) -> bytes:
    """Bytes by their place in a word of four; what is left over at the end stays there.

    >>> regroup(b"abcdABCDx")
    b'aAbBcCdDx'
    """
    whole = len(data) // _WORD_BYTES * _WORD_BYTES
    return b"".join(data[place:whole:_WORD_BYTES] for place in range(_WORD_BYTES)) + data[whole:]


def ungroup(data: bytes) -> bytes:
    """
    >>> ungroup(regroup(b"abcdABCDx"))
    b'abcdABCDx'
    """
    words = len(data) // _WORD_BYTES
    whole = words * _WORD_BYTES
    out = bytearray(data)
    for place in range(_WORD_BYTES):
        out[place:whole:_WORD_BYTES] = data[place * words : (place + 1) * words]
    return bytes(out)
