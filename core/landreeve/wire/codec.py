"""Bytes to message and back: msgspec JSON, zstd above 1 KiB, and the binary frame of a block.

A compressed message begins with the zstd magic number, which no JSON text does, so no flag is needed. Who has not
said that it reads zstd (`DeviceState.reads`, `Ack.reads`) is sent the plain text: `readable`.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from landreeve.wire.ids import check_digest
from landreeve.wire.messages import Wire

COMPRESS_ABOVE_BYTES = 1024
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_PLAIN_BYTES = 1_000_000
BLOCK_BYTES = 64 * 1024
ZSTD = "zstd"
READS = (ZSTD,)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_MAGIC = b"LRB1"
_HEADER_BYTES = len(_BLOCK_MAGIC) + 32 + 4

W = TypeVar("W", bound=Wire)


class BadMessageError(ValueError):
    """Bytes that are no message of the contract; the text says what is wrong and where."""


def encode(message: Wire) -> bytes:
    """The message's bytes, compressed when that is worth it."""
    raw = msgspec.json.encode(message)
    if len(raw) <= COMPRESS_ABOVE_BYTES:
        return raw
    import zstandard  # a megabyte that a box which speaks to nobody does without

    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(raw)


def readable(payload: bytes, reads: Container[str]) -> bytes:
    """The payload as a peer that reads only those encodings can read it; what is not compressed stays as it is.

    A text above `MAX_PLAIN_BYTES` stays compressed: plain, brokers would cut the connection over it, again and again.

    >>> readable(b'{"v":1}', ())
    b'{"v":1}'
    """
    if ZSTD in reads or not payload.startswith(_ZSTD_MAGIC):
        return payload
    plain = _expand(payload)
    return plain if len(plain) <= MAX_PLAIN_BYTES else payload


def decode(data: bytes, kind: type[W]) -> W:
    """The message of that kind in the bytes; `BadMessageError` names the field that is wrong."""
    try:
        return msgspec.json.decode(_expand(data), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessageError(f"{kind.__name__}: {error}") from error
    except RecursionError as error:
        raise BadMessageError(f"{kind.__name__}: nested too deeply to be a message") from error


def _expand(data: bytes) -> bytes:
    if not data.startswith(_ZSTD_MAGIC):
        return data
    import zstandard  # as above

    try:
        size = zstandard.frame_content_size(data)
        if size < 0 or size > MAX_MESSAGE_BYTES:
            raise BadMessageError(f"a compressed message must state a size up to {MAX_MESSAGE_BYTES} bytes, got {size}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_MESSAGE_BYTES)
    except zstandard.ZstdError as error:
        raise BadMessageError(f"compressed message: {error}") from error


@dataclass(frozen=True, slots=True)
class Block:
    """One block of an artifact: which artifact, which place (from 0), and up to 64 KiB of it."""

    digest: str
    index: int
    data: bytes


def encode_block(block: Block) -> bytes:
    """``LRB1``, 32 bytes digest, index as 4 bytes big-endian, then the data."""
    head = _BLOCK_MAGIC + bytes.fromhex(check_digest(block.digest)) + block.index.to_bytes(4, "big")
    return head + block.data


def decode_block(frame: bytes) -> Block:
    """The block in a frame; `BadMessageError` when it is none."""
    if len(frame) < _HEADER_BYTES or not frame.startswith(_BLOCK_MAGIC):
        raise BadMessageError(f"block: no frame of version 1 in {len(frame)} bytes")
    if len(frame) - _HEADER_BYTES > BLOCK_BYTES:
        raise BadMessageError(f"block: {len(frame) - _HEADER_BYTES} bytes of data, at most {BLOCK_BYTES} are allowed")
    return Block(frame[4:36].hex(), int.from_bytes(frame[36:40], "big"), frame[_HEADER_BYTES:])


def encode_missing(missing: set[int] | frozenset[int]) -> str:
    """The bitmap text of `landreeve.wire.messages.Want`.

    >>> encode_missing({0, 9})
    '0102'
    """
    bits = 0
    for index in missing:
        bits |= 1 << index
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little").hex()


def missing_bits(text: str, blocks: int) -> int:
    """The bitmap as a number: bit i is set when block i is missing; those from ``blocks`` on are left out."""
    try:
        return int.from_bytes(bytes.fromhex(text), "little") & ((1 << blocks) - 1)
    except ValueError as error:
        raise BadMessageError(f"want.missing: not hexadecimal: {error}") from error


def decode_missing(text: str, blocks: int) -> frozenset[int]:
    """The block numbers below ``blocks`` that a bitmap names."""
    bits = missing_bits(text, blocks)
    return frozenset(i for i in range(blocks) if bits >> i & 1)
