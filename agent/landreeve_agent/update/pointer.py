"""Which release of a model serves on this box: one small file, replaced atomically.

It says so even when the store is gone: a box then still serves what it served.
"""

import logging
from pathlib import Path

import msgspec
from landreeve.blobs.durable import sync_folder, write_durably

from landreeve_agent.update.standing import Installed

logger = logging.getLogger(__name__)

POINTER_FILE = "active.json"


class Pointer(msgspec.Struct, frozen=True):
    """The content of ``models/<model>/active.json``; ``previous`` is what served before, as a release."""

    release: str
    version: str
    plan: msgspec.Raw
    previous: str | None = None

    @property
    def installed(self) -> Installed:
        return Installed(self.release, self.version, bytes(self.plan).decode())


def release_folder(models_dir: Path, model: str, release: str) -> Path:
    """Where a release's files lie."""
    return models_dir / model / release[:12]


def write_pointer(models_dir: Path, model: str, active: Installed, previous: str | None) -> None:
    """Makes ``active`` the one that serves; a power cut leaves the old pointer or the new one."""
    pointer = Pointer(active.release, active.version, msgspec.Raw(active.plan.encode()), previous)
    (models_dir / model).mkdir(parents=True, exist_ok=True)
    write_durably(models_dir / model / POINTER_FILE, msgspec.json.encode(pointer))


def remove_pointer(models_dir: Path, model: str) -> None:
    """Nothing of the model serves any more."""
    path = models_dir / model / POINTER_FILE
    if path.exists():
        path.unlink()
        sync_folder(path.parent)


def read_pointers(models_dir: Path) -> dict[str, Installed]:
    """What serves, by model. A pointer that cannot be read is reported and left out."""
    found: dict[str, Installed] = {}
    for path in sorted(models_dir.glob(f"*/{POINTER_FILE}")):
        try:
            found[path.parent.name] = msgspec.json.decode(path.read_bytes(), type=Pointer).installed
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("pointer %s cannot be read: %s", path, error)
    return found
