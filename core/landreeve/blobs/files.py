"""How the files of releases and trainings lie on the disk: as they are, or sealed (`landreeve.sealed.files`).

Runtimes, tuner and trainer take these files as bytes, through one of these, so that nothing plain need lie anywhere.
A process hands an `Opening` to its children over a pipe: never as an argument or in the environment.
"""

from pathlib import Path
from typing import Protocol

import msgspec

from landreeve.blobs.durable import write_durably


class Opening(msgspec.Struct, frozen=True):
    """What opens the sealed files below ``root``: keys as hex by their id, the newest last. Without keys they are
    plain."""

    root: str = ""
    keys: dict[str, str] = {}

    def files(self) -> "Files":
        """The files it opens."""
        if not self.keys:
            return PLAIN
        from landreeve.sealed.files import SealedFiles  # cryptography takes memory that a plain site does without

        return SealedFiles(Path(self.root), {name: bytes.fromhex(key) for name, key in self.keys.items()})

    def __repr__(self) -> str:
        return f"Opening({self.root!r}, {len(self.keys)} keys)"  # never the keys: it may end in a log


class Files(Protocol):
    """Whole files by path. `OSError` when one cannot be had, also when what is sealed was altered."""

    @property
    def opening(self) -> Opening:
        """What a child needs to read them too."""
        ...

    def read(self, path: Path) -> bytes:
        """The plain bytes."""
        ...

    def size(self, path: Path) -> int:
        """How many plain bytes there are."""
        ...

    def part(self, path: Path, offset: int, length: int) -> bytes:
        """Up to ``length`` plain bytes from ``offset``."""
        ...

    def write(self, path: Path, data: bytes, *, at: Path | None = None) -> None:
        """Replace the file at once or not at all; afterwards it is on disk. ``at`` is where it will be read from, when
        its folder is yet to be renamed."""
        ...

    def move(self, source: Path, target: Path) -> None:
        """Give the file another name in place of what is there."""
        ...


class PlainFiles:
    """The file is what it holds."""

    opening = Opening()

    def read(self, path: Path) -> bytes:
        """The file's bytes."""
        return path.read_bytes()

    def size(self, path: Path) -> int:
        """Its length."""
        return path.stat().st_size

    def part(self, path: Path, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, path: Path, data: bytes, *, at: Path | None = None) -> None:
        """Write it durably."""
        write_durably(path, data)

    def move(self, source: Path, target: Path) -> None:
        """Rename it."""
        source.replace(target)


PLAIN = PlainFiles()
