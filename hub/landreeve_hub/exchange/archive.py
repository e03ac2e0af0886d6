"""A release as one tar file, in and out: of its folder, or an OCI image layout."""

from pathlib import PurePosixPath
from typing import IO

from landreeve.release.layout import CONFIG_FILE, MANIFEST_FILE, Packed
from landreeve.release.manifest import MAX_MANIFEST_BYTES, BadReleaseError, Descriptor, digest_of, parse_manifest
from landreeve.release.vet import check_blob, vet

from landreeve_hub.exchange.image_layout import from_layout, is_layout, tarred
from landreeve_hub.exchange.members import read_members


def read_archive(stream: IO[bytes], source: str = "an archive", tag: str = "") -> Packed:
    """The release in a tar (plain or gzip): an image layout, or a release's files at the top or in one folder.

    Of a layout with several manifests ``tag`` says which. `BadReleaseError` names what is refused: what
    `landreeve_hub.exchange.members` refuses, files the manifest does not name, missing ones, and every release that
    `landreeve.release.vet` refuses.
    """
    files = read_members(stream)
    if is_layout(files):
        return from_layout(files, source, tag)
    packed = _pack(_without_folder(files))
    vet(packed.manifest_bytes, packed.blobs.__getitem__)
    return packed


def write_archive(packed: Packed) -> bytes:
    """The release as a tar of its folder; the same release always gives the same bytes."""
    manifest = packed.manifest
    files = {MANIFEST_FILE: packed.manifest_bytes, CONFIG_FILE: packed.blobs[manifest.config.sha256]}
    return tarred(files | {layer.path: packed.blobs[layer.sha256] for layer in manifest.layers})


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
    blobs = {manifest.config.sha256: _taken(files, CONFIG_FILE, manifest.config)}
    for layer in manifest.layers:
        blobs[layer.sha256] = _taken(files, layer.path, layer)
    if files:
        raise BadReleaseError(f"archive: {min(files)!r} is not named by the manifest")
    return Packed(manifest_bytes, digest_of(manifest_bytes), blobs)


def _taken(files: dict[str, bytes], name: str, blob: Descriptor) -> bytes:
    data = files.pop(name, None)
    if data is None:
        raise BadReleaseError(f"archive: {name!r} is missing")
    try:
        return check_blob(blob, data)
    except BadReleaseError as error:
        raise BadReleaseError(f"archive: {name!r} does not have the digest the manifest names") from error
