"""Which blobs may leave the hub, from its tables."""

import logging
import time
from collections.abc import Callable

from landreeve.blobs.errors import BlobError
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import BadReleaseError, parse_manifest
from sqlalchemy import Connection, select

from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

log = logging.getLogger(__name__)
REFRESH_S = 1.0
# States of releases that were approved once, so that any device may hold their blobs.
_WERE_APPROVED = ("approved", "withdrawn", "quarantined")


class Allowed:
    """Which blobs may leave the hub: those of approved and of assigned releases.

    A delta tells whoever has its target all of its base, so a base, too, must be a blob that devices may hold: of a
    release that is or was approved, or is assigned.
    """

    def __init__(self, store: Store, blobs: BlobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._by_release: dict[str, dict[str, int]] = {}
        self._sizes: dict[str, int] = {}
        self._bases: frozenset[str] = frozenset()
        self._damaged: set[str] = set()
        self._read_at = -REFRESH_S

    def size(self, digest: str) -> int | None:
        """How many bytes a blob of such a release has, as its manifest says; None for any other. From tables at most a
        second old; a no is asked again sooner, since a release may just have been approved."""
        if self._clock() - self._read_at >= (REFRESH_S if digest in self._sizes else REFRESH_S / 10):
            self._refresh()
        return self._sizes.get(digest)

    def may_be_base(self, digest: str) -> bool:
        """Whether a device may have held the blob; as fresh as `size`, which is asked first."""
        return digest in self._bases

    def _refresh(self) -> None:
        self._read_at = self._clock()
        leaving, held = self._store.submit_read(_released).result()
        self._by_release = {release: self._by_release.get(release) or self._parts(release) for release in held}
        # A manifest that the disk has changed may leave as it is: the device finds it damaged, and says so.
        self._sizes = {release: size for release, size in leaving.items() if size is not None}
        for release in leaving:
            self._sizes |= self._by_release[release]
        self._bases = frozenset().union(*self._by_release.values())

    def _parts(self, release: str) -> dict[str, int]:
        """The blobs of the release; none while its manifest cannot be read, which is no other release's trouble."""
        try:
            data = self._blobs.read(release)
            manifest = parse_manifest(data)
        except (BadReleaseError, BlobError, OSError) as error:
            if release not in self._damaged:
                log.error("release %s cannot be read, push it again: %s", release[:12], error)  # noqa: TRY400
            self._damaged.add(release)
            return {}
        self._damaged.discard(release)
        return {release: len(data), **{blob.sha256: blob.size for blob in manifest.blobs()}}


def _released(connection: Connection) -> tuple[dict[str, int | None], set[str]]:
    """Releases that may leave, with the length of their manifest, and all that devices may hold."""
    table = tables.releases
    query = select(table.c.digest, table.c.state, table.c.manifest_bytes)
    rows = {row.digest: row for row in connection.execute(query)}
    assigned = set(connection.execute(select(tables.assignments.c.digest)).scalars())
    held = {digest for digest, row in rows.items() if row.state in _WERE_APPROVED} | assigned
    leaving = {digest for digest in held if digest in assigned or rows[digest].state == "approved"}
    return {digest: rows[digest].manifest_bytes if digest in rows else None for digest in leaving}, held
