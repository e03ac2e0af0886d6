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
from landreeve.trust.document import REPOSITORIES

_ROOTS = "root_history"  # as python-tuf names it


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
        sync_folder(self._folder)  # without the name of the copy, the link below would lead nowhere
        link = self._current.with_name(".current.new")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.join(self._folder.name, work.name))  # noqa: PTH118  relative: the state folder may move
        link.replace(self._current)
        sync_folder(self._current.parent)
        self.discard_others(work.name)

    def adopt_roots(self, work: Path) -> None:
        """Keep of a working copy only the roots it verified, beside everything else as it was: a key that was
        replaced must not be believed again because the rest of a message was refused (TUF 1.0, 5.3.8)."""
        newer = [repository for repository in REPOSITORIES if self._has_newer_root(work, repository)]
        if not newer:
            return
        kept = self.copy()
        try:
            for repository in newer:
                for source in (work / repository / _ROOTS).iterdir():
                    (kept / repository / _ROOTS).mkdir(exist_ok=True)
                    shutil.copyfile(source, kept / repository / _ROOTS / source.name)
        except OSError:
            self.discard(kept)
            raise
        self.adopt(kept)

    def discard(self, work: Path) -> None:
        """Forget a working copy."""
        shutil.rmtree(work, ignore_errors=True)  # what is left of it goes with the next adoption

    def _has_newer_root(self, work: Path, repository: str) -> bool:
        return bool(_root_names(work / repository) - _root_names(self._current / repository))

    def discard_others(self, keep: str) -> None:
        """Remove what crashes and former caches have left."""
        for folder in self._folder.iterdir():
            if folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)


def _root_names(cache: Path) -> set[str]:
    """The roots a cache holds, which python-tuf keeps only once verified; the first is always there."""
    return {file.name for file in (cache / _ROOTS).glob("*.root.json")}
