"""The registry: releases from draft to approved, withdrawn or quarantined.

A release is in the tables only when all its blobs are in the blob store; it is *approved* only when the targets
repository has signed it, since that signature is what devices believe.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
from landreeve.blobs.errors import MissingBlobError
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed
from landreeve.release.manifest import BadReleaseError, parse_config, parse_manifest
from landreeve_models.baseline import Baseline
from sqlalchemy import Connection, delete, func, insert, select, update

from landreeve_hub.errors import NotFoundError
from landreeve_hub.registry.bill import BILL_TYPE, Decision, Referrer, Subject, bill_of, read_own, referrer_of
from landreeve_hub.registry.examine import Examined, examine
from landreeve_hub.registry.shelf import Shelf
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.upsert import upsert

OWN_BILL = "bom.json"
BASELINE = "baseline.json"
DRAFT, APPROVED, WITHDRAWN, QUARANTINED = "draft", "approved", "withdrawn", "quarantined"
AWAITING = "awaiting"  # approved by a person, but signatures of keys kept elsewhere are still missing


class Targets(Protocol):
    """Where approvals are signed (`landreeve_hub.signing.targets.TargetsRepository`)."""

    def add_release(  # noqa: PLR0917  the order in which a release is spoken of everywhere
        self, digest: str, length: int, model: str, version: str, approved_by: str, now: datetime
    ) -> object: ...
    def remove_release(self, digest: str, now: datetime) -> object: ...
    def releases(self) -> dict[str, int]: ...
    def standing(self, digest: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A release by its digest, and the version the registry gave it within its model."""

    digest: str
    version: str


class WrongStateError(ValueError):
    """A release is not in a state that allows what was asked; the text says which it is in."""


class NoSuchReleaseError(NotFoundError, LookupError):
    """No release, or no blob, of that digest is here."""


