"""Where a release comes from or goes to, as people write it: a folder, a tar, or ``oci://…``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from landreeve.release.layout import CONFIG_FILE, MANIFEST_FILE, Packed, pack, read_config, read_folder, write_folder
from landreeve.release.manifest import MAX_RELEASE_BYTES, SETTINGS_FILE, BadReleaseError
from landreeve.release.paths import check_plain
from landreeve.release.reference import SCHEME, Reference, parse_reference
from landreeve.release.vet import vet

from landreeve_hub.errors import OperatorError
from landreeve_hub.exchange.archive import read_archive
from landreeve_hub.exchange.credentials import find_login
from landreeve_hub.exchange.doorway import Doorway
from landreeve_hub.exchange.foreign import adopt_files
from landreeve_hub.exchange.image_layout import write_layout
from landreeve_hub.exchange.members import MAX_FILES
from landreeve_hub.exchange.registry import pull_release, push_release

_OWN = frozenset({CONFIG_FILE, MANIFEST_FILE, SETTINGS_FILE})


@dataclass(frozen=True, slots=True)
class Access:
    """How other registries are reached: a login given by hand, and whether plain HTTP is allowed beyond loopback."""

    user: str = ""
    password: str = field(default="", repr=False)
    plain_http: bool = False

    def door(self, reference: Reference) -> Doorway:
        """The way to the reference's registry."""
        login = find_login(reference.registry, os.environ, Path.home(), self.user, self.password)
        return Doorway(reference.registry, login, plain_http=self.plain_http)


def read_place(place: str, access: Access, *, repack: bool = False, tag: str = "") -> Packed:
    """The release at a place: ``oci://…``, a tar (OCI image layout or of a release folder), a release folder, or a
    model folder that was never packed.

    ``repack`` makes manifest and config anew from a release folder's files. `BadReleaseError` when it must not be
    used, `OperatorError` when there is nothing to read, `RegistryError` and its kinds from a registry.
    """
    if place.startswith(SCHEME):
        reference = parse_reference(place)
        with access.door(reference) as door:
            return pull_release(door, reference)
    path = Path(place)
    try:
        if path.is_dir():
            return _of_folder(path, repack)
        with path.open("rb") as stream:
            return read_archive(stream, path.name, tag)
    except OSError as error:
        raise OperatorError(f"{place}: cannot be read: {error.strerror or error}") from error


def write_place(packed: Packed, place: str, tag: str, access: Access) -> str:
    """Put a release there: ``oci://…``, a file (OCI image layout as tar), or a new folder; where it is now."""
    if place.startswith(SCHEME):
        reference = parse_reference(place)
        if ":" not in place.rpartition("/")[2] and not reference.digest:
            reference = Reference(reference.registry, reference.repository, tag)
        with access.door(reference) as door:
            push_release(door, reference, packed)
        return str(reference)
    path = Path(place)
    if path.suffix == ".tar":
        _write_file(path, write_layout(packed, tag))
    else:
        if path.exists():
            path.rmdir()  # only when it is empty
        write_folder(packed, path)
    return str(path)


def _of_folder(folder: Path, repack: bool) -> Packed:
    if repack:
        packed = pack(_files(folder), read_config(folder))
    elif (folder / MANIFEST_FILE).exists():
        packed = read_folder(folder)
    else:
        return adopt_files(_files(folder), folder.name)
    vet(packed.manifest_bytes, packed.blobs.__getitem__)
    return packed


def _files(folder: Path) -> Mapping[str, bytes]:
    """Every file of a folder but the release's own; links lead elsewhere and are refused."""
    files: dict[str, bytes] = {}
    room = MAX_RELEASE_BYTES
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadReleaseError(f"{name!r}: is no plain file; links and devices are not accepted")
        if path.is_dir() or name in _OWN:
            continue
        room -= path.stat().st_size
        if room < 0 or len(files) >= MAX_FILES:
            raise BadReleaseError(f"folder: more than {MAX_FILES} files or {MAX_RELEASE_BYTES:,} bytes")
        files[check_plain(name)] = path.read_bytes()
    return files


def _write_file(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
