"""Artifacts over MQTT, both ways: the hub answers what devices lack, and asks for what it lacks itself.

Blocks travel at QoS 0 and are repaired by asking again, which is cheaper than a receipt for each. Down: only what
belongs to an approved or assigned release leaves. Up: only what the hub asked for is kept, within a quota.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from landreeve.blobs.codec import BlobReader
from landreeve.blobs.errors import BlobError
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import BadReleaseError, parse_manifest
from landreeve.wire.codec import BLOCK_BYTES, BadMessageError, Block, decode_missing, encode_block
from landreeve.wire.messages import Want
from landreeve.wire.topics import Down, DownTopic, SharedBlocksTopic, format_topic
from sqlalchemy import Connection, select

from landreeve_hub.registry.serving import Demand, Piece
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

log = logging.getLogger(__name__)
SHARE_S = 0.15
MAX_OPEN = 32
REFRESH_S = 1.0


class Carrier(Protocol):
    """What sends a block (`landreeve_hub.ingest.line.Line`); False when it could not."""

    def publish_block(self, topic: str, frame: bytes) -> bool: ...


class BlockServer:
    """Sends blocks from a thread of its own, at most ``bytes_per_s`` together.

    A first want waits a moment for others to join: what several devices lack is sent once for all.
    """

    def __init__(self, store: Store, blobs: BlobStore, carrier: Carrier, fleet: str, *, bytes_per_s: float) -> None:
        self._allowed = Allowed(store, blobs)
        self._blobs = blobs
        self._carrier = carrier
        self._fleet = fleet
        self._bytes_per_s = bytes_per_s
        self._demand = Demand()
        self._open: dict[str, BlobReader] = {}
        self._lock = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="blocks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; devices ask again."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._open.clear()

    def on_want(self, device: str, digest: str, want: Want) -> None:
        """Note what a device lacks; what it may not have, or is not here, is logged and left."""
        if not self._allowed.may_leave(digest) or not self._blobs.has(digest):
            log.warning("%s wants artifact %s, which belongs to no approved or assigned release", device, digest[:12])
            return
        size = self._blobs.size(digest)
        if want.bytes not in (0, size):
            log.warning("%s wants %d bytes of artifact %s, which has %d", device, want.bytes, digest[:12], size)
            return
        try:
            missing = _missing(want, size)
        except BadMessageError as error:
            log.warning("%s wants artifact %s: %s", device, digest[:12], error)
            return
        with self._lock:
            self._demand.want(device, digest, missing)
            self._lock.notify()

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
        with self._lock:
            piece = self._demand.next()
            while piece is None and not self._stopping:
                self._open.clear()
                self._lock.wait()
                self._lock.wait_for(lambda: self._stopping, timeout=SHARE_S)
                piece = self._demand.next()
            return None if self._stopping else piece

    def _send(self, piece: Piece) -> int:
        data = self._reader(piece.digest).read_at(piece.index * BLOCK_BYTES, BLOCK_BYTES)
        if piece.device:
            topic = format_topic(DownTopic(self._fleet, piece.device, Down.BLOCKS))
        else:
            topic = format_topic(SharedBlocksTopic(self._fleet, piece.digest))
        sent = self._carrier.publish_block(topic, encode_block(Block(piece.digest, piece.index, data)))
        return len(data) if sent else 0

    def _reader(self, digest: str) -> BlobReader:
        if digest not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[digest] = self._blobs.open(digest)
        return self._open[digest]


def _missing(want: Want, size: int) -> frozenset[int]:
    blocks = -(-size // BLOCK_BYTES)
    if want.bytes == 0 and not want.missing:
        return frozenset(range(blocks))
    return decode_missing(want.missing, blocks)


class Allowed:
    """Which blobs may leave the hub: those of approved and of assigned releases."""

    def __init__(self, store: Store, blobs: BlobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._by_release: dict[str, frozenset[str]] = {}
        self._digests: frozenset[str] = frozenset()
        self._read_at = -REFRESH_S

    def may_leave(self, digest: str) -> bool:
        """Whether the blob belongs to such a release, from tables at most a second old; a no is asked again
        sooner, since a release may just have been approved."""
        if self._clock() - self._read_at >= (REFRESH_S if digest in self._digests else REFRESH_S / 10):
            self._refresh()
        return digest in self._digests

    def _refresh(self) -> None:
        self._read_at = self._clock()
        releases = self._store.submit_read(_released).result()
        self._by_release = {release: self._by_release.get(release) or self._parts(release) for release in releases}
        self._digests = frozenset().union(*self._by_release.values())

    def _parts(self, release: str) -> frozenset[str]:
        if not self._blobs.has(release):
            return frozenset()
        try:
            manifest = parse_manifest(self._blobs.read(release))
        except BadReleaseError as error:
            log.warning("release %s: %s", release[:12], error)
            return frozenset()
        return frozenset({release, *(blob.sha256 for blob in manifest.blobs())})


def _released(connection: Connection) -> set[str]:
    approved = select(tables.releases.c.digest).where(tables.releases.c.state == "approved")
    assigned = select(tables.assignments.c.digest)
    return {*connection.execute(approved).scalars(), *connection.execute(assigned).scalars()}
