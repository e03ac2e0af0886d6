"""Files sealed at rest where they lie: the construction of `landreeve.sealed.blobs`, each bound to its own place.

The place is the path below the state folder, so one release's graph cannot be put in another's stead. A state folder
may be moved as a whole. Plain files are read as they are: a folder is converted while its files are in use.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from landreeve.blobs.codec import BlobReader, read_whole
from landreeve.blobs.durable import sync_folder, write_durably
from landreeve.blobs.errors import CorruptBlobError
from landreeve.blobs.files import Opening
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.errors import KeyMissingError
from landreeve.wire.codec import BLOCK_BYTES

BESIDE = ".sealing"


class SealedFiles:
    """Seals with the newest of ``keys`` (id of 16 hex digits → 32 bytes, newest last) and opens with any."""

    def __init__(self, root: Path, keys: Mapping[str, bytes]) -> None:
        self._root = root
        self._keys = dict(keys)
        self._codec = SealedCodec(keys)

    @property
    def opening(self) -> Opening:
        """What a child needs to read them too."""
        return Opening(str(self._root), {name: key.hex() for name, key in self._keys.items()})

    def read(self, path: Path) -> bytes:
        """The plain bytes; never more than these and 64 KiB are held. `OSError`, also for a file that was altered, put
        in another's place or sealed under an unknown key."""
        with self._opened(path) as reader:
            return read_whole(reader)

    def size(self, path: Path) -> int:
        """Plain bytes."""
        with self._opened(path) as reader:
            return reader.size

    def part(self, path: Path, offset: int, length: int) -> bytes:
        """Plain bytes; only the chunks they lie in are opened."""
        with self._opened(path) as reader:
            return reader.read_at(offset, length)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BlobReader]:
        try:
            with closing(self._codec.open(path, self._place(path))) as reader:
                yield reader
        except (CorruptBlobError, KeyMissingError) as error:
            raise OSError(errno.EBADMSG, "it was sealed elsewhere, or altered since", str(path)) from error

    def write(self, path: Path, data: bytes, *, at: Path | None = None) -> None:
        """Seal and write durably, in constant memory; only the owner may read the file."""
        beside = path.with_name(f".{path.name}{BESIDE}")
        try:
            with closing(self._codec.writer(beside, self._place(at or path), len(data), fresh=True)) as writer:
                view = memoryview(data)
                for offset in range(0, max(1, len(data)), BLOCK_BYTES):
                    writer.write_at(offset, view[offset : offset + BLOCK_BYTES])  # type: ignore[arg-type]
                writer.sync()
            beside.chmod(0o600)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def move(self, source: Path, target: Path) -> None:
        """Seal it anew for its new place."""
        self.write(target, self.read(source))
        source.unlink()

    def is_current(self, path: Path) -> bool:
        """Whether the file is sealed with the newest key."""
        return self._codec.is_current(path)

    def is_sealed(self, path: Path) -> bool:
        """Whether the file is sealed with a key that is known here."""
        return self._codec.knows(path)

    def seal(self, path: Path) -> None:
        """Seal the file where it lies, whatever it was sealed with before, or was not."""
        self.write(path, self.read(path))

    def unseal(self, path: Path) -> None:
        """The file in plain text."""
        write_durably(path, self.read(path))

    def _place(self, path: Path) -> str:
        try:
            place = path.relative_to(self._root).as_posix()
        except ValueError:  # a scratch folder elsewhere: what lies there does not outlive the box's uptime
            place = f"{path.parent.name}/{path.name}"
        return f"file:{place}"


def released(models: Path) -> Iterator[Path]:
    """Every file of a release below ``models/<model>/<release>/``; pointers, and what is being made, are none."""
    for folder in sorted(models.glob("*/[!.]*/")):
        for root, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def unfinished(models: Path) -> Iterator[Path]:
    """What a kill left of laying out, tuning or sealing: files and folders whose names begin with a dot."""
    yield from models.rglob(".*")
