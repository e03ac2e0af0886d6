"""Artifacts over the link, both ways, in blocks of 64 KiB that are repaired until complete.

Blocks travel at QoS 0: a bitmap of what is missing is cheaper than a PUBACK for each, and it also survives a
power cut on either side. Nothing here has a deadline of its own: a site may be offline for days, and a newer
order cancels the task that waits.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from landreeve.blobs.errors import BlobError, CorruptBlobError, FullDiskError
from landreeve.wire.codec import (
    BLOCK_BYTES,
    BadMessageError,
    Block,
    decode_missing,
    encode,
    encode_block,
    encode_missing,
)
from landreeve.wire.messages import Want
from landreeve.wire.topics import Topic, Up, UpTopic, UpWantTopic

from landreeve_agent.link.session import Identity

logger = logging.getLogger(__name__)

REPAIR_S = 2.0
CORRUPT_LIMIT = 3
MAX_BACKLOG = 16

Progress = Callable[[int, int], None]


class FetchFailedError(Exception):
    """The artifact could not be had; ``cause`` is for machines, the text for people."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence


class PartialBlob(Protocol):
    """An artifact on its way (`landreeve.blobs.store.Partial`)."""

    def missing(self) -> frozenset[int]: ...
    def write(self, index: int, data: bytes) -> bool: ...
    def complete(self) -> Path: ...


class Blobs(Protocol):
    """The content-addressed store (`landreeve.blobs.store.BlobStore`)."""

    def has(self, digest: str) -> bool: ...
    def path(self, digest: str) -> Path: ...
    def size(self, digest: str) -> int: ...
    def read_block(self, digest: str, index: int) -> bytes: ...
    def begin(self, digest: str, size: int, block_digests: tuple[str, ...] | None) -> PartialBlob: ...


class Line(Protocol):
    """What transfers need of the session (`landreeve_agent.link.session.Session`)."""

    on_block: Callable[[Block], bool] | None
    connected: asyncio.Event

    @property
    def identity(self) -> Identity: ...
    def publish(self, topic: Topic, payload: bytes, *, qos: int) -> bool: ...
    def share(self, digest: str) -> None: ...
    def unshare(self, digest: str) -> None: ...
    async def settle(self, backlog: int) -> None: ...


class _Download:
    """One artifact being fetched: takes blocks as they come and tells whether any came lately."""

    def __init__(self, partial: PartialBlob, blocks: int, progress: Progress | None) -> None:
        self.partial = partial
        self.moved = asyncio.Event()
        self._blocks = blocks
        self.failure: OSError | None = None
        self._missing = set(partial.missing())
        self._progress = progress

    @property
    def missing(self) -> frozenset[int]:
        return frozenset(self._missing)

    def take(self, block: Block) -> None:
        if block.index not in self._missing:
            return
        if not self._write(block):
            logger.warning("block %d of %s does not match its digest: dropped", block.index, block.digest[:12])
            return
        self._missing.discard(block.index)
        self.moved.set()
        if self._progress is not None:
            self._progress(self._blocks - len(self._missing), self._blocks)

    def _write(self, block: Block) -> bool:
        try:
            return self.partial.write(block.index, block.data)
        except OSError as error:
            self.failure = error
            self.moved.set()
            raise


