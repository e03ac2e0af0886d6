"""A release as one tar file, in and out. Nothing is ever unpacked to a path an archive names."""

import io
import tarfile
from pathlib import PurePosixPath
from typing import IO

from landreeve.release.layout import CONFIG_FILE, MANIFEST_FILE, Packed
from landreeve.release.manifest import (
    MAX_MANIFEST_BYTES,
    BadReleaseError,
    check_path,
    digest_of,
    parse_manifest,
)

MAX_FILES = 64
MAX_ARCHIVE_BYTES = 2 * 1024**3


def read_archive(stream: IO[bytes]) -> Packed:
    """The release in a tar (plain or gzip, its files at the top or in one folder); `BadReleaseError` otherwise.

    Refused are links, devices, absolute paths and ``..``, files the manifest does not name, and missing ones.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:*") as archive:
            files = _read_members(archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadReleaseError(f"archive: not a tar file that can be read ({error}); send one of a release") from error
    return _pack(_without_folder(files))


def _read_members(archive: tarfile.TarFile) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    room = MAX_ARCHIVE_BYTES
    for member in archive:
        if member.isdir():
            continue
        name = _plain(member)
        room -= member.size
        if room < 0 or len(files) >= MAX_FILES:
            raise BadReleaseError(f"archive: more than {MAX_FILES} files or {MAX_ARCHIVE_BYTES:,} bytes")
        if name in files:
            raise BadReleaseError(f"archive: {name!r} occurs twice")
        content = archive.extractfile(member)
        files[name] = content.read() if content else b""
    return files


def _plain(member: tarfile.TarInfo) -> str:
    name = member.name.removeprefix("./")
    if not member.isfile():
        raise BadReleaseError(f"archive: {name[:120]!r} is no plain file; links and devices are not accepted")
    return check_path(name)


def _without_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same without the one folder all of them lie in."""
    if MANIFEST_FILE in files:
        return files
    tops = {PurePosixPath(name).parts[0] for name in files}
    if len(tops) != 1 or f"{next(iter(tops))}/{MANIFEST_FILE}" not in files:
        raise BadReleaseError(f"archive: has no {MANIFEST_FILE} at its top or in its one folder")
    head = f"{tops.pop()}/"
    return {name.removeprefix(head): data for name, data in files.items()}


def _pack(files: dict[str, bytes]) -> Packed:
    manifest_bytes = files.pop(MANIFEST_FILE)
    if len(manifest_bytes) > MAX_MANIFEST_BYTES:
        raise BadReleaseError(f"{MANIFEST_FILE}: at most {MAX_MANIFEST_BYTES} bytes are accepted")
    manifest = parse_manifest(manifest_bytes)
    blobs = {manifest.config.sha256: _taken(files, CONFIG_FILE, manifest.config.sha256)}
    for layer in manifest.layers:
        blobs[layer.sha256] = _taken(files, layer.path, layer.sha256)
    if files:
        raise BadReleaseError(f"archive: {min(files)!r} is not named by the manifest")
    return Packed(manifest_bytes, digest_of(manifest_bytes), blobs)


def _taken(files: dict[str, bytes], name: str, digest: str) -> bytes:
    data = files.pop(name, None)
    if data is None:
        raise BadReleaseError(f"archive: {name!r} is missing")
    if digest_of(data) != digest:
        raise BadReleaseError(f"archive: {name!r} does not have the digest the manifest names")
    return data


def write_archive(packed: Packed) -> bytes:
    """The release as a tar; the same release always gives the same bytes."""
    manifest = packed.manifest
    files = {MANIFEST_FILE: packed.manifest_bytes, CONFIG_FILE: packed.blobs[manifest.config.sha256]}
    files |= {layer.path: packed.blobs[layer.sha256] for layer in manifest.layers}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()
