"""An artifact from a delta and a blob that is here, block by block, each verified as if it had come over the line."""

from contextlib import ExitStack, closing
from typing import Protocol

from landreeve.blobs.codec import BlobReader
from landreeve.blobs.delta import BadDeltaError, decode, read_header
from landreeve.wire.codec import BLOCK_BYTES
from landreeve.wire.transfers import Offer


class Readable(Protocol):
    """The blob store, for reading."""

    def open(self, digest: str) -> BlobReader: ...


class Writable(Protocol):
    """The artifact being put together (`landreeve.blobs.partial.Partial`)."""

    def write(self, index: int, data: bytes) -> bool: ...


def apply(blobs: Readable, offer: Offer, digest: str, size: int, partial: Writable) -> None:
    """Write the artifact's blocks from the delta ``offer.delta`` and its base, both in the store.

    Memory stays constant. `BadDeltaError` for a delta that is none, leads elsewhere, or gives a block that is not the
    artifact's; blocks before it are right and stay.
    """
    with ExitStack() as stack:
        delta = _Stream(stack.enter_context(closing(blobs.open(offer.delta))))
        header = read_header(delta)
        if (header.target, header.target_bytes) != (digest, size):
            raise BadDeltaError(f"delta: leads to {header.target[:12]} of {header.target_bytes} bytes, not there")
        if header.base not in ("", offer.base):
            raise BadDeltaError(f"delta: made from {header.base[:12]}, offered as from {offer.base[:12]}")
        base = stack.enter_context(closing(blobs.open(header.base))) if header.base else None
        index = 0
        for piece in decode(delta, header, base):
            for start in range(0, len(piece), BLOCK_BYTES):
                if not partial.write(index, piece[start : start + BLOCK_BYTES]):
                    raise BadDeltaError(f"delta: block {index} comes out wrong")
                index += 1


class _Stream:
    """A blob read from front to end."""

    def __init__(self, reader: BlobReader) -> None:
        self._reader = reader
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._reader.read_at(self._at, self._reader.size - self._at if size < 0 else size)
        self._at += len(data)
        return data
