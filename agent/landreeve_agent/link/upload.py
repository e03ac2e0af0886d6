"""Artifacts of this device on their way to the hub, which asks for what it lacks."""

import asyncio
import logging

from landreeve.blobs.errors import BlobError
from landreeve.wire.codec import BLOCK_BYTES, BadMessageError, Block, decode_missing, encode_block
from landreeve.wire.messages import Want
from landreeve.wire.topics import Up, UpTopic

from landreeve_agent.link.transfer import OPEN, Blobs, Gate, Line, unheard

logger = logging.getLogger(__name__)

MAX_BACKLOG = 16


class Uploader:
    """Answers the hub's wants with blocks, at most ``bytes_per_s``; only artifacts of the blob store leave."""

    def __init__(self, session: Line, blobs: Blobs, *, bytes_per_s: float = 4e6, gate: Gate = OPEN) -> None:
        self._session = session
        self._blobs = blobs
        self._bytes_per_s = bytes_per_s
        self._gate = gate
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

    def under_way(self) -> frozenset[str]:
        """Artifacts that are leaving now."""
        return frozenset(self._wanted)

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
        if self._gate.limited:
            await self._gate.take(len(data), unheard)
        who = self._session.identity
        topic = UpTopic(who.fleet, who.device, Up.BLOCKS)
        sent = self._session.publish(topic, encode_block(Block(digest, index, data)), qos=0)
        await asyncio.sleep(len(data) / self._bytes_per_s)
        await self._session.settle(MAX_BACKLOG)
        return sent