class Registry:
    """Releases and their blobs. Who may call what, and that it is recorded, is the API's care."""

    def __init__(self, store: Store, blobs: BlobStore, targets: Targets) -> None:
        self._store = store
        self._blobs = blobs
        self._targets = targets
        self.shelf = Shelf(store, blobs)
        # Whoever makes a release of blobs that are here, or removes blobs, holds it.
        self.turn = asyncio.Lock()

    async def register(self, packed: Packed, by: str, now: datetime) -> Registered:
        """Take a release in as a draft; the same release again answers its first version.

        `landreeve.release.manifest.BadReleaseError` when it must not be used.
        """
        found = await examine(packed.manifest_bytes, packed.blobs.__getitem__)
        async with self.turn:
            await asyncio.to_thread(self._keep, packed)
            return await self._store.write(lambda c: _add(c, found, {"created_by": by, "created": rfc3339(now)}))

    async def register_stored(self, digest: str, *, by: str, device: str, run: str, now: datetime) -> str:
        """Make the release whose blobs have arrived a draft; its version. Errors as `register`."""
        found = await examine(self._read(digest), self._read)
        source = {"created_by": by, "created": rfc3339(now), "source_device": device, "source_run": run}
        async with self.turn:
            parts = (digest, *(blob.sha256 for blob in parse_manifest(found.manifest_bytes).blobs()))
            if any(not self._blobs.has(part) for part in parts):
                raise NoSuchReleaseError(
                    f"release {digest[:12]}: a part of it went while it was judged; fetch it again"
                )
            return (await self._store.write(lambda c: _add(c, found, source))).version

    async def approve(self, digest: str, by: str, now: datetime) -> None:
        """Sign a draft (or a withdrawn release, anew) so that devices may install it; write its bill of materials.
        Where keys are needed that are kept elsewhere, it is *awaiting* until their signatures came (`settle`)."""
        async with self.turn:
            await self._approve(digest, by, now)

    def signed(self) -> frozenset[str]:
        """Releases that are signed now, whatever the tables say."""
        return frozenset(self._targets.releases())

    async def _approve(self, digest: str, by: str, now: datetime) -> None:
        row = await self._row(digest)
        if row.state not in {DRAFT, WITHDRAWN, APPROVED, AWAITING}:
            raise WrongStateError(f"{row.model} {row.version} is {row.state}: only a draft can be approved")
        if row.purged:
            raise WrongStateError(
                f"{row.model} {row.version}: its files were removed on {row.purged[:10]}, long after it was "
                f"{row.state}; push the release again first"
            )
        # First, so that nothing is signed whose papers cannot be written.
        paper = await asyncio.to_thread(self._bill, row, Decision(row.created_by, by, rfc3339(now)))
        sign = self._targets.add_release
        await asyncio.to_thread(sign, digest, row.manifest_bytes, row.model, row.version, by, now)
        in_force = digest in await asyncio.to_thread(self._targets.releases)
        change = {"state": APPROVED if in_force else AWAITING, "approved_by": by}

        def approved(connection: Connection) -> None:
            connection.execute(update(tables.releases).where(tables.releases.c.digest == digest).values(change))
            _file_bill(connection, digest, paper, rfc3339(now))

        await self._store.write(approved)

    async def settle(self) -> tuple[str, ...]:
        """Releases whose signatures have all arrived become approved; their digests."""
        signed = await asyncio.to_thread(self._targets.releases)
        table = tables.releases
        query = select(table.c.digest).where(table.c.state == AWAITING)
        waiting = await self._store.read(lambda c: list(c.execute(query).scalars()))
        arrived = tuple(digest for digest in waiting if digest in signed)
        for digest in arrived:
            await self._change(digest, state=APPROVED)
        return arrived

    async def awaiting(self) -> dict[str, str]:
        """What each release in that state waits for, in words, by digest."""
        query = select(tables.releases.c.digest).where(tables.releases.c.state == AWAITING)
        digests = await self._store.read(lambda c: list(c.execute(query).scalars()))
        return {digest: await asyncio.to_thread(self._targets.standing, digest) for digest in digests}

    async def withdraw(self, digest: str, by: str, now: datetime) -> None:
        """Take the signature back: no device installs it from now on; those that run it keep serving.

        Who did it stands in the audit log, which the caller writes.
        """
        del by
        await self._row(digest)
        await asyncio.to_thread(self._targets.remove_release, digest, now)
        await self._change(digest, state=WITHDRAWN)

    def pull(self, digest: str) -> Packed:
        """The whole release, every blob verified again; `LookupError` when it is not here."""
        manifest_bytes = self._read(digest)
        blobs = {blob.sha256: self._read(blob.sha256) for blob in parse_manifest(manifest_bytes).blobs()}
        return Packed(manifest_bytes, digest, blobs)

    def baseline(self, digest: str) -> Baseline | None:
        """What the release's training data looked like; None when it does not say, or is not here."""
        try:
            layer = parse_manifest(self._read(digest)).layer(BASELINE)
            return Baseline.from_bytes(self._read(layer.sha256)) if layer is not None else None
        except (LookupError, OSError, BadReleaseError):
            return None

    async def bill(self, digest: str) -> bytes:
        """The bill of materials of a release that was approved, CycloneDX as JSON; `NoSuchReleaseError`."""
        table = tables.referrers
        query = select(table.c.content).where(table.c.subject == digest, table.c.artifact_type == BILL_TYPE)
        found = await self._store.read(lambda c: c.execute(query).scalar())
        if found is None:
            raise NoSuchReleaseError(f"release {digest[:12]}: has no bill of materials; it is made when it is approved")
        return bytes(found)

    def _bill(self, row: Any, decision: Decision) -> Referrer:
        manifest = parse_manifest(self._read(row.digest))
        own = manifest.layer(OWN_BILL)
        subject = Subject(
            row.digest,
            row.manifest_bytes,
            row.version,
            parse_config(self._read(manifest.settings.sha256)),
            manifest.layers,
            read_own(self._read(own.sha256)) if own is not None else {},
        )
        return referrer_of(subject, bill_of(subject, decision), decision.at)

    def _keep(self, packed: Packed) -> None:
        self._blobs.reserve(sum(len(data) for data in packed.blobs.values()))
        for data in (*packed.blobs.values(), packed.manifest_bytes):
            self._blobs.put(data)

    def _read(self, digest: str) -> bytes:
        try:
            return self._blobs.read(digest)
        except MissingBlobError as error:
            raise NoSuchReleaseError(str(error)) from error

    async def _row(self, digest: str) -> Any:
        row = await self._store.read(
            lambda c: c.execute(select(tables.releases).where(tables.releases.c.digest == digest)).first()
        )
        if row is None:
            raise NoSuchReleaseError(f"release {digest[:12]} is not in the registry; push it first")
        return row

    async def _change(self, digest: str, **values: str) -> None:
        change = update(tables.releases).where(tables.releases.c.digest == digest).values(values)
        await self._store.write(lambda connection: connection.execute(change).rowcount)


def _file_bill(connection: Connection, digest: str, paper: Referrer, at: str) -> None:
    """The newest approval's bill takes the place of a former one."""
    table = tables.referrers
    connection.execute(delete(table).where(table.c.subject == digest, table.c.artifact_type == BILL_TYPE))
    row = {"digest": paper.digest, "subject": digest, "artifact_type": BILL_TYPE, "created": at}
    content = {"manifest": paper.manifest, "content_digest": paper.content_digest, "content": paper.content}
    connection.execute(insert(table).values({**row, **content}))


def _add(connection: Connection, found: Examined, source: Mapping[str, str]) -> Registered:
    table, model = tables.releases, found.config.model
    known = connection.execute(select(table.c.version).where(table.c.digest == found.digest)).scalar()
    if known is not None:
        connection.execute(update(table).where(table.c.digest == found.digest).values(purged=""))  # it is here again
        return Registered(found.digest, known)
    count = connection.execute(select(func.count()).select_from(table).where(table.c.model == model)).scalar() or 0
    row = {"digest": found.digest, "model": model, "version": f"v{count + 1}", "state": DRAFT}
    config = msgspec.to_builtins(msgspec.structs.replace(found.config, blocks={}))
    connection.execute(
        insert(table).values({**row, **source, "manifest_bytes": len(found.manifest_bytes), "config": config})
    )
    if found.definition:
        upsert(
            connection,
            tables.models,
            {"name": model, "definition": found.definition, "created": source["created"]},
            keep=["created"],
        )
    return Registered(found.digest, row["version"])
