"""What of a site is sealed at rest, and by which key. A plain site imports nothing of it: cryptography takes memory."""

import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from landreeve.blobs.codec import Codec
from landreeve.blobs.files import PLAIN, Files

from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.serving.control import NO_SECRETS, Secrets
from landreeve_agent.store.database import StoreError

if TYPE_CHECKING:
    from landreeve.sealed.vault import Vault

logger = logging.getLogger(__name__)

IN_MEMORY = ("tmpfs", "ramfs")
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of 0700 is made in it, and looked at before it is used


@dataclass(frozen=True)
class AtRest:
    """How what lies on a site's disk is read and written. Without a ``vault`` everything is plain; ``files`` are those
    of releases and trainings; ``raw`` is a folder in memory for what others' libraries write, if there can be one."""

    vault: "Vault | None" = None
    files: Files = PLAIN
    raw: Path | None = None

    @classmethod
    def opened(cls, state: StateFolder, settings: AgentSettings) -> "AtRest":
        """The site's; `StoreError` says which key is missing or wrong."""
        vault = opened_vault(state, settings)
        if vault is None:
            return cls()
        from landreeve.sealed.files import SealedFiles

        return cls(vault, SealedFiles(state.root, vault.keys("blobs")))

    def settled(self, state: StateFolder, settings: AgentSettings) -> "AtRest":
        """The same with its folder in memory, once the files of releases are sealed that an earlier version of this
        program, or a sealing that was cut short, left plain. For the program that owns the state folder alone."""
        if self.vault is None:
            return self
        from landreeve.sealed.state import Parts, seal_files

        if done := seal_files(Parts(state.root, state.database, models=state.models), self.vault):
            logger.info("%d files of releases were not sealed with the newest key, and are now", done)
        return replace(self, raw=memory_folder(state, settings))

    def close(self) -> None:
        """Leave nothing in memory."""
        if self.raw is not None:
            shutil.rmtree(self.raw, ignore_errors=True)

    @property
    def store_keys(self) -> list[bytes]:
        """Keys of the database, oldest first."""
        return list(self.vault.keys("store").values()) if self.vault else []

    @property
    def blob_codec(self) -> Codec | None:
        """How blobs lie in their files."""
        if self.vault is None:
            return None
        from landreeve.sealed.blobs import SealedCodec

        return SealedCodec(self.vault.keys("blobs"))

    @property
    def secrets(self) -> Secrets:
        """What the worker needs."""
        if self.vault is None:
            return NO_SECRETS
        spool = {name: key.hex() for name, key in self.vault.keys("spool").items()}
        return Secrets(spool=spool, files=self.files.opening)

    @property
    def spool_unseal(self) -> Callable[[str, bytes], bytes | None] | None:
        """What opens the lines the worker sealed."""
        return spool_unseal(self.vault)


def opened_vault(state: StateFolder, settings: AgentSettings) -> "Vault | None":
    """The site's vault, or None where nothing is sealed; `StoreError` says which key is missing or wrong."""
    if not settings.at_rest.key and not state.vault.exists():
        return None
    from landreeve.sealed.errors import SealedError
    from landreeve.sealed.vault import opened

    try:
        return opened(state.vault, settings.at_rest.key, state.root, state.database)
    except SealedError as error:
        raise StoreError(str(error)) from error


def spool_unseal(vault: "Vault | None") -> Callable[[str, bytes], bytes | None] | None:
    """What opens the lines the worker sealed."""
    if vault is None:
        return None
    from landreeve.sealed.lines import LineSealer

    return LineSealer(vault.keys("spool")).unseal


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system the folder lies on; empty where the system does not say."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    real, found = folder.resolve(), ("", "")
    for line in lines:
        _, place, kind, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        if real.is_relative_to(place) and len(place) >= len(found[0]):  # of two on one place the later one covers
            found = (place, kind)
    return found[1]


def swap_on(swaps: Path = Path("/proc/swaps")) -> tuple[str, ...]:
    """The disks that memory may be written to; none where there is no swap, or only in memory (zram)."""
    try:
        lines = swaps.read_text().splitlines()[1:]
    except OSError:
        return ()
    return tuple(line.split()[0] for line in lines if line.strip() and not line.startswith("/dev/zram"))


def training_folder(state: StateFolder, settings: AgentSettings) -> Path:
    """Where trainings keep their rows and checkpoints: on the scratch folder, if there is one."""
    if not settings.at_rest.scratch:
        return state.training
    folder = Path(settings.at_rest.scratch) / "training"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def memory_folder(state: StateFolder, settings: AgentSettings) -> Path | None:
    """An empty folder of this site alone whose files never reach a disk, or None where there can be none. What a killed
    agent left in it is removed."""
    site = hashlib.sha256(str(state.root.resolve()).encode()).hexdigest()[:12]
    scratch = settings.at_rest.scratch
    folder = Path(scratch) / "raw" if scratch else MEMORY / f"landreeve-{os.getuid()}-{site}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=bool(scratch), exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        logger.warning("nothing can be kept in memory: %s: %s; set at_rest.scratch", folder, error.strerror)
        return None
    if (kind := file_system(folder)) not in IN_MEMORY:
        logger.warning("%s lies on %s, which is no file system in memory; set at_rest.scratch to one", folder, kind)
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        logger.warning("%s belongs to somebody else: no plan is made of quantised graphs; set at_rest.scratch", folder)
        return None
    return folder
