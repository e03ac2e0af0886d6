"""Which user-space libraries a box has, by their files: nothing is loaded, because a driver's library may crash.

The directories are those of ld.so(8): the default ones, Debian's multiarch ones, and what ``/etc/ld.so.conf.d`` adds.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from landreeve_agent.hardware.files import children, read_text

_FOLDERS = ("usr/lib", "usr/lib64", "lib", "lib64", "usr/local/lib", "usr/local/lib64", "usr/lib/wsl/lib")
_VERSION = re.compile(r"\.so\.([0-9]+(?:\.[0-9]+)+)$")


class Libraries:
    """The libraries under ``root``; directories are listed once, files looked for each time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = tuple(dict.fromkeys(self._find_folders()))

    def find(self, name: str) -> Path | None:
        """The file of a library, such as ``libOpenCL.so.1``; None when it is nowhere."""
        return next((path for folder in self._folders if (path := folder / name).exists()), None)

    def version(self, name: str) -> str:
        """The version in the name of the file that ``name`` or a file beside it stands for.

        ``libhailort.so`` is a link to ``libhailort.so.4.20.0``, whose version is ``4.20.0``.
        """
        found = self.find(name)
        if found is not None and (told := _VERSION.search(found.resolve().name)):
            return told.group(1)
        for folder in self._folders:
            for path in children(folder, f"{name}.*"):
                if told := _VERSION.search(path.name):
                    return told.group(1)
        return ""

    def missing(self, *names: str) -> str:
        """The first of these libraries that is not there; empty when all are."""
        return next((name for name in names if self.find(name) is None), "")

    def _find_folders(self) -> Iterator[Path]:
        for folder in _FOLDERS:
            path = self._root / folder
            if path.is_dir():
                yield path
                yield from children(path, "*-linux-gnu*")
        for file in children(self._root / "etc/ld.so.conf.d", "*.conf"):
            for line in read_text(file).splitlines():
                if line.startswith("/"):
                    yield self._root / line.strip().lstrip("/")
