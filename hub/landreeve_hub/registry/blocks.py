"""Artifacts over MQTT, both ways: the hub answers what devices lack, and asks for what it lacks itself.

Blocks travel at QoS 0 and are repaired by asking again, which is cheaper than a receipt for each. Down: only what
belongs to an approved or assigned release leaves. Up: only what the hub asked for is kept, within a quota.
"""

import errno
import logging
import threading
import time
from typing import Protocol

from landreeve.blobs.codec import BlobReader
from landreeve.blobs.errors import BlobError, MissingBlobError
from landreeve.blobs.store import BlobStore
from landreeve.wire.codec import BLOCK_BYTES, BadMessageError, Block, encode, encode_block, missing_bits
from landreeve.wire.messages import Want
from landreeve.wire.topics import Down, DownLaneTopic, DownOfferTopic, DownTopic, SharedBlocksTopic, format_topic
from landreeve.wire.transfers import DELTAS, LANES, WORDS, Lane, Offer

from landreeve_hub.registry.allowed import Allowed
from landreeve_hub.registry.deltas import DeltaCache, Workshop
from landreeve_hub.registry.pacing import REPORT_S
from landreeve_hub.registry.serving import Demand, Piece
from landreeve_hub.store.database import Store

log = logging.getLogger(__name__)
SHARE_S = 0.15
IDLE_S = 30.0
# Less than this is there before anyone could report.
PACED_BYTES = 32 * BLOCK_BYTES
MAX_OPEN = 32
MOST_SIZES = 1000


class Carrier(Protocol):
    """What sends (`landreeve_hub.ingest.line.Line`): blocks at QoS 0, False when it could not; answers at QoS 1."""

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None: ...
    def publish_block(self, topic: str, frame: bytes) -> bool: ...


