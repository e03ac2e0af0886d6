"""Which blobs may leave the hub, from its tables."""

import logging
import time
from collections.abc import Callable

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
        self._by_release: dict[str, frozenset[str]] = {}
        self._digests: frozenset[str] = frozenset()
        self._bases: frozenset[str] = frozenset()
        self._read_at = -REFRESH_S

    def may_leave(self, digest: str) -> bool:
        """Whether the blob belongs to such a release, from tables at most a second old; a no is asked again
        sooner, since a release may just have been approved."""
        if self._clock() - self._read_at >= (REFRESH_S if digest in self._digests else REFRESH_S / 10):
            self._refresh()
        return digest in self._digests

    def may_be_base(self, digest: str) -> bool:
        """Whether a device may have held the blob; as fresh as `may_leave`, which is asked first."""
        return digest in self._bases

    def _refresh(self) -> None:
        self._read_at = self._clock()
        leaving, held = self._store.submit_read(_released).result()
        self._by_release = {release: self._by_release.get(release) or self._parts(release) for release in held}
        self._digests = frozenset().union(*(self._by_release[release] for release in leaving))
        self._bases = frozenset().union(*self._by_release.values())

    def _parts(self, release: str) -> frozenset[str]:
        if not self._blobs.has(release):
            return frozenset()
        try:
            manifest = parse_manifest(self._blobs.read(release))
        except BadReleaseError as error:
            log.warning("release %s: %s", release[:12], error)
            return frozenset()
        return frozenset({release, *(blob.sha256 for blob in manifest.blobs())})


def _released(connection: Connection) -> tuple[set[str], set[str]]:
    """Releases that may leave, and all that devices may hold."""
    table = tables.releases
    query = select(table.c.digest, table.c.state).where(table.c.state.in_(_WERE_APPROVED))
    states = {row.digest: row.state for row in connection.execute(query)}
    assigned = set(connection.execute(select(tables.assignments.c.digest)).scalars())
    return {digest for digest, state in states.items() if state == "approved"} | assigned, set(states) | assigned
