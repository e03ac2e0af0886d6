"""What a manifest of anybody consists of, before any of it is fetched. Pure."""

import msgspec
from landreeve.release.manifest import (
    ARTIFACT_TYPE,
    CONFIG_TYPE,
    MAX_LAYERS,
    MAX_RELEASE_BYTES,
    BadReleaseError,
    Descriptor,
)


class _Outline(msgspec.Struct, rename={"media_type": "mediaType", "artifact_type": "artifactType"}):
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = ""
    artifact_type: str = ""


def outline(manifest_bytes: bytes) -> tuple[Descriptor, ...]:
    """Config and layers of a ModelPack artifact; `BadReleaseError` for anything else, or one that is too large."""
    try:
        found = msgspec.json.decode(manifest_bytes, type=_Outline)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadReleaseError(f"manifest: {error}") from error
    if found.artifact_type != ARTIFACT_TYPE or found.config.media_type != CONFIG_TYPE:
        raise BadReleaseError(
            f"manifest: is {found.artifact_type[:80] or found.config.media_type[:80]!r}, not a ModelPack artifact "
            f"({ARTIFACT_TYPE})"
        )
    blobs = (found.config, *found.layers)
    if len(found.layers) > MAX_LAYERS or sum(max(blob.size, 0) for blob in blobs) > MAX_RELEASE_BYTES:
        raise BadReleaseError(f"manifest: more than {MAX_LAYERS} layers or {MAX_RELEASE_BYTES} bytes")
    return blobs
