"""Files that survive a power cut: written beside, synced, then renamed into place."""

import os
import tempfile
from pathlib import Path


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the file at once or not at all; afterwards it is on disk.

    A reader sees the old or the new content, never a part. ``mode`` holds from the first byte, so a secret is
    never readable by others for a moment.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync_folder` for the folder, everything in it, and what its files hold."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path.is_symlink():
                continue  # a link has no content of its own; its folder is synced below
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))
