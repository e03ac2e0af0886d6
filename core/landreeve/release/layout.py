"""A release between its three forms: files in memory, a folder on disk, blobs in a store.

A folder holds ``manifest.json``, ``config.json`` and each file by its layer path, ``landreeve.json`` among them. A
folder is only ever seen whole: it is written beside its place, flushed, and renamed.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from landreeve.blobs.files import PLAIN, Files
from landreeve.release.contents import check_contents
from landreeve.release.manifest import (
    ALLOWED_SUFFIXES,
    CONFIG_TYPE,
    FILEPATH,
    MAX_MANIFEST_BYTES,
    MAX_SETTINGS_BYTES,
    SETTINGS_FILE,
    TITLE,
    BadReleaseError,
    Descriptor,
    Manifest,
    ReleaseConfig,
    block_digests,
    check_path,
    digest_of,
    encode_config,
    encode_manifest,
    encode_settings,
    parse_config,
    parse_manifest,
)
from landreeve.release.paths import folded
from landreeve.release.vet import check_blob
from landreeve.wire.codec import BLOCK_BYTES

MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
_RESERVED = frozenset({MANIFEST_FILE, CONFIG_FILE})


class BlobSource(Protocol):
    """Where blobs are read from; `landreeve.blobs.store.BlobStore` is one."""

    def read(self, digest: str) -> bytes:
        """The blob of that sha256."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """A release as bytes: its manifest, the manifest's sha256, and every other blob by its sha256."""

    manifest_bytes: bytes
    digest: str
    blobs: dict[str, bytes]

    @property
    def manifest(self) -> Manifest:
        """The parsed manifest."""
        return parse_manifest(self.manifest_bytes)

    @property
    def config(self) -> ReleaseConfig:
        """What we say of the release."""
        return parse_config(self.blobs[self.manifest.settings.sha256])

    def file(self, path: str) -> bytes:
        """The bytes of one file; `BadReleaseError` when the release has none of that path."""
        layer = self.manifest.layer(path)
        if layer is None:
            raise BadReleaseError(f"release {self.digest[:12]}: has no file {path!r}")
        return self.blobs[layer.sha256]


def pack(files: Mapping[str, bytes], config: ReleaseConfig) -> Packed:
    """A release of these files (path → bytes). The config's ``blocks`` are filled here: the sha256 of every 64 KiB
    block of every file. A ``landreeve.json`` among the files, of a release they were taken from, is made anew. The
    same files and config always give the same digest."""
    files = {path: data for path, data in files.items() if path != SETTINGS_FILE}
    if not files:
        raise BadReleaseError("release: has no file")
    blocks = {digest_of(data): block_digests(data, BLOCK_BYTES) for data in files.values()}
    settings = encode_settings(msgspec.structs.replace(config, blocks=blocks))
    if len(settings) > MAX_SETTINGS_BYTES:
        raise BadReleaseError(
            f"{SETTINGS_FILE}: {len(settings)} bytes, at most {MAX_SETTINGS_BYTES}: ship smaller files"
        )
    whole = {**files, SETTINGS_FILE: settings}
    layers = tuple(_describe(path, whole[path]) for path in sorted(whole))
    config_bytes = encode_config(config, layers)
    config_digest = digest_of(config_bytes)
    descriptor = Descriptor(media_type=CONFIG_TYPE, digest=f"sha256:{config_digest}", size=len(config_bytes))
    manifest_bytes = encode_manifest(Manifest(config=descriptor, layers=layers))
    parse_manifest(manifest_bytes)
    blobs = {layer.sha256: whole[layer.path] for layer in layers}
    return Packed(manifest_bytes, digest_of(manifest_bytes), blobs | {config_digest: config_bytes})


def _describe(path: str, data: bytes) -> Descriptor:
    kind = ALLOWED_SUFFIXES[Path(_plain(path)).suffix]
    names = {FILEPATH: path, TITLE: path}
    return Descriptor(media_type=kind, digest=f"sha256:{digest_of(data)}", size=len(data), annotations=names)


def _plain(path: str) -> str:
    if folded(check_path(path)) in _RESERVED:
        raise BadReleaseError(f"layer {path!r}: the name belongs to the release itself; use another")
    return path


