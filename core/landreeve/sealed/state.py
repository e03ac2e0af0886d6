"""A whole state folder sealed, unsealed, or sealed anew: database first, then blobs, one file at a time.

Every step leaves something that works: readers take plain and sealed files alike, so a conversion that was killed is
simply begun again.
"""

import contextlib
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from landreeve.blobs.codec import Codec, PlainCodec
from landreeve.blobs.durable import sync_folder, write_durably
from landreeve.sealed import sqlite
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.files import SealedFiles, released, unfinished
from landreeve.sealed.vault import Vault
from landreeve.wire.codec import BLOCK_BYTES


@dataclass(frozen=True)
class Parts:
    """What of a state folder is sealed: its database, the roots of its blob stores, and the files of releases in
    ``models``. Folders of ``passing`` hold what is made anew when it is gone: a conversion empties them."""

    root: Path
    database: Path
    blobs: tuple[Path, ...] = ()
    models: Path | None = None
    passing: tuple[Path, ...] = ()

    @property
    def vault(self) -> Path:
        """Where the wrapped keys lie."""
        return self.root / "keys" / "vault.json"


@dataclass
class Tally:
    """How many of each part are sealed with the newest key, with an older one, and in plain text."""

    database: str = "none"
    current: int = 0
    older: int = 0
    plain: int = 0
    converted: int = field(default=0)
    files: int = 0
    files_older: int = 0
    files_plain: int = 0

    @property
    def whole(self) -> bool:
        """Whether everything is sealed with the newest key."""
        left = self.plain + self.older + self.files_plain + self.files_older
        return left == 0 and self.database in ("sealed", "none")


def seal(parts: Parts, vault: Vault) -> Tally:
    """Seal everything with the newest keys; what is sealed so already stays."""
    sqlite.drop_unfinished(parts.database)
    keys = list(vault.keys("store").values())
    if parts.database.exists() and parts.database.stat().st_size:
        found = sqlite.key_for(parts.database, keys)
        if found != keys[-1]:
            sqlite.convert(parts.database, found, keys[-1])
    codec = SealedCodec(vault.keys("blobs"))
    done = sum(_convert(path, codec, codec) for path in _blobs(parts) if not codec.is_current(path))
    done += seal_files(parts, vault)
    _drop_passing(parts)
    tally = status(parts, vault)
    tally.converted = done
    return tally


def seal_files(parts: Parts, vault: Vault) -> int:
    """Seal the files of releases that are not sealed with the newest key, one at a time; how many there were."""
    if parts.models is None:
        return 0
    _drop_unfinished(parts.models)
    files = SealedFiles(parts.root, vault.keys("blobs"))
    found = [path for path in released(parts.models) if not files.is_current(path)]
    for path in found:
        files.seal(path)
    return len(found)


def unseal(parts: Parts, vault: Vault) -> Tally:
    """Everything in plain text again; the vault stays until the settings no longer name its key."""
    sqlite.drop_unfinished(parts.database)
    if parts.database.exists() and parts.database.stat().st_size:
        found = sqlite.key_for(parts.database, vault.keys("store").values())
        if found is not None:
            sqlite.convert(parts.database, found, None)
    codec = SealedCodec(vault.keys("blobs"))
    done = sum(_convert(path, codec, PlainCodec()) for path in _blobs(parts) if codec.is_sealed(path))
    done += _unseal_files(parts, vault)
    _drop_passing(parts)
    tally = status(parts, vault)
    tally.converted = done
    return tally


def _unseal_files(parts: Parts, vault: Vault) -> int:
    if parts.models is None:
        return 0
    _drop_unfinished(parts.models)
    files = SealedFiles(parts.root, vault.keys("blobs"))
    found = [path for path in released(parts.models) if files.is_sealed(path)]
    for path in found:
        files.unseal(path)
    return len(found)


def status(parts: Parts, vault: Vault) -> Tally:
    """What is sealed, counted."""
    tally, codec = Tally(), SealedCodec(vault.keys("blobs"))
    if sqlite.is_plain(parts.database):
        tally.database = "plain"
    elif sqlite.is_sealed(parts.database):
        newest = sqlite.key_for(parts.database, vault.keys("store").values()) == vault.newest("store")
        tally.database = "sealed" if newest else "sealed with an older key"
    for path in _blobs(parts):
        if not codec.is_sealed(path):
            tally.plain += 1
        elif codec.is_current(path):
            tally.current += 1
        else:
            tally.older += 1
    files = SealedFiles(parts.root, vault.keys("blobs"))
    for path in released(parts.models) if parts.models else ():
        if files.is_current(path):
            tally.files += 1
        elif files.is_sealed(path):
            tally.files_older += 1
        else:
            tally.files_plain += 1
    return tally


def _blobs(parts: Parts) -> Iterator[Path]:
    for root in parts.blobs:
        folder = root / "sha256"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not path.name.startswith("."):
                yield path


def _convert(path: Path, source: Codec, target: Codec) -> int:
    """Rewrite one blob beside and rename it into place; 1."""
    digest, beside = path.name, path.with_name(f".{path.name}.sealing")
    with closing(source.open(path, digest)) as reader:
        if reader.size == 0:
            write_durably(path, target.encode(digest, b""), stat.S_IMODE(path.stat().st_mode))
            return 1
        try:
            with closing(target.writer(beside, digest, reader.size, fresh=True)) as writer:
                for offset in range(0, reader.size, BLOCK_BYTES):
                    writer.write_at(offset, reader.read_at(offset, BLOCK_BYTES))
                writer.sync()
            beside.chmod(path.stat().st_mode)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)  # on a full disk nobody else would
            raise
    sync_folder(path.parent)
    return 1


def _drop_unfinished(models: Path) -> None:
    for path in sorted(unfinished(models)):  # a folder before what is in it
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _drop_passing(parts: Parts) -> None:
    """What has half arrived is fetched again: it would have to be sealed block by block. What is being made is begun
    anew."""
    for folder in parts.passing:
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for root in parts.blobs:
        for folder, pattern in ((root / "partial", "*"), (root / "sha256", ".*")):
            for path in folder.glob(pattern) if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
