"""A release as an OCI image layout: a tar that skopeo, oras and others read and write.

Specification: OCI image-spec 1.1, "Image Layout".
"""

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import msgspec
from landreeve.release.layout import Packed
from landreeve.release.manifest import ARTIFACT_TYPE, MANIFEST_TYPE, BadReleaseError, digest_of
from landreeve.release.reference import is_tag

from landreeve_hub.exchange.foreign import adopt

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = {"imageLayoutVersion": "1.0.0"}


def is_layout(files: Mapping[str, bytes]) -> bool:
    """Whether these files are an image layout."""
    return LAYOUT_FILE in files and INDEX_FILE in files


def from_layout(files: Mapping[str, bytes], source: str, tag: str = "") -> Packed:
    """The release in a layout: the only one, or that of the tag. `BadReleaseError` when there is none we accept."""
    digest = _chosen(_entries(files[INDEX_FILE]), tag)

    def read(value: str) -> bytes:
        return files[f"blobs/sha256/{value}"]

    try:
        manifest_bytes = read(digest)
    except KeyError:
        raise BadReleaseError(f"{INDEX_FILE}: names manifest {digest[:12]}, which is not in the archive") from None
    if digest_of(manifest_bytes) != digest:
        raise BadReleaseError(f"manifest {digest[:12]}: does not have the digest it is filed under")
    return adopt(manifest_bytes, read, source)


def _entries(index: bytes) -> list[dict[str, Any]]:
    try:
        entries = msgspec.json.decode(index, type=dict[str, msgspec.Raw]).get("manifests", msgspec.Raw(b"[]"))
        return msgspec.json.decode(entries, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadReleaseError(f"{INDEX_FILE}: {str(error)[:200]}") from error


def _chosen(entries: list[dict[str, Any]], tag: str) -> str:
    """The sha256 of the one manifest that is meant."""
    found: dict[str, str] = {}
    for entry in entries:
        names = entry.get("annotations")
        name = str(names.get(REF_NAME, "")) if isinstance(names, dict) else ""
        if tag in {"", name}:
            found[str(entry.get("digest", ""))] = name
    if len(found) != 1:
        known = ", ".join(sorted(repr(name[:60]) for name in found.values() if name)) or "none by name"
        raise BadReleaseError(f"{INDEX_FILE}: holds {len(found)} manifests where one is meant ({known})")
    algorithm, _, value = next(iter(found)).partition(":")
    if algorithm != "sha256" or len(value) != 64:
        raise BadReleaseError(f"{INDEX_FILE}: digest {next(iter(found))[:80]!r}: only sha256 is accepted")
    return value


def write_layout(packed: Packed, tag: str) -> bytes:
    """The release as a tar of an image layout; the same release and tag always give the same bytes."""
    entry: dict[str, Any] = {
        "mediaType": MANIFEST_TYPE,
        "digest": f"sha256:{packed.digest}",
        "size": len(packed.manifest_bytes),
        "artifactType": ARTIFACT_TYPE,
    }
    if is_tag(tag):
        entry["annotations"] = {REF_NAME: tag}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }
    files = {LAYOUT_FILE: msgspec.json.encode(_LAYOUT), INDEX_FILE: msgspec.json.encode(index)}
    files |= {f"blobs/sha256/{digest}": data for digest, data in packed.blobs.items()}
    files[f"blobs/sha256/{packed.digest}"] = packed.manifest_bytes
    return tarred(files)


def tarred(files: Mapping[str, bytes]) -> bytes:
    """The files as a tar; the same files always give the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()
