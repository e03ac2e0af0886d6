"""What can go wrong with stored blobs.

BlobError
├── MissingBlobError    not here: fetch it                          (caller)
├── CorruptBlobError    bytes do not have the digest they claim     (peer or disk)
└── FullDiskError       no room for it: free some                   (operator)
"""

from pathlib import Path


class BlobError(Exception):
    """Base of what the blob store raises."""


class MissingBlobError(BlobError):
    """A blob that was asked for is not in the store."""


class CorruptBlobError(BlobError):
    """Bytes that do not have the sha256 or the length they should have."""


class FullDiskError(BlobError):
    """The disk has no room for a blob. ``needed_bytes`` includes the margin that is always left free."""

    def __init__(self, folder: Path, needed_bytes: int, free_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"no room in {folder}: {needed_bytes:,} bytes are needed and {free_bytes:,} are free; "
            "free some space or remove releases that are no longer wanted"
        )