def write_folder(packed: Packed, folder: Path, files: Files = PLAIN) -> None:
    """Write the release into ``folder``: all of it or nothing. A folder that holds this release already is kept; any
    other content is replaced."""
    materialise(packed.manifest_bytes, _Blobs(packed.blobs), folder, files)


def read_folder(folder: Path, files: Files = PLAIN) -> Packed:
    """The release in a folder, every digest and length checked; `BadReleaseError` names what does not match."""
    manifest_bytes = _read(files, folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(manifest_bytes)
    config = _read(files, folder, CONFIG_FILE, MAX_SETTINGS_BYTES)
    blobs = {manifest.config.sha256: check_blob(manifest.config, config)}
    for layer in manifest.layers:
        blobs[layer.sha256] = check_blob(layer, _read(files, folder, _plain(layer.path), layer.size))
    return Packed(manifest_bytes, digest_of(manifest_bytes), blobs)


def read_config(folder: Path, files: Files = PLAIN) -> ReleaseConfig:
    """What a release in a folder says of itself, its other files unread; `BadReleaseError` when that cannot be had."""
    name = SETTINGS_FILE if (folder / SETTINGS_FILE).exists() else CONFIG_FILE
    try:
        return parse_config(_read(files, folder, name, MAX_SETTINGS_BYTES))
    except BadReleaseError as error:
        raise BadReleaseError(f"{name}: {error}") from error


def materialise(manifest_bytes: bytes, store: BlobSource, folder: Path, files: Files = PLAIN) -> None:
    """Lay a release out as files from a blob store; ``files`` says how these lie on the disk.

    Everything is written to a folder beside, flushed, then renamed, so a power cut leaves the old state or the new
    one. `BadReleaseError` when a blob is not what the manifest says, or a file not what its name says
    (`landreeve.release.contents`).
    """
    if _holds(folder, manifest_bytes, files):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=_beside(folder), dir=folder.parent))
    try:
        _fill(_Target(beside, folder, files), manifest_bytes, store)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _flush_folder(folder.parent)


def sweep(folder: Path) -> None:
    """Remove what a `materialise` that was killed has left beside the folder: it takes room that nobody gets back."""
    for left in folder.parent.glob(f"{_beside(folder)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _beside(folder: Path) -> str:
    return f".{folder.name}."


def _holds(folder: Path, manifest_bytes: bytes, files: Files) -> bool:
    if not (folder / MANIFEST_FILE).is_file():
        return False
    try:
        return read_folder(folder, files).manifest_bytes == manifest_bytes
    except BadReleaseError:
        return False  # a damaged folder is laid out anew


@dataclass(frozen=True, slots=True)
class _Target:
    """The folder a release is laid out in, and the name it gets when all of it is there."""

    beside: Path
    folder: Path
    files: Files

    def write(self, path: str, data: bytes) -> None:
        file = self.beside / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():  # a file system may take two names for one
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file))
        self.files.write(file, data, at=self.folder / path)


def _fill(target: _Target, manifest_bytes: bytes, store: BlobSource) -> None:
    manifest = parse_manifest(manifest_bytes)
    target.write(MANIFEST_FILE, manifest_bytes)
    target.write(CONFIG_FILE, check_blob(manifest.config, store.read(manifest.config.sha256)))
    for layer in manifest.layers:
        data = check_blob(layer, store.read(layer.sha256))
        check_contents(_plain(layer.path), data)
        target.write(layer.path, data)
    for inner in [path for path in target.beside.rglob("*") if path.is_dir()]:
        _flush_folder(inner)
    _flush_folder(target.beside)


def _read(files: Files, folder: Path, path: str, limit: int) -> bytes:
    file = folder / path
    try:
        size = files.size(file)
        if size > limit:
            raise BadReleaseError(f"{file}: {size} bytes, at most {limit} are expected")
        return files.read(file)
    except OSError as error:
        raise BadReleaseError(f"release folder {folder}: {path} cannot be read: {error.strerror}") from error


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class _Blobs:
    blobs: dict[str, bytes]

    def read(self, digest: str) -> bytes:
        return self.blobs[digest]
