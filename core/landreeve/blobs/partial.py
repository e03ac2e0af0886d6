"""A blob on its way in: blocks in any order, each checked alone, resumable after a power cut.

There is no bitmap to lose: which blocks are there is worked out from the data itself when the file is opened,
by comparing each block's sha256 with the one it should have. A block half written by a crash is simply missing.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from landreeve.blobs.codec import Codec
from landreeve.blobs.durable import sync_folder
from landreeve.blobs.errors import CorruptBlobError
from landreeve.wire.codec import BLOCK_BYTES

MAX_UNLISTED_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = BLOCK_BYTES  # larger pieces are slower: malloc maps each anew, and every page of it faults


class Partial:
    """What has arrived of one blob. Made by `landreeve.blobs.store.BlobStore.begin`."""

    def __init__(
        self, digest: str, size: int, block_digests: Sequence[str] | None, path: Path, whole: Path, *, codec: Codec
    ) -> None:
        self.digest = digest
        self.size = size
        self._digests = None if block_digests is None else tuple(block_digests)
        self._path = path
        self._whole = whole
        self._count = -(-size // BLOCK_BYTES)
        self._check_plan()
        # Without digests nobody knows what is there: a sealed file must not be written twice under one key.
        self._file = codec.writer(path, digest, size, fresh=block_digests is None)
        self._missing = self._find_missing()

    def missing(self) -> frozenset[int]:
        """Numbers of the blocks still to come, from 0."""
        return frozenset(self._missing)

    def write(self, index: int, data: bytes) -> bool:
        """Keep a block. False for a block that is not the right one: it is not kept and stays missing.

        A repeat of a block that is here is True and changes nothing.
        """
        if not 0 <= index < self._count or len(data) != self._length(index):
            return False
        if self._digests is not None and hashlib.sha256(data).hexdigest() != self._digests[index]:
            return False
        if index in self._missing:
            self._file.write_at(index * BLOCK_BYTES, data)
            self._missing.discard(index)
        return True

    def complete(self) -> Path:
        """Verify the whole, sync it, and move it into the store in one rename.

        `CorruptBlobError` when blocks are missing (the partial stays), or when the whole does not have its
        digest: then the partial is dropped, since nobody can say which block is the wrong one.
        """
        if self._missing:
            raise CorruptBlobError(f"blob {self.digest}: {len(self._missing)} of {self._count} blocks are missing")
        found = self._digest()
        self._file.sync()
        if found != self.digest:
            self.drop()
            raise CorruptBlobError(f"blob {self.digest}: the {self.size} bytes received have sha256 {found}; dropped")
        self._file.close()
        self._path.replace(self._whole)
        sync_folder(self._whole.parent)
        return self._whole

    def drop(self) -> None:
        """Forget what has arrived."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _check_plan(self) -> None:
        if self.size < 1:
            raise ValueError(f"blob {self.digest}: size {self.size}; a blob has at least one byte")
        if self._digests is None and self.size > MAX_UNLISTED_BYTES:
            raise ValueError(
                f"blob {self.digest}: {self.size} bytes without block digests; "
                f"at most {MAX_UNLISTED_BYTES} can be checked only as a whole"
            )
        if self._digests is not None and len(self._digests) != self._count:
            raise ValueError(f"blob {self.digest}: {len(self._digests)} block digests for {self._count} blocks")

    def _length(self, index: int) -> int:
        return min(BLOCK_BYTES, self.size - index * BLOCK_BYTES)

    def _find_missing(self) -> set[int]:
        if self._digests is None:
            return set(range(self._count))
        return {index for index, digest in enumerate(self._digests) if not self._is_there(index, digest)}

    def _is_there(self, index: int, digest: str) -> bool:
        data = self._file.read_at(index * BLOCK_BYTES, self._length(index))
        return data is not None and hashlib.sha256(data).hexdigest() == digest

    def _digest(self) -> str:
        found = hashlib.sha256()
        for offset in range(0, self.size, _PIECE_BYTES):
            found.update(self._file.read_at(offset, min(_PIECE_BYTES, self.size - offset)) or b"")
        return found.hexdigest()
