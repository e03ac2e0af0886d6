"""The collector of the hub's blobs: what no release needs goes after its time, and stands in the audit log.

It holds the registry's turn, so that no push or approval counts on a blob that is about to go, and reads what is
needed in the very transaction that puts the removal on record. A kill between that and the removal of the files leaves
blobs that are found again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from landreeve.blobs.errors import BlobError, MissingBlobError
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import BadReleaseError, parse_manifest
from sqlalchemy import Connection, delete, insert, select, update

from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.errors import HubError
from landreeve_hub.registry import roots
from landreeve_hub.registry.deltas import DeltaCache
from landreeve_hub.registry.needless import Keep, Needless, needless, older
from landreeve_hub.registry.releases import Registry
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

log = logging.getLogger(__name__)
HUB = "hub"
_PIECE = 500


class DoubtError(HubError):
    """What is needed cannot be told, so nothing may be removed; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """A needless blob as people see it; ``bytes`` is what it takes of the disk."""

    digest: str
    bytes: int
    why: str
    age_s: float
    after_s: float | None
    removed: bool


@dataclass
class Collector:
    """``busy`` names blobs that are arriving, or were asked of a device lately; ``monotonic`` counts their ages."""

    store: Store
    blobs: BlobStore
    registry: Registry
    audit: AuditLog
    keep: Keep
    busy: Callable[[], frozenset[str]]
    deltas: DeltaCache | None = None
    monotonic: Callable[[], float] = time.monotonic
    needed: Callable[[Connection], Mapping[str, str]] = roots.needed
    _looked_at: float | None = None
    _parts: dict[str, frozenset[str]] = field(default_factory=dict)

    async def look(self, now: datetime, *, by: str = HUB, dry: bool = False) -> list[Item]:
        """Every needless blob, those removed now first; ``dry`` changes nothing, not even the ages.

        `DoubtError` when the manifest of a release that is needed cannot be read.
        """
        async with self.registry.turn:
            here = await asyncio.to_thread(lambda: self.blobs.digests() | self.blobs.partials())
            signed = await asyncio.to_thread(self.registry.signed)
            sizes = await asyncio.to_thread(self._sizes, here)
            if dry:
                found = await self.store.read(lambda c: self._judge(c, here, signed))
                return _items(found, sizes, removed=False)
            step_s = self._step_s()
            found = await self.store.write(lambda c: self._settle(c, here, signed, step_s, Round(now, by, sizes)))
            await asyncio.to_thread(self._remove, [one.digest for one in found if one.ripe])
        return _items(found, sizes, removed=True)

    def _step_s(self) -> float:
        before, self._looked_at = self._looked_at, self.monotonic()
        return 0.0 if before is None else self._looked_at - before

    def _judge(
        self, connection: Connection, here: frozenset[str], signed: Iterable[str], step_s: float | None = None
    ) -> list[Needless]:
        """With ``step_s`` the ages are carried on and kept."""
        needed = {**dict.fromkeys(signed, ""), **self.needed(connection)}
        states = {row.digest: row for row in connection.execute(select(tables.releases))}
        kept = {release: self._parts_of_needed(release, states.get(release)) for release in needed}
        gone = {release: self._parts_of(release) or frozenset() for release in states if release not in needed}
        table = tables.needless_blobs
        ages = {row.digest: row.age_s for row in connection.execute(select(table))}
        found = needless(here, kept, gone, self.busy(), ages, self.keep)
        if step_s is not None:
            ages = older(ages, frozenset(one.digest for one in found), step_s)
            connection.execute(delete(table))
            if ages:
                connection.execute(insert(table), [{"digest": key, "age_s": age} for key, age in ages.items()])
            found = needless(here, kept, gone, self.busy(), ages, self.keep)
        return [_in_words(one, states) for one in found]

    def _settle(
        self, connection: Connection, here: frozenset[str], signed: Iterable[str], step_s: float, this: "Round"
    ) -> list[Needless]:
        """Judge, and put what goes on record."""
        found = self._judge(connection, here, signed, step_s)
        ripe = [one.digest for one in found if one.ripe]
        if not ripe:
            return found
        going, table = set(ripe), tables.releases
        purged = [
            row.digest
            for row in connection.execute(select(table.c.digest).where(table.c.state.not_in(roots.STANDING)))
            if going & ((self._parts_of(row.digest) or frozenset()) | {row.digest})
        ]
        for digest in purged:
            connection.execute(update(table).where(table.c.digest == digest).values(purged=rfc3339(this.now)))
        # Entries of the log are bounded: a fleet that was never tidied may have very many.
        for at in range(0, len(ripe), _PIECE):
            piece = ripe[at : at + _PIECE]
            data = {"blobs": piece, "bytes": sum(this.sizes.get(one, 0) for one in piece), "releases": purged}
            self.audit.record_in(connection, this.now, Act(this.by, "blobs.remove", f"{len(piece)} blobs", data=data))
        return found

    def _remove(self, digests: list[str]) -> None:
        for digest in digests:
            try:
                self.blobs.remove(digest)
            except OSError as error:
                log.warning("blob %s could not be removed: %s", digest[:12], error)
            self._parts.pop(digest, None)
        if self.deltas is not None:
            self.deltas.leave(self.blobs.has)
        if digests:
            log.info("%d blobs that no release needs were removed", len(digests))

    def _parts_of_needed(self, release: str, row: Any) -> frozenset[str]:
        parts = self._parts_of(release)
        if parts is not None:
            return parts
        if row is None or row.purged:
            return frozenset({release})  # of another hub, or removed long ago: there is nothing of it to keep
        raise DoubtError(
            f"the manifest of release {release[:12]} is not in the blob store or cannot be read: no blob is removed; "
            "push the release again, or bring back its file from a backup"
        )

    def _parts_of(self, release: str) -> frozenset[str] | None:
        """What a release consists of; None when its manifest cannot be read. Manifests never change."""
        if release not in self._parts:
            try:
                manifest = parse_manifest(self.blobs.read(release))
            except MissingBlobError:
                return None
            except (BlobError, BadReleaseError, OSError) as error:
                log.warning("release %s: %s", release[:12], error)
                return None
            self._parts[release] = frozenset({release, *(blob.sha256 for blob in manifest.blobs())})
        return self._parts[release]

    def _sizes(self, here: frozenset[str]) -> dict[str, int]:
        return {digest: self.blobs.disk_bytes(digest) for digest in here}


@dataclass(frozen=True, slots=True)
class Round:
    """When and for whom a look is made, and what each blob takes of the disk."""

    now: datetime
    by: str
    sizes: Mapping[str, int]


def _in_words(one: Needless, releases: Mapping[str, Any]) -> Needless:
    row = releases.get(one.why)
    why = f"{row.model} {row.version} is {row.state}" if row else ""
    return Needless(one.digest, why or "belongs to no release", one.age_s, one.after_s)


def _items(found: Iterable[Needless], sizes: Mapping[str, int], *, removed: bool) -> list[Item]:
    items = [
        Item(one.digest, sizes.get(one.digest, 0), one.why, one.age_s, one.after_s, removed and one.ripe)
        for one in found
    ]
    return sorted(items, key=lambda item: (not item.removed, -item.age_s, item.digest))