class BlockServer:
    """Sends blocks from a thread of its own, at most ``bytes_per_s`` together.

    A first want waits a moment for others to join: what several devices lack is sent once for all, as fast as the
    slowest healthy one takes it (`landreeve_hub.registry.pacing`).
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        carrier: Carrier,
        fleet: str,
        *,
        bytes_per_s: float,
        workshop: Workshop | None = None,
    ) -> None:
        self._allowed = Allowed(store, blobs)
        self._blobs = blobs
        self._carrier = carrier
        self._fleet = fleet
        self._bytes_per_s = bytes_per_s
        self._workshop = workshop
        self._demand = Demand()
        self._open: dict[str, BlobReader] = {}
        self._anew: set[str] = set()
        self._unreadable: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._lock = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="blocks", daemon=True)

    @property
    def deltas(self) -> DeltaCache | None:
        """The deltas that are kept; None where none are made."""
        return self._workshop.cache if self._workshop is not None else None

    def start(self) -> None:
        self._thread.start()
        if self._workshop is not None:
            self._workshop.start()

    def stop(self) -> None:
        """End the threads; devices ask again."""
        if self._workshop is not None:
            self._workshop.stop()
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._close_all()

    def on_want(self, device: str, digest: str, want: Want) -> None:
        """Note what a device lacks; what it may not have, or is not here, is logged and left."""
        size = self._size_of(digest)
        if size is None:
            log.warning("%s wants artifact %s, which belongs to no approved or assigned release", device, digest[:12])
            return
        if want.bytes not in (0, size):
            log.warning("%s wants %d bytes of artifact %s, which has %d", device, want.bytes, digest[:12], size)
            return
        try:
            missing = _missing(want, size)
        except BadMessageError as error:
            log.warning("%s wants artifact %s: %s", device, digest[:12], error)
            return
        if DELTAS in want.speaks:
            self._offer(device, digest, want)
            return
        self._take_in(device, digest, want, missing, paced=LANES in want.speaks and size >= PACED_BYTES)

    def _take_in(self, device: str, digest: str, want: Want, missing: int, *, paced: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if missing == (1 << -(-self._sizes.get(digest, 0) // BLOCK_BYTES)) - 1:
                self._anew.add(digest)  # its file may have been mended since it was opened
            if want.report:
                self._demand.report(device, digest, missing, now)
            else:
                self._demand.want(device, digest, missing, now, reports=paced, own=want.own)
            every_s = self._demand.report_s(digest)
            self._lock.notify()
        if paced and not want.report:
            self._guide(device, digest, Lane(report_s=every_s, shared=not want.own))

    def _size_of(self, digest: str) -> int | None:
        """The length of an artifact that may leave, or of a delta that leads to one; None for any other."""
        target = self._workshop.cache.target_of(digest) if self._workshop is not None else None
        size = self._allowed.size(target or digest)
        if size is not None and target:
            try:
                size = self._store_of(digest).size(digest)
            except MissingBlobError:
                return None
        if size is not None:
            if len(self._sizes) >= MOST_SIZES:
                self._sizes.clear()
            self._sizes[digest] = size
        return size

    def _store_of(self, digest: str) -> BlobStore:
        if self._workshop is not None and not self._blobs.has(digest):
            return self._workshop.cache.store
        return self._blobs

    def _offer(self, device: str, digest: str, want: Want) -> None:
        offer = Offer(state="whole")
        if self._workshop is not None:
            kind = WORDS if WORDS in want.speaks else ""
            offer = self._workshop.offer(digest, [base for base in want.bases if self._allowed.may_be_base(base)], kind)
        self._carrier.publish(format_topic(DownOfferTopic(self._fleet, device, digest)), encode(offer))

    def _work(self) -> None:
        while (piece := self._next()) is not None:
            try:
                sent = self._send(piece)
            except (OSError, BlobError) as error:
                log.warning("artifact %s cannot be read: %s", piece.digest[:12], error)
                continue
            if sent == 0:
                time.sleep(0.2)  # no connection: devices ask again
            else:
                time.sleep(sent / self._bytes_per_s)

    def _next(self) -> Piece | None:
        """The next block once it is due; None at the end."""
        while not self._stopping:
            with self._lock:
                piece = self._demand.next(time.monotonic())
                outcasts = self._demand.outcasts()
                if piece is None and not outcasts:
                    self._await_work()
            for device, digest in outcasts:
                self._guide(device, digest, Lane(report_s=REPORT_S, shared=False))
            if piece is not None:
                return piece
        return None

    def _await_work(self) -> None:
        """With the lock held: until a block is due, or somebody says something."""
        wait_s = self._demand.wait(time.monotonic())
        if wait_s is not None:
            self._lock.wait(wait_s)
            return
        self._close_all()
        self._demand.forget(time.monotonic())
        if self._lock.wait(IDLE_S):
            self._lock.wait_for(lambda: self._stopping, timeout=SHARE_S)

    def _guide(self, device: str, digest: str, lane: Lane) -> None:
        self._carrier.publish(format_topic(DownLaneTopic(self._fleet, device, digest)), encode(lane))

    def _send(self, piece: Piece) -> int:
        data = self._block(piece.digest, piece.index)
        if piece.device:
            topic = format_topic(DownTopic(self._fleet, piece.device, Down.BLOCKS))
        else:
            topic = format_topic(SharedBlocksTopic(self._fleet, piece.digest))
        sent = self._carrier.publish_block(topic, encode_block(Block(piece.digest, piece.index, data)))
        return len(data) if sent else 0

    def _reader(self, digest: str) -> BlobReader:
        if digest not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[digest] = self._store_of(digest).open(digest)
        return self._open[digest]

    def _block(self, digest: str, index: int) -> bytes:
        """What is on the disk; zeros for what the disk has lost, so that devices find it damaged and say so, instead of
        waiting for ever."""
        self._close_replaced()
        try:
            data = self._reader(digest).read_at(index * BLOCK_BYTES, BLOCK_BYTES)
        except (BlobError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            if digest not in self._unreadable:  # the worker's thread alone looks at it
                log.error("artifact %s cannot be read; push its release again: %s", digest[:12], error)  # noqa: TRY400
            self._unreadable.add(digest)
            data = b""
        whole = self._sizes.get(digest, 0) - index * BLOCK_BYTES
        return data.ljust(min(max(whole, 0), BLOCK_BYTES), b"\0")

    def _close_replaced(self) -> None:
        with self._lock:
            anew, self._anew = self._anew, set()
        self._unreadable -= anew
        for digest in anew & self._open.keys():
            self._open.pop(digest).close()

    def _close_all(self) -> None:
        for reader in self._open.values():
            reader.close()
        self._open.clear()


def _missing(want: Want, size: int) -> int:
    blocks = -(-size // BLOCK_BYTES)
    if want.bytes == 0 and not want.missing:
        return (1 << blocks) - 1
    return missing_bits(want.missing, blocks)
