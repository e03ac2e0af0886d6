"""Blobs by their sha256, and blobs on their way in.

``sha256/<hex>`` holds what is whole and verified; ``partial/<hex>`` what is arriving. A name in ``sha256``
appears by one rename after the content is verified and synced, so whatever is there is whole.
"""

import errno
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from landreeve.blobs.durable import sync_folder, write_durably
from landreeve.blobs.errors import CorruptBlobError, FullDiskError, MissingBlobError
from landreeve.blobs.partial import Partial
from landreeve.wire.ids import check_digest

MARGIN_BYTES = 32 * 1024 * 1024


class BlobStore:
    """Content-addressed files under ``root``. One process owns a root; its methods may be called from any
    thread, but one `Partial` from one thread at a time.

    ``margin_bytes`` of the disk are never taken: databases and logs beside us must be able to go on.
    """

    def __init__(self, root: Path, margin_bytes: int = MARGIN_BYTES) -> None:
        self._root = root
        self._margin_bytes = margin_bytes
        self._whole = root / "sha256"
        self._arriving = root / "partial"
        for folder in (self._whole, self._arriving):
            folder.mkdir(parents=True, exist_ok=True)

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(digest).is_file()

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._whole / check_digest(digest)

    def read(self, digest: str) -> bytes:
        """The blob, verified again: flash forgets. `MissingBlobError`, `CorruptBlobError`."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise MissingBlobError(f"blob {digest} is not in {self._root}; fetch it first") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlobError(f"blob {path} no longer has its digest: the disk changed it; remove and refetch it")
        return data

    def put(self, data: bytes) -> str:
        """Keep the bytes and answer their digest; what is here already is not written again."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.has(digest):
            self.reserve(len(data))
            write_durably(self.path(digest), data)
        return digest

    def begin(self, digest: str, size: int, block_digests: Sequence[str] | None = None) -> Partial:
        """Start or resume receiving a blob of ``size`` bytes.

        The room is reserved before the first block: `FullDiskError` comes here, not half way. ``block_digests``
        are the sha256 of each 64 KiB block; without them the blob must be small (`partial.MAX_UNLISTED_BYTES`)
        and begins anew after a crash.
        """
        path = self._arriving / check_digest(digest)
        allocated = path.stat().st_blocks * 512 if path.exists() else 0
        self.reserve(max(0, size - allocated))
        try:
            return Partial(digest, size, block_digests, path, self.path(digest))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            path.unlink(missing_ok=True)
            raise FullDiskError(self._root, size, self.free_bytes()) from error

    def reserve(self, size: int) -> None:
        """`FullDiskError` unless ``size`` bytes and the margin are free: asked for a whole release at once,
        before its first blob."""
        free = self.free_bytes()
        if free < size + self._margin_bytes:
            raise FullDiskError(self._root, size + self._margin_bytes, free)

    def remove(self, digest: str) -> None:
        """Forget the blob and anything of it that has arrived; nothing happens when there is none."""
        self.path(digest).unlink(missing_ok=True)
        (self._arriving / digest).unlink(missing_ok=True)
        sync_folder(self._whole)

    def digests(self) -> frozenset[str]:
        """Every whole blob."""
        return frozenset(path.name for path in self._whole.iterdir() if not path.name.startswith("."))

    def partials(self) -> frozenset[str]:
        """Every blob that has begun to arrive."""
        return frozenset(path.name for path in self._arriving.iterdir())

    def free_bytes(self) -> int:
        """What the disk has left for us, margin included."""
        return shutil.disk_usage(self._root).free

    def verify(self, digest: str) -> bool:
        """Whether the blob is here and still has its digest; reads it in pieces, so of any size."""
        if not self.has(digest):
            return False
        with self.path(digest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
