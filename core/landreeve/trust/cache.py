"""The TUF caches of both repositories, changed together or not at all.

python-tuf writes each file as soon as that file alone verifies. A document meant for another device carries
good signatures too: half believed, its higher version would lock out our own documents. So a verification
works on a copy, and the copy becomes the cache in one rename after *everything* has been checked.
"""

import os
import shutil
import tempfile
from pathlib import Path

from landreeve.blobs.durable import sync_folder, sync_tree
from landreeve.trust.anchor import REPOSITORIES


class Caches:
    """``caches/<random>/{director,targets}`` under a trust folder, and ``current``, a link to the one in use."""

    def __init__(self, trust_dir: Path) -> None:
        self._folder = trust_dir / "caches"
        self._current = trust_dir / "current"

    def copy(self) -> Path:
        """A fresh working copy of the cache in use."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=self._folder))
        for repository in REPOSITORIES:
            source = self._current / repository
            if source.is_dir():
                shutil.copytree(source, work / repository, symlinks=True)
            else:
                (work / repository).mkdir()
        return work

    def adopt(self, work: Path) -> None:
        """Make the working copy the cache in use; afterwards it survives a power cut."""
        sync_tree(work)
        link = self._current.with_name(".current.new")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.join(self._folder.name, work.name))  # noqa: PTH118  relative: the state folder may move
        link.replace(self._current)
        sync_folder(self._current.parent)
        self.discard_others(work.name)

    def discard(self, work: Path) -> None:
        """Forget a working copy."""
        shutil.rmtree(work)

    def discard_others(self, keep: str) -> None:
        """Remove what crashes and former caches have left."""
        for folder in self._folder.iterdir():
            if folder.name != keep:
                shutil.rmtree(folder)
