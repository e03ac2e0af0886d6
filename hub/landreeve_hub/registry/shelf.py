"""The registry as others' tools read it: repositories, tags, manifests, blobs, referrers of OCI.

A model is a repository (`landreeve.release.reference.repository_of`), its versions and aliases are tags. Every
release is on the shelf but those withdrawn or quarantined, since a machine that pulls would run them.
A blob is found only by way of a release of the same repository, so one repository never opens another's. What is known
to be damaged is not there, and the answer says how it is mended.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from landreeve.blobs.codec import BlobReader
from landreeve.blobs.errors import BlobError
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import MANIFEST_TYPE, digest_of, parse_manifest
from landreeve.release.reference import is_tag, repository_of
from sqlalchemy import Connection, select

from landreeve_hub.errors import NotFoundError
from landreeve_hub.registry.bill import EMPTY
from landreeve_hub.registry.soundness import Soundness
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

OFF_THE_SHELF = ("withdrawn", "quarantined")
_MEND = "damaged or lost on the hub's disk; push its release again, which mends it"


class NoSuchRepositoryError(NotFoundError, LookupError):
    """No model has that repository name."""


class NoSuchManifestError(NotFoundError, LookupError):
    """The repository has no such tag or manifest to give."""


class NoSuchBlobError(NotFoundError, LookupError):
    """No release of the repository consists of that blob, or what is here of it is damaged."""


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest as it is served; ``digest`` is its sha256 in hex."""

    digest: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Row:
    digest: str
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes in memory, read as a blob is."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def close(self) -> None:
        """Nothing to close."""


class Shelf:
    """Reads releases for OCI clients. Every method raises `NoSuchRepositoryError` for an unknown repository."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self.soundness = Soundness(blobs)
        self._parts: dict[str, frozenset[str]] = {}

    async def repositories(self) -> list[str]:
        """Every repository's name, in order."""
        return sorted(await self._store.read(lambda c: set(_repositories(c))))

    async def tags(self, repository: str) -> list[str]:
        """Every tag, in the order of Go's ``sort.Strings``."""
        rows = await self._rows(repository)
        return sorted({tag for row in rows for tag in row.tags})

    async def manifest(self, repository: str, wanted: str) -> Document:
        """The manifest of a tag or of ``sha256:…``; `NoSuchManifestError`."""
        rows = await self._rows(repository)
        algorithm, colon, value = wanted.partition(":")
        for row in rows:
            if (row.digest == value and algorithm == "sha256") if colon else wanted in row.tags:
                return Document(row.digest, MANIFEST_TYPE, await self._manifest_of(repository, row))
        for paper in await self._papers(rows):
            if algorithm == "sha256" and paper.digest == value:
                return Document(paper.digest, MANIFEST_TYPE, paper.manifest)
        raise NoSuchManifestError(f"{repository}: has no {wanted[:80]!r} to give; it may have been withdrawn")

    async def blob(self, repository: str, digest: str) -> BlobReader:
        """A blob of one of the repository's releases, or of what refers to one, to be closed; ``digest`` in hex.
        `NoSuchBlobError`, also for a damaged one: who asks only whether it is there must not take it for whole.
        """
        rows = await self._rows(repository)
        if await asyncio.to_thread(self._belongs, rows, digest):
            if not await self.soundness.is_whole(digest):
                raise NoSuchBlobError(f"{repository}: blob sha256:{digest[:12]}… is {_MEND}")
            return await asyncio.to_thread(self._blobs.open, digest)
        for paper in await self._papers(rows):
            found = {digest_of(EMPTY): EMPTY, paper.content_digest: paper.content, paper.digest: paper.manifest}
            if digest in found:
                return _Held(bytes(found[digest]))
        raise NoSuchBlobError(f"{repository}: no release here consists of blob sha256:{digest[:12]}…")

    async def referrers(self, repository: str, digest: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to a release of the repository, oldest first; none for what is not here."""
        rows = [row for row in await self._rows(repository) if row.digest == digest]
        return [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": f"sha256:{paper.digest}",
                "size": len(paper.manifest),
                "artifactType": paper.artifact_type,
                "annotations": {"org.opencontainers.image.created": paper.created},
            }
            for paper in await self._papers(rows)
        ]

    def _belongs(self, rows: list[_Row], digest: str) -> bool:
        return any(digest in self._parts_of(row.digest) for row in rows)

    def _parts_of(self, digest: str) -> frozenset[str]:
        """What a release consists of; a manifest never changes, so it is parsed once. Of a damaged one nothing is
        known, which is no other release's trouble."""
        if digest not in self._parts:
            try:
                manifest = parse_manifest(self._blobs.read(digest))
            except (BlobError, OSError):
                return frozenset()
            self._parts[digest] = frozenset(blob.sha256 for blob in manifest.blobs()) | {digest}
        return self._parts[digest]

    async def _manifest_of(self, repository: str, row: _Row) -> bytes:
        try:
            return await asyncio.to_thread(self._blobs.read, row.digest)
        except (BlobError, OSError) as error:
            raise NoSuchManifestError(f"{repository}: manifest sha256:{row.digest[:12]}… is {_MEND}") from error

    async def _rows(self, repository: str) -> list[_Row]:
        return await self._store.read(lambda c: _rows(c, repository))

    async def _papers(self, rows: list[_Row]) -> list[Any]:
        table, subjects = tables.referrers, [row.digest for row in rows]
        query = select(table).where(table.c.subject.in_(subjects)).order_by(table.c.created, table.c.digest)
        return await self._store.read(lambda c: list(c.execute(query)))


def _repositories(connection: Connection) -> dict[str, str]:
    """Model by repository."""
    models = connection.execute(select(tables.releases.c.model).distinct()).scalars()
    return {repository_of(model): model for model in models}


def _rows(connection: Connection, repository: str) -> list[_Row]:
    model = _repositories(connection).get(repository)
    if model is None:
        raise NoSuchRepositoryError(f"no model has the repository {repository[:80]!r}")
    releases, aliases = tables.releases, tables.aliases
    named: dict[str, set[str]] = {}
    for alias in connection.execute(select(aliases).where(aliases.c.model == model)):
        named.setdefault(alias.digest, set()).add(alias.alias)
    query = select(releases.c.digest, releases.c.version).where(
        releases.c.model == model, releases.c.state.not_in(OFF_THE_SHELF)
    )
    return [
        _Row(row.digest, frozenset(tag for tag in {row.version, *named.get(row.digest, ())} if is_tag(tag)))
        for row in connection.execute(query)
    ]
