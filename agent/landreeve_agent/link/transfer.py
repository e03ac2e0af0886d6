"""Artifacts from the hub, in blocks of 64 KiB that are repaired until complete, or as a delta to one that is here.

Blocks travel at QoS 0: a bitmap of what is missing is cheaper than a PUBACK for each, and it also survives a
power cut on either side. Nothing here has a deadline of its own: a site may be offline for days, and a newer
order cancels the task that waits.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from landreeve.blobs.codec import BlobReader
from landreeve.blobs.errors import BlobError, CorruptBlobError, FullDiskError
from landreeve.wire.codec import BLOCK_BYTES, Block, encode, encode_missing
from landreeve.wire.messages import Event, Want
from landreeve.wire.topics import Topic, UpWantTopic
from landreeve.wire.transfers import DELTAS, LANES, MOST_BASES, WORDS, Lane, Offer

from landreeve_agent.link.session import Identity

logger = logging.getLogger(__name__)

REPAIR_S = 2.0
CORRUPT_LIMIT = 3
LEAST_REPORT_S = 0.2
# What is asked for at once where rules hold transfers back: 4 MiB.
PIECE_BLOCKS = 64
# Below this a delta saves less than asking for it costs.
SMALLEST_DELTA_BYTES = 16 * 1024
_SILENT_ASKS = 3
_STALLED_ASKS = 15
_MAKING_S = (0.3, 1.0, 3.0, 10.0)

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def unheard(_sentence: str) -> None:
    """For whom it does not matter why something waits."""


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who is told how a download goes."""

    progress: Progress | None
    say: Say


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
    def open(self, digest: str) -> BlobReader: ...
    def begin(self, digest: str, size: int, block_digests: tuple[str, ...] | None) -> PartialBlob: ...
    def remove(self, digest: str) -> None: ...


class Gate(Protocol):
    """What may travel now (`landreeve_agent.link.gate.Gate`)."""

    @property
    def limited(self) -> bool: ...
    async def take(self, wanted: int, say: Callable[[str], None]) -> int: ...


class Open:
    """A gate that holds nothing back."""

    limited = False

    async def take(self, wanted: int, say: Callable[[str], None]) -> int:
        return wanted


OPEN = Open()


class Line(Protocol):
    """What transfers need of the session (`landreeve_agent.link.session.Session`)."""

    on_block: Callable[[Block], bool] | None
    on_guide: Callable[[str, Offer | Lane], None] | None
    connected: asyncio.Event

    @property
    def identity(self) -> Identity: ...
    def publish(self, topic: Topic, payload: bytes, *, qos: int) -> bool: ...
    def share(self, digest: str) -> None: ...
    def unshare(self, digest: str) -> None: ...
    async def settle(self, backlog: int) -> None: ...


