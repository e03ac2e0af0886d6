"""Whether a release may be used at all: the one place that decides.

Push, pull, import, the hub's registry and the agent's installation all ask here, so a file refused at one door is
refused at every one. Beyond this the hub and the worker judge the graph against the model's signature, with the onnx
package, under limits (`landreeve_models.onnx_policy`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from landreeve.release.contents import check_contents
from landreeve.release.errors import BadReleaseError
from landreeve.release.manifest import (
    FILEPATH,
    IMAGE_SUFFIXES,
    MAX_SETTINGS_BYTES,
    Descriptor,
    Manifest,
    ReleaseConfig,
    block_digests,
    digest_of,
    parse_config,
    parse_manifest,
)
from landreeve.wire.codec import BLOCK_BYTES

Read = Callable[[str], bytes]
"""A blob by its sha256; `LookupError` when it is not there."""


_HOLDERS: dict[str, set[str]] = {".whl": {"agent"}, **{suffix: {"firmware"} for suffix in IMAGE_SUFFIXES}}
"""Which kind of release may hold files of a suffix that no other may."""


@dataclass(frozen=True, slots=True)
class Vetted:
    """A release that may be used, by its parsed manifest and config."""

    digest: str
    manifest: Manifest
    config: ReleaseConfig


def vet(manifest_bytes: bytes, read: Read) -> Vetted:
    """Check every part of a release; `BadReleaseError` says what is wrong, where, and what is accepted.

    One blob is held at a time, so the memory needed is that of the largest file.
    """
    manifest = parse_manifest(manifest_bytes)
    if manifest.config.size > MAX_SETTINGS_BYTES:  # of releases packed before there was a settings layer
        raise BadReleaseError(f"config of {manifest.config.size} bytes: at most {MAX_SETTINGS_BYTES} are accepted")
    check_blob(manifest.config, _get(read, manifest.config))
    settings = manifest.settings
    config = parse_config(check_blob(settings, _get(read, settings)))
    for layer in manifest.layers:
        data = check_blob(layer, _get(read, layer))
        if layer != settings and config.blocks.get(layer.sha256) != block_digests(data, BLOCK_BYTES):
            raise BadReleaseError(f"config: blocks of {layer.path!r} are missing or wrong; pack the release again")
        suffix = PurePosixPath(layer.path).suffix
        if config.component not in _HOLDERS.get(suffix, {config.component}):
            raise BadReleaseError(
                f"{layer.path}: a {config.component[:20]} holds no code; accepted are ONNX and safetensors"
            )
        check_contents(layer.path, data)
    return Vetted(digest_of(manifest_bytes), manifest, config)


def check_blob(blob: Descriptor, data: bytes) -> bytes:
    """The same bytes when they are those the descriptor names; `BadReleaseError` when not."""
    if len(data) != blob.size or digest_of(data) != blob.sha256:
        name = blob.annotations.get(FILEPATH, "config.json")
        raise BadReleaseError(
            f"{name[:120]}: {len(data)} bytes that are not the {blob.size} the manifest names "
            f"(sha256 {blob.sha256[:12]}…); pack it again"
        )
    return data


def _get(read: Read, blob: Descriptor) -> bytes:
    try:
        return read(blob.sha256)
    except LookupError:
        name = blob.annotations.get(FILEPATH, "config.json")
        raise BadReleaseError(f"{name[:120]}: blob {blob.sha256[:12]} is missing; send the whole release") from None
