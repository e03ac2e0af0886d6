"""Which blobs are whole, known without hashing gigabytes each time somebody asks."""

import asyncio
import threading

from landreeve.blobs.store import BlobStore
from landreeve.wire.messages import Fact, UpdateReport
from sqlalchemy import Connection

CORRUPT_ARTIFACT = "corrupt_artifact"  # the cause that a device tells

_Stamp = tuple[int, int, int]  # inode, length, time of the last write in ns


class Soundness:
    """A blob is hashed when it is first asked for in a life of the hub, and again once its file is another or a device
    found damaged what came from here: a disk that forgets changes no time and no length.

    What was found damaged is hashed at each question: pushed again, it is whole at once.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._whole: dict[str, _Stamp] = {}
        self._doubts = 0
        self._guard = threading.Lock()  # devices are heard in the ingest's thread
        self._turn = asyncio.Lock()  # one is hashed at a time, and who waits holds no thread

    async def is_whole(self, digest: str) -> bool:
        """Whether the blob is here with every byte of it."""
        if self._known(digest):
            return True
        async with self._turn:
            return self._known(digest) or await asyncio.to_thread(self._look, digest)

    def doubt(self) -> None:
        """What was known counts no more. A device names a release and not which of its files came damaged, and the
        manifest that would tell them may be the damaged one: so it counts of no blob."""
        with self._guard:
            self._doubts += 1
            self._whole.clear()

    def apply(self, connection: Connection, device: str, fact: Fact) -> None:
        """Doubt when a device's fact says that an artifact came damaged, again and again."""
        del connection, device
        if isinstance(fact.body, UpdateReport) and fact.body.cause == CORRUPT_ARTIFACT:
            self.doubt()

    def _known(self, digest: str) -> bool:
        stamp = self._stamp(digest)
        with self._guard:
            return stamp is not None and self._whole.get(digest) == stamp

    def _look(self, digest: str) -> bool:
        doubts, stamp = self._doubts, self._stamp(digest)
        if stamp is None or not self._blobs.verify(digest):
            return False
        with self._guard:
            if doubts == self._doubts:
                self._whole[digest] = stamp
        return True

    def _stamp(self, digest: str) -> _Stamp | None:
        try:
            found = self._blobs.path(digest).stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
