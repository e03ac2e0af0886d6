"""Blobs by their sha256, and blobs on their way in.

``sha256/<hex>`` holds what is whole and verified; ``partial/<hex>`` what is arriving. A name in ``sha256``
appears by one rename after the content is verified and synced, so whatever is there is whole.
"""

import contextlib
import errno
import hashlib
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from landreeve.blobs.codec import BlobReader, Codec, PlainCodec, read_whole
from landreeve.blobs.durable import sync_folder, write_durably
from landreeve.blobs.errors import CorruptBlobError, FullDiskError, MissingBlobError
from landreeve.blobs.partial import Partial
from landreeve.wire.codec import BLOCK_BYTES
from landreeve.wire.ids import check_digest

_UNFINISHED_S = 86_400.0
MARGIN_BYTES = 32 * 1024 * 1024
_PIECE_BYTES = BLOCK_BYTES  # larger pieces are slower: malloc maps each anew, and every page of it faults


class BlobStore:
    """Content-addressed files under ``root``. One process owns a root; its methods may be called from any
    thread, but one `Partial` from one thread at a time.

    ``margin_bytes`` of the disk are never taken: databases and logs beside us must be able to go on. ``codec`` says how
    plain bytes lie in files (`landreeve.blobs.codec`); a blob's file is read through `open`, `read` and `read_block`
    alone.
    """

    def __init__(self, root: Path, margin_bytes: int = MARGIN_BYTES, codec: Codec | None = None) -> None:
        self._root = root
        self._margin_bytes = margin_bytes
        self._codec = codec or PlainCodec()
        self._whole = root / "sha256"
        self._arriving = root / "partial"
        for folder in (self._whole, self._arriving):
            folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(digest).is_file()

    def path(self, digest: str) -> Path:
        """Where the blob's file is, or would be: sealed where the store is."""
        return self._whole / check_digest(digest)

    def open(self, digest: str) -> BlobReader:
        """The blob for reading by position, unverified; close it. `MissingBlobError`."""
        try:
            return self._codec.open(self.path(digest), digest)
        except FileNotFoundError:
            raise MissingBlobError(f"blob {digest} is not in {self._root}; fetch it first") from None

    def size(self, digest: str) -> int:
        """How many plain bytes the blob has; `MissingBlobError`."""
        with closing(self.open(digest)) as reader:
            return reader.size

    def read_block(self, digest: str, index: int) -> bytes:
        """Block ``index`` of the blob, up to 64 KiB, unverified; `MissingBlobError`."""
        with closing(self.open(digest)) as reader:
            return reader.read_at(index * BLOCK_BYTES, BLOCK_BYTES)

    def read(self, digest: str) -> bytes:
        """The blob, verified again: flash forgets. `MissingBlobError`, `CorruptBlobError`."""
        with closing(self.open(digest)) as reader:
            data = read_whole(reader)
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlobError(
                f"blob {self.path(digest)} no longer has its digest: the disk changed it; fetch or push it again"
            )
        return data

    def put(self, data: bytes) -> str:
        """Keep the bytes and answer their digest; what is here already, and whole, is not written again."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.verify(digest):
            self.reserve(len(data))
            write_durably(self.path(digest), self._codec.encode(digest, data))
        return digest

    def begin(self, digest: str, size: int, block_digests: Sequence[str] | None = None) -> Partial:
        """Start or resume receiving a blob of ``size`` bytes.

        The room is reserved before the first block: `FullDiskError` comes here, not half way. ``block_digests``
        are the sha256 of each 64 KiB block; without them the blob must be small (`partial.MAX_UNLISTED_BYTES`)
        and begins anew after a crash.
        """
        path = self._arriving / check_digest(digest)
        self.reserve(max(0, self._codec.stored_bytes(size) - self.taken_bytes(digest)))
        try:
            return Partial(digest, size, block_digests, path, self.path(digest), codec=self._codec)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            path.unlink(missing_ok=True)
            raise FullDiskError(self._root, size, self.free_bytes()) from error

    def taken_bytes(self, digest: str) -> int:
        """What a blob that has begun to arrive takes of the disk already: its whole room, from `begin` on."""
        try:
            return (self._arriving / check_digest(digest)).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def disk_bytes(self, digest: str) -> int:
        """What the blob takes of the disk, whole or begun; 0 when there is nothing of it."""
        try:
            return self.path(digest).stat().st_size + self.taken_bytes(digest)
        except FileNotFoundError:
            return self.taken_bytes(digest)

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

    def _sweep(self) -> None:
        """Remove what a kill left of a `put` or a conversion; who writes such a file now has begun it just now."""
        old = time.time() - _UNFINISHED_S
        for path in self._whole.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < old:
                    path.unlink()

    def free_bytes(self) -> int:
        """What the disk has left for us, margin included."""
        return shutil.disk_usage(self._root).free

    def verify(self, digest: str) -> bool:
        """Whether the blob is here, can be read, and still has its digest; reads it in pieces, so of any size."""
        if not self.has(digest):
            return False
        found = hashlib.sha256()
        try:
            with closing(self.open(digest)) as reader:
                for offset in range(0, reader.size, _PIECE_BYTES):
                    found.update(reader.read_at(offset, _PIECE_BYTES))
        except (MissingBlobError, CorruptBlobError, OSError):
            return False  # what the disk no longer gives is not here either: put writes it anew, elsewhere on the disk
        return found.hexdigest() == digest