class Fetcher:
    """Brings artifacts to this device. Interrupted at any moment, it goes on where it was."""

    def __init__(self, session: Line, blobs: Blobs, *, repair_s: float = REPAIR_S) -> None:
        self._session = session
        self._blobs = blobs
        self._repair_s = repair_s
        self._downloads: dict[str, _Download] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        session.on_block = self._on_block

    async def fetch(
        self,
        digest: str,
        size: int,
        block_digests: tuple[str, ...] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """The artifact's file once all of it is here and verified. ``progress`` is told (blocks here, blocks).

        Raises `FetchFailedError` when what arrives is not the artifact, several times over.
        """
        async with self._locks.setdefault(digest, asyncio.Lock()):
            for _ in range(CORRUPT_LIMIT):
                if self._blobs.has(digest):
                    return self._blobs.path(digest)
                try:
                    return await self._download(digest, size, block_digests, progress)
                except CorruptBlobError as error:
                    logger.warning("artifact %s: %s; fetching it again", digest[:12], error)
        raise FetchFailedError(
            "corrupt_artifact",
            f"artifact {digest[:12]} arrived damaged {CORRUPT_LIMIT} times; push the release to the hub again",
        )

    async def _download(
        self, digest: str, size: int, block_digests: tuple[str, ...] | None, progress: Progress | None
    ) -> Path:
        partial = await self._begin(digest, size, block_digests)
        download = _Download(partial, -(-size // BLOCK_BYTES), progress)
        self._downloads[digest] = download
        self._session.share(digest)
        try:
            await self._ask_until_complete(digest, size, download)
        finally:
            self._session.unshare(digest)
            del self._downloads[digest]
        return await asyncio.to_thread(partial.complete)

    async def _begin(self, digest: str, size: int, block_digests: tuple[str, ...] | None) -> PartialBlob:
        try:
            return await asyncio.to_thread(self._blobs.begin, digest, size, block_digests)
        except FullDiskError as error:
            raise FetchFailedError("disk_full", str(error)) from error
        except ValueError as error:
            raise FetchFailedError("bad_release", str(error)) from error

    async def _ask_until_complete(self, digest: str, size: int, download: _Download) -> None:
        who = self._session.identity
        topic = UpWantTopic(who.fleet, who.device, digest)
        while download.missing:
            await self._session.connected.wait()
            want = Want(bytes=size, missing=encode_missing(download.missing))
            self._session.publish(topic, encode(want), qos=0)
            await self._until_quiet(download)
            if download.failure is not None:
                raise FetchFailedError(
                    "disk_failed", f"artifact {digest[:12]} cannot be written: {download.failure}; free some disk space"
                )

    async def _until_quiet(self, download: _Download) -> None:
        """Returns when everything is here or no block came for the repair interval."""
        while download.missing and download.failure is None:
            download.moved.clear()
            try:
                async with asyncio.timeout(self._repair_s):
                    await download.moved.wait()
            except TimeoutError:
                return

    def _on_block(self, block: Block) -> bool:
        download = self._downloads.get(block.digest)
        if download is not None:
            download.take(block)
        return download is not None


class Uploader:
    """Answers the hub's wants with blocks, at most ``bytes_per_s``; only artifacts of the blob store leave."""

    def __init__(self, session: Line, blobs: Blobs, *, bytes_per_s: float = 4e6) -> None:
        self._session = session
        self._blobs = blobs
        self._bytes_per_s = bytes_per_s
        self._wanted: dict[str, set[int]] = {}
        self._work = asyncio.Event()

    def on_want(self, digest: str, want: Want) -> None:
        """Notes what the hub lacks; `run` sends it. Raises `BadMessageError` for a want that cannot be met."""
        if not self._blobs.has(digest):
            raise BadMessageError(f"want: artifact {digest[:12]} is not on this device")
        size = self._blobs.size(digest)
        if want.bytes not in (0, size):
            raise BadMessageError(f"want: artifact {digest[:12]} has {size} bytes, not {want.bytes}")
        blocks = -(-size // BLOCK_BYTES)
        missing = decode_missing(want.missing, blocks)
        self._wanted[digest] = set(missing) if want.missing or want.bytes else set(range(blocks))
        self._work.set()

    async def run(self) -> None:
        """Sends what is wanted, until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._wanted:
                digest = next(iter(self._wanted))
                await self._send(digest)

    async def _send(self, digest: str) -> None:
        while self._wanted[digest]:
            index = min(self._wanted[digest])
            self._wanted[digest].discard(index)
            if not await self._send_block(digest, index):
                break  # without a connection, or without the file, the hub asks again
        del self._wanted[digest]

    async def _send_block(self, digest: str, index: int) -> bool:
        try:
            data = await asyncio.to_thread(self._blobs.read_block, digest, index)
        except (OSError, BlobError) as error:
            logger.warning("artifact %s cannot be read: %s", digest[:12], error)
            return False
        who = self._session.identity
        topic = UpTopic(who.fleet, who.device, Up.BLOCKS)
        sent = self._session.publish(topic, encode_block(Block(digest, index, data)), qos=0)
        await asyncio.sleep(len(data) / self._bytes_per_s)
        await self._session.settle(MAX_BACKLOG)
        return sent
