"""Releases that others packed: taken as they are when they are ours, made a release when they hold what one needs.

A ModelPack artifact of another tool has no ``landreeve.json``. It is accepted when every layer is a raw file of a
format we accept and ``definition.json`` says what the model is; everything a release states about itself is then
taken from there. Whatever else it holds is a reason to refuse it: nothing is left out in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from landreeve.release.layout import CONFIG_FILE, MANIFEST_FILE, Packed, pack
from landreeve.release.manifest import (
    CONFIG_TYPE,
    FILEPATH,
    MAX_LAYER_BYTES,
    SETTINGS_FILE,
    TITLE,
    BadReleaseError,
    Descriptor,
    Lineage,
    Manifest,
    ReleaseConfig,
    digest_of,
    parse_manifest,
)
from landreeve.release.vet import Read, check_blob, vet
from landreeve_models.definition import BadDefinitionError, Definition, parse_definition

DEFINITION_FILE = "definition.json"
REQUIRED = ("model.onnx", DEFINITION_FILE, "baseline.json", "calibration.safetensors", "golden.safetensors")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:Z|[+-]\d{2}:\d{2})")
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Told:
    """What another tool's config says that we keep."""

    created: str = _UNKNOWN_TIME
    family: str = "imported"
    revision: str = ""


def adopt(manifest_bytes: bytes, read: Read, source: str) -> Packed:
    """The release in an OCI artifact. ``read`` gives a blob by its sha256; ``source`` says where it comes from.

    `BadReleaseError` says why an artifact is refused.
    """
    manifest = parse_manifest(_with_paths(manifest_bytes))
    blobs = {blob.sha256: _fetched(read, blob) for blob in manifest.blobs()}
    if not _is_ours(manifest, blobs):
        files = {layer.path: blobs[layer.sha256] for layer in manifest.layers}
        return adopt_files(files, source, _told(blobs[manifest.config.sha256]))
    vet(manifest_bytes, blobs.__getitem__)
    return Packed(manifest_bytes, digest_of(manifest_bytes), blobs)


def adopt_files(files: Mapping[str, bytes], source: str, told: Told | None = None) -> Packed:
    """A release of loose files: a model folder that was never packed, or the layers of another tool's artifact."""
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        raise BadReleaseError(
            f"{source}: has no {', '.join(missing)}; besides its graph a release needs what says what it is and what "
            "a box proves it by"
        )
    definition, told = _definition(files[DEFINITION_FILE]), told or Told()
    if definition.tabular and "features.json" not in files:
        raise BadReleaseError(f"{source}: has no features.json; a model of columns needs its feature pipeline")
    config = ReleaseConfig(
        model=definition.name,
        family=told.family,
        created=told.created,
        signature=definition.signature(),
        gates=definition.gates,
        lineage=Lineage(reason=f"imported from {source}"[:400], code=told.revision),
    )
    own = {MANIFEST_FILE, CONFIG_FILE, SETTINGS_FILE}
    packed = pack({path: data for path, data in files.items() if path not in own}, config)
    vet(packed.manifest_bytes, packed.blobs.__getitem__)
    return packed


def _with_paths(manifest_bytes: bytes) -> bytes:
    """The manifest with ModelPack's file path where a layer only has the general title; ours come back unchanged."""
    try:
        document = msgspec.json.decode(manifest_bytes)
        lacking = [layer for layer in document["layers"] if FILEPATH not in _names(layer)]
        if not lacking or document["config"]["mediaType"] != CONFIG_TYPE:
            return manifest_bytes
        for layer in lacking:
            layer["annotations"] = {**_names(layer), FILEPATH: str(_names(layer).get(TITLE, ""))}
        return msgspec.json.encode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError):
        return manifest_bytes  # parse_manifest says what is wrong with it


def _names(layer: Any) -> dict[str, Any]:
    names = layer.get("annotations")
    return names if isinstance(names, dict) else {}


def _fetched(read: Read, blob: Descriptor) -> bytes:
    if blob.size > MAX_LAYER_BYTES:
        raise BadReleaseError(f"blob {blob.sha256[:12]}: {blob.size} bytes, at most {MAX_LAYER_BYTES}")
    try:
        return check_blob(blob, read(blob.sha256))
    except LookupError:
        raise BadReleaseError(f"blob {blob.sha256[:12]} is missing; send the whole artifact") from None


def _is_ours(manifest: Manifest, blobs: Mapping[str, bytes]) -> bool:
    """Whether it says of itself what our releases say; what it says is judged afterwards."""
    try:
        whole = msgspec.json.decode(blobs[manifest.settings.sha256], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return "landreeve" in whole


def _told(config: bytes) -> Told:
    try:
        document = msgspec.json.decode(config)
        descriptor = document.get("descriptor") if isinstance(document, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadReleaseError(f"config: {str(error)[:200]}") from error
    said = descriptor if isinstance(descriptor, dict) else {}
    created, family = str(said.get("createdAt", "")), str(said.get("family", ""))[:64]
    return Told(
        created if _MOMENT.fullmatch(created) else _UNKNOWN_TIME,
        family or "imported",
        str(said.get("revision", ""))[:200],
    )


def _definition(data: bytes) -> Definition:
    try:
        return parse_definition(data)
    except BadDefinitionError as error:
        raise BadReleaseError(f"{DEFINITION_FILE}: {error}") from error