class _Download:
    """One artifact being fetched: takes blocks as they come and tells whether any came lately.

    ``whole_only`` is set once no delta is to be asked for any more; while ``closed`` blocks are left, because
    another thread writes the artifact.
    """

    def __init__(self, digest: str, size: int, partial: PartialBlob, listener: "_Listener") -> None:
        self.digest = digest
        self.size = size
        self.partial = partial
        self.moved = asyncio.Event()
        self.offer: Offer | None = None
        self.failure: OSError | None = None
        self.damaged = False
        self.lane: Lane | None = None
        self.reporter: asyncio.Task[None] | None = None
        self.whole_only = False
        self.closed = False
        self._blocks = -(-size // BLOCK_BYTES)
        self._missing = set(partial.missing())
        self._refused: Counter[int] = Counter()
        self.listener = listener

    @property
    def missing(self) -> frozenset[int]:
        return frozenset(self._missing)

    def take(self, block: Block) -> None:
        if self.closed or block.index not in self._missing:
            return
        if not self._write(block):
            logger.warning("block %d of %s does not match its digest: dropped", block.index, block.digest[:12])
            self._refuse(block.index)
            return
        self._missing.discard(block.index)
        self.whole_only = True
        self.moved.set()
        self.tell(self._blocks - len(self._missing), self._blocks)

    def answer(self, offer: Offer) -> None:
        self.offer = offer
        self.moved.set()

    def tell(self, done: int, whole: int) -> None:
        """Progress in other terms: of a delta that stands for the artifact."""
        if self.listener.progress is not None:
            self.listener.progress(done * self._blocks // whole, self._blocks)

    def look_again(self) -> None:
        """What is missing, after another thread wrote."""
        self._missing = set(self.partial.missing())

    def _refuse(self, index: int) -> None:
        """A line damages a block once; who sends the same wrong one every time has no other."""
        self._refused[index] += 1
        if self._refused[index] >= CORRUPT_LIMIT:
            self.damaged = True
            self.moved.set()

    def _write(self, block: Block) -> bool:
        try:
            return self.partial.write(block.index, block.data)
        except OSError as error:
            self.failure = error
            self.moved.set()
            raise


class Fetcher:
    """Brings artifacts to this device. Interrupted at any moment, it goes on where it was.

    ``tell`` gets an event when a delta could not be used; the artifact then comes whole.
    """

    def __init__(
        self,
        session: Line,
        blobs: Blobs,
        *,
        repair_s: float = REPAIR_S,
        tell: Callable[[Event], None] = lambda _event: None,
        gate: Gate = OPEN,
    ) -> None:
        self._session = session
        self._blobs = blobs
        self._repair_s = repair_s
        self._tell = tell
        self._gate = gate
        self._downloads: dict[str, _Download] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        session.on_block = self._on_block
        session.on_guide = self._on_guide

    async def fetch(
        self,
        digest: str,
        size: int,
        block_digests: tuple[str, ...] | None = None,
        progress: Progress | None = None,
        *,
        bases: Sequence[str] = (),
        say: Say = unheard,
    ) -> Path:
        """The artifact's file once all of it is here and verified. ``progress`` is told (blocks here, blocks), ``say``
        why nothing comes for now.

        ``bases`` are artifacts that may be here and resemble it, best first: one whose blocks are listed may come as
        a delta to one of them. Raises `FetchFailedError` when what arrives is not the artifact, several times over.
        """
        async with self._locks.setdefault(digest, asyncio.Lock()):
            for _ in range(CORRUPT_LIMIT):
                if self._blobs.has(digest):
                    return self._blobs.path(digest)
                try:
                    return await self._download(digest, size, block_digests, _Listener(progress, say), bases)
                except CorruptBlobError as error:
                    logger.warning("artifact %s: %s; fetching it again", digest[:12], error)
        raise _damaged(digest)

    def under_way(self) -> frozenset[str]:
        """Artifacts that are arriving now."""
        return frozenset(self._downloads)

    async def _download(
        self,
        digest: str,
        size: int,
        block_digests: tuple[str, ...] | None,
        listener: "_Listener",
        bases: Sequence[str],
    ) -> Path:
        partial = await self._begin(digest, size, block_digests)
        download = _Download(digest, size, partial, listener)
        here = len(download.missing) < -(-size // BLOCK_BYTES) // 2
        download.whole_only = block_digests is None or size < SMALLEST_DELTA_BYTES or here
        held = [base for base in bases if base != digest and self._blobs.has(base)][:MOST_BASES]
        with self._listening(download):
            while download.missing:
                if not download.whole_only:
                    await self._by_delta(download, held)
                await self._ask(download)
        return await asyncio.to_thread(partial.complete)

    @contextmanager
    def _listening(self, download: _Download) -> Iterator[None]:
        self._downloads[download.digest] = download
        if not self._gate.limited:
            self._session.share(download.digest)
        try:
            yield
        finally:
            self._session.unshare(download.digest)
            del self._downloads[download.digest]
            if download.reporter is not None:
                download.reporter.cancel()

    async def _begin(self, digest: str, size: int, block_digests: tuple[str, ...] | None) -> PartialBlob:
        try:
            return await asyncio.to_thread(self._blobs.begin, digest, size, block_digests)
        except FullDiskError as error:
            raise FetchFailedError("disk_full", str(error)) from error
        except ValueError as error:
            raise FetchFailedError("bad_release", str(error)) from error

    async def _ask(self, download: _Download, *extra: str, bases: Sequence[str] = ()) -> None:
        """Says what is missing once, and takes what comes until nothing does."""
        if not download.missing:
            return
        await self._session.connected.wait()
        asked = await self._granted(download, extra)
        self._say(download, asked, extra if self._gate.limited else (LANES, *extra), bases)
        await self._until_quiet(download, asked)
        if download.failure is not None:
            raise FetchFailedError(
                "disk_failed",
                f"artifact {download.digest[:12]} cannot be written: {download.failure}; free some disk space",
            )
        if download.damaged:
            raise _damaged(download.digest)

    async def _granted(self, download: _Download, extra: Sequence[str]) -> frozenset[int]:
        """The blocks to ask for: all, or what the site's rules let through now, which nobody else's stream may add to.
        An offer is asked for with one block, which an older hub sends at once."""
        if not self._gate.limited:
            return download.missing
        self._session.unshare(download.digest)
        most = 1 if extra else PIECE_BLOCKS
        wanted = min(len(download.missing), most) * BLOCK_BYTES
        count = max(1, await self._gate.take(wanted, download.listener.say) // BLOCK_BYTES)
        return frozenset(sorted(download.missing)[:count])

    async def _until_quiet(self, download: _Download, asked: frozenset[int]) -> None:
        """Returns when all that was asked for is here, an offer came, or nothing did for the repair interval."""
        while not download.missing.isdisjoint(asked) and download.offer is None:
            if download.failure is not None or download.damaged:
                return
            download.moved.clear()
            try:
                async with asyncio.timeout(self._repair_s):
                    await download.moved.wait()
            except TimeoutError:
                return

    async def _by_delta(self, download: _Download, held: Sequence[str]) -> None:
        """The artifact by a delta, where the hub has one that is smaller; whatever goes wrong is told, and left."""
        offer = await self._offer_for(download, held)
        if offer is None or download.whole_only:
            return
        download.whole_only = True
        if offer.state != "delta":
            return
        try:
            await self._through(offer, download, held)
        except (BlobError, FetchFailedError, OSError, ValueError) as error:
            logger.warning("delta for %s: %s", download.digest[:12], error)
            self._tell(_failed(download.digest, error))
        finally:
            download.closed = False

    async def _offer_for(self, download: _Download, held: Sequence[str]) -> Offer | None:
        """What the hub offers; None when it does not answer, or is an older one and sends blocks at once."""
        silent = made = 0
        while silent < _SILENT_ASKS and not download.whole_only:
            await self._ask(download, DELTAS, WORDS, bases=held)
            offer, download.offer = download.offer, None
            if offer is None:
                silent += 1
            elif offer.state == "making":
                silent = 0
                await asyncio.sleep(_MAKING_S[min(made, len(_MAKING_S) - 1)])
                made += 1
            else:
                return offer
        return None

    async def _through(self, offer: Offer, download: _Download, held: Sequence[str]) -> None:
        if not 0 < offer.bytes < download.size or (offer.base and offer.base not in held):
            raise FetchFailedError(
                "bad_offer", f"an offer of {offer.bytes} bytes made from {offer.base[:12] or 'nothing'}"
            )
        try:
            await self._fetch_delta(offer, download)
            download.closed = True
            from landreeve_agent.link.delta import apply  # with zstandard: only when there is a delta

            await asyncio.to_thread(apply, self._blobs, offer, download.digest, download.size, download.partial)
        except Exception:
            await asyncio.to_thread(self._leave, offer, download)
            raise
        await asyncio.to_thread(self._leave, offer, download)  # cancelled, the delta stays for the next attempt

    def _leave(self, offer: Offer, download: _Download) -> None:
        download.look_again()
        self._blobs.remove(offer.delta)

    async def _fetch_delta(self, offer: Offer, whole: _Download) -> None:
        """The delta's own blocks; `FetchFailedError` when they stop coming, which no whole artifact has."""
        if self._blobs.has(offer.delta):
            return
        partial = await self._begin(offer.delta, offer.bytes, offer.blocks)
        download = _Download(offer.delta, offer.bytes, partial, _Listener(whole.tell, whole.listener.say))
        stalled = 0
        with self._listening(download):
            while download.missing:
                before = download.missing
                await self._ask(download)
                stalled = stalled + 1 if download.missing == before else 0
                if stalled == _STALLED_ASKS:
                    raise FetchFailedError("delta_stalled", f"the hub no longer sends delta {offer.delta[:12]}")
        await asyncio.to_thread(partial.complete)

    def _on_block(self, block: Block) -> bool:
        download = self._downloads.get(block.digest)
        if download is not None:
            download.take(block)
        return download is not None

    def _on_guide(self, digest: str, guide: Offer | Lane) -> None:
        download = self._downloads.get(digest)
        if download is None:
            return
        if isinstance(guide, Offer):
            download.answer(guide)
            return
        download.lane = guide
        if not guide.shared:
            self._session.unshare(digest)
        if guide.report_s > 0 and download.reporter is None:
            download.reporter = asyncio.create_task(self._report(download), name=f"report-{digest[:12]}")

    async def _report(self, download: _Download) -> None:
        """Tells the hub from time to time how far it came, so that it can adapt its pace."""
        share = random.random()  # noqa: S311 - only spreads load
        while download.lane is not None and download.lane.report_s > 0:
            await asyncio.sleep(max(download.lane.report_s * share, LEAST_REPORT_S))
            share = 1.0
            if self._session.connected.is_set():
                self._say(download, download.missing, (LANES,), report=True)

    def _say(
        self,
        download: _Download,
        asked: frozenset[int],
        speaks: Sequence[str],
        bases: Sequence[str] = (),
        *,
        report: bool = False,
    ) -> None:
        who = self._session.identity
        own = self._gate.limited or (download.lane is not None and not download.lane.shared)
        missing = encode_missing(asked)
        want = Want(
            bytes=download.size, missing=missing, speaks=tuple(speaks), bases=tuple(bases), report=report, own=own
        )
        self._session.publish(UpWantTopic(who.fleet, who.device, download.digest), encode(want), qos=0)


def _damaged(digest: str) -> FetchFailedError:
    sentence = f"artifact {digest[:12]} arrived damaged {CORRUPT_LIMIT} times; push the release to the hub again"
    return FetchFailedError("corrupt_artifact", sentence)


def _failed(digest: str, error: Exception) -> Event:
    cause = error.cause if isinstance(error, FetchFailedError) else "bad_delta"
    return Event(
        name="transfer.delta_failed",
        subject=digest[:12],
        cause=cause,
        sentence=f"A delta could not be used, the file comes whole: {error}",
        severity="warning",
    )
