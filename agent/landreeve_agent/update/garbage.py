"""Blobs that no version needs any more, removed; the rules are such that a doubt keeps.

Needed is what belongs to a version that serves, served before, may be returned to, came first (the factory version),
is on its way or ordered, or to a challenger the hub may still fetch. A blob goes only after it was found needless
twice, some time apart by the monotonic clock: whoever stores blobs before saying so in the database is done by then.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from landreeve.blobs.errors import BlobError, MissingBlobError
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.layout import MANIFEST_FILE
from landreeve.release.manifest import BadReleaseError, parse_manifest
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.database import Database
from landreeve_agent.training.runs import challengers
from landreeve_agent.update import journal
from landreeve_agent.update.directing import pinned
from landreeve_agent.update.install import Installer
from landreeve_agent.update.pointer import read_pointers, release_folder
from landreeve_agent.update.standing import State

logger = logging.getLogger(__name__)

GRACE_S = 600.0


class Blobs(Protocol):
    """`landreeve.blobs.store.BlobStore`."""

    def digests(self) -> frozenset[str]: ...
    def partials(self) -> frozenset[str]: ...
    def read(self, digest: str) -> bytes: ...
    def remove(self, digest: str) -> None: ...


class DoubtError(Exception):
    """What is needed cannot be told: nothing is removed."""


def parts_of(releases: Mapping[str, Path | None], blobs: Blobs, files: Files = PLAIN) -> frozenset[str]:
    """Every blob of those releases as far as they are here. ``releases`` maps them to their folders, if they have one.

    `DoubtError` when the manifest of one is here and cannot be read.
    """
    found: set[str] = set()
    for release, folder in releases.items():
        found.add(release)
        data = _manifest(release, folder, blobs, files)
        if data is None:
            continue  # it has not begun to arrive
        try:
            found |= {blob.sha256 for blob in parse_manifest(data).blobs()}
        except BadReleaseError as error:
            raise DoubtError(f"release {release[:12]}: {error}") from error
    return frozenset(found)


def _manifest(release: str, folder: Path | None, blobs: Blobs, files: Files) -> bytes | None:
    try:
        return blobs.read(release)
    except MissingBlobError:
        pass
    except BlobError as error:
        raise DoubtError(str(error)) from error
    file = folder / MANIFEST_FILE if folder is not None else None
    return files.read(file) if file is not None and file.is_file() else None


@dataclass
class Suspects:
    """Since when each blob is needless, by the monotonic clock; asked again and again it says which may go."""

    grace_s: float = GRACE_S
    since: dict[str, float] = field(default_factory=dict)

    def ripe(self, needless: frozenset[str], now: float) -> frozenset[str]:
        """Those found needless now, at the last look, and for the whole time of grace."""
        self.since = {digest: self.since.get(digest, now) for digest in needless}
        return frozenset(digest for digest, first in self.since.items() if now - first >= self.grace_s)


@dataclass
class Garbage:
    """The collector of one box. ``under_way`` names blobs that are arriving or leaving right now."""

    database: Database
    blobs: Blobs
    installers: tuple[Installer, ...]
    models: Path
    under_way: Callable[[], frozenset[str]]
    monotonic: Callable[[], float] = time.monotonic
    suspects: Suspects = field(default_factory=Suspects)
    pinned: Callable[[State], frozenset[str]] = pinned

    async def run(self) -> int:
        """How many blobs were removed. While any release is being installed, none is, and nothing else begins."""
        async with AsyncExitStack() as turns:
            for installer in self.installers:
                await turns.enter_async_context(installer.turn)
            if any(installer.busy for installer in self.installers):
                return 0
            try:
                needless = await self.database.read(self._needless)
            except (DoubtError, OSError) as error:
                logger.warning("no blob is removed: %s", error)
                return 0
            ripe = self.suspects.ripe(needless, self.monotonic()) - self.under_way()
            for digest in ripe:
                self.blobs.remove(digest)
        if ripe:
            logger.info("%d blobs that no version needs were removed", len(ripe))
        return len(ripe)

    def _needless(self, db: SqliteDatabase) -> frozenset[str]:
        releases: dict[str, Path | None] = dict.fromkeys(challengers(db))
        for model, state in journal.load_all(db).items():
            for release in self.pinned(state):
                releases[release] = release_folder(self.models, model, release)
        for model, pointer in read_pointers(self.models).items():
            releases[pointer.release] = release_folder(self.models, model, pointer.release)
        here = self.blobs.digests() | self.blobs.partials()
        return here - parts_of(releases, self.blobs, self.installers[0].files if self.installers else PLAIN)
