"""Artifacts from devices: the hub asks for what it lacks until it has all of it, within a quota."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from landreeve.blobs.errors import CorruptBlobError, FullDiskError, MissingBlobError
from landreeve.blobs.partial import Partial
from landreeve.blobs.store import BlobStore
from landreeve.wire.codec import Block, encode, encode_missing
from landreeve.wire.messages import Want
from landreeve.wire.topics import DownWantTopic, format_topic

from landreeve_hub.errors import TransferError
from landreeve_hub.registry.quota import Quota
from landreeve_hub.registry.releases import NoSuchReleaseError, Registry

log = logging.getLogger(__name__)
REPAIR_S = 2.0
PATIENCE_S = 60.0
# What was asked for so lately may become part of a release any moment.
LATELY_S = 86_400.0


class _Upload:
    """One artifact being fetched: blocks come in the ingest thread, progress is looked at in the event loop."""

    def __init__(self, partial: Partial, loop: asyncio.AbstractEventLoop) -> None:
        self.partial = partial
        self.moved = asyncio.Event()
        self._loop = loop
        self._lock = threading.Lock()

    def take(self, block: Block) -> bool:
        with self._lock:
            kept = self.partial.write(block.index, block.data)
        self._loop.call_soon_threadsafe(self.moved.set)
        return kept

    def missing(self) -> frozenset[int]:
        with self._lock:
            return self.partial.missing()


class Uploads:
    """Fetches artifacts from devices.

    ``publish`` sends the wants, ``quota`` bounds what is asked of a device in a day; one that sends nothing for
    ``patience_s`` ends the attempt, and what has arrived stays for the next.
    """

    def __init__(
        self,
        blobs: BlobStore,
        publish: Callable[[str, bytes, bool], None],
        fleet: str,
        *,
        quota: Quota,
        repair_s: float = REPAIR_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._blobs = blobs
        self._publish = publish
        self._fleet = fleet
        self._quota = quota
        self._repair_s = repair_s
        self._patience_s = patience_s
        self._under_way: dict[tuple[str, str], _Upload] = {}
        self._asked_at: dict[str, float] = {}

    async def request(self, device: str, digest: str, size: int, blocks: Sequence[str] | None = None) -> Path:
        """The artifact's file once all of it is here and verified.

        ``blocks`` are the sha256 of each block, without which only a small one can be asked for. Raises
        `QuotaError`, `TransferError` (nothing came for a while, damaged, no room here) and `ValueError` for a
        size or block list that cannot be.
        """
        self._asked_at[digest] = time.monotonic()
        if await asyncio.to_thread(self._blobs.verify, digest):  # what the disk has spoilt is fetched once more
            return self._blobs.path(digest)
        await self._quota.charge(device, digest, size)
        try:
            partial = await asyncio.to_thread(self._blobs.begin, digest, size, blocks)
            upload = _Upload(partial, asyncio.get_running_loop())
            self._under_way[device, digest] = upload
            await self._ask_until_complete(device, digest, size, upload)
            return await asyncio.to_thread(partial.complete)
        except (CorruptBlobError, FullDiskError) as error:
            raise TransferError(f"artifact {digest[:12]} of {device}: {error}") from error
        finally:
            self._under_way.pop((device, digest), None)

    def wanted(self) -> frozenset[str]:
        """Blobs that were asked for lately: they are arriving, or a release will be made of them."""
        since = time.monotonic() - LATELY_S
        self._asked_at = {digest: at for digest, at in self._asked_at.items() if at > since}
        return frozenset(self._asked_at)

    def on_block(self, device: str, block: Block) -> None:
        """A block that came up; what was not asked of this very device is left."""
        upload = self._under_way.get((device, block.digest))
        if upload is None:
            return
        try:
            if not upload.take(block):
                log.warning("block %d of %s from %s does not fit: left", block.index, block.digest[:12], device)
        except OSError as error:
            log.warning("block %d of %s cannot be written: %s", block.index, block.digest[:12], error)

    async def _ask_until_complete(self, device: str, digest: str, size: int, upload: _Upload) -> None:
        topic = format_topic(DownWantTopic(self._fleet, device, digest))
        moved_at = time.monotonic()
        left = upload.missing()
        while left:
            self._publish(topic, encode(Want(bytes=size, missing=encode_missing(left))), False)
            await self._until_quiet(upload)
            now_left = upload.missing()
            if now_left != left:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > self._patience_s:
                raise TransferError(
                    f"{device} sent nothing of artifact {digest[:12]} for {self._patience_s:.0f} s; "
                    f"{len(left)} blocks are missing and asked for again later"
                )
            left = now_left

    async def _until_quiet(self, upload: _Upload) -> None:
        """Returns when everything is here or no block came for the repair interval."""
        while upload.missing():
            upload.moved.clear()
            try:
                async with asyncio.timeout(self._repair_s):
                    await upload.moved.wait()
            except TimeoutError:
                return


class Challengers:
    """Challengers from the sites to the registry, as learning asks for them."""

    def __init__(self, uploads: Uploads, blobs: BlobStore, registry: Registry) -> None:
        self._uploads = uploads
        self._blobs = blobs
        self._registry = registry

    async def fetch(self, device: str, digest: str, size: int, blocks: tuple[str, ...] | None) -> None:
        """The blob is in the hub's blob store when this returns; errors as `Uploads.request`."""
        await self._uploads.request(device, digest, size, blocks)

    def read(self, digest: str) -> bytes:
        """A blob that is here."""
        try:
            return self._blobs.read(digest)
        except MissingBlobError as error:
            raise NoSuchReleaseError(str(error)) from error

    async def register(self, digest: str, *, by: str, device: str, run: str, now: datetime) -> str:
        """Make the release whose blobs are here a draft; its version."""
        return await self._registry.register_stored(digest, by=by, device=device, run=run, now=now)
