"""A whole state folder sealed, unsealed, or sealed anew: database first, then blobs, one file at a time.

Every step leaves something that works: readers take plain and sealed files alike, so a conversion that was killed is
simply begun again.
"""

import contextlib
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from landreeve.blobs.codec import Codec, PlainCodec
from landreeve.blobs.durable import sync_folder, write_durably
from landreeve.sealed import sqlite
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.vault import Vault
from landreeve.wire.codec import BLOCK_BYTES


@dataclass(frozen=True)
class Parts:
    """What of a state folder is sealed: its database, and the roots of its blob stores."""

    root: Path
    database: Path
    blobs: tuple[Path, ...] = ()

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


def seal(parts: Parts, vault: Vault) -> Tally:
    """Seal everything with the newest keys; what is sealed so already stays."""
    keys = list(vault.keys("store").values())
    if parts.database.exists() and parts.database.stat().st_size:
        found = sqlite.key_for(parts.database, keys)
        if found != keys[-1]:
            sqlite.convert(parts.database, found, keys[-1])
    codec = SealedCodec(vault.keys("blobs"))
    done = sum(_convert(path, codec, codec) for path in _blobs(parts) if not codec.is_current(path))
    _drop_partials(parts)
    tally = status(parts, vault)
    tally.converted = done
    return tally


def unseal(parts: Parts, vault: Vault) -> Tally:
    """Everything in plain text again; the vault stays until the settings no longer name its key."""
    if parts.database.exists() and parts.database.stat().st_size:
        found = sqlite.key_for(parts.database, vault.keys("store").values())
        if found is not None:
            sqlite.convert(parts.database, found, None)
    codec = SealedCodec(vault.keys("blobs"))
    done = sum(_convert(path, codec, PlainCodec()) for path in _blobs(parts) if codec.is_sealed(path))
    _drop_partials(parts)
    tally = status(parts, vault)
    tally.converted = done
    return tally


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


def _drop_partials(parts: Parts) -> None:
    """What has half arrived is fetched again: it would have to be sealed block by block."""
    for root in parts.blobs:
        for folder, pattern in ((root / "partial", "*"), (root / "sha256", ".*")):
            for path in folder.glob(pattern) if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
