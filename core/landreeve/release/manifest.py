"""A release as an OCI image manifest in the CNCF ModelPack layout.

The manifest names a config blob and one layer for each file; each is addressed by its sha256. The config is a
ModelPack model config and nothing else, since its schema allows no further member. What we add stands in the layer
``landreeve.json``: signature, gates, lineage, hardware constraints, and the digests of every 64 KiB block so that each
block can be checked alone. Releases packed before that layer existed carry the same member in their config; they are
read as ever (`Manifest.settings`).

Specification: https://github.com/modelpack/model-spec, docs/spec.md, docs/config.md and docs/annotations.md (v0.0.7).

The manifest's own sha256 names the release for ever.
"""

import hashlib
from pathlib import PurePosixPath
from typing import Any

import msgspec

from landreeve.release.errors import BadReleaseError as BadReleaseError  # noqa: PLC0414  known by this place
from landreeve.release.paths import check_plain, check_together
from landreeve.wire.ids import BadIdError, check_digest, check_id

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DATASET_TYPE = "application/vnd.cncf.model.dataset.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # the file name by which general OCI clients lay a layer out
SETTINGS_FILE = "landreeve.json"

MAX_MANIFEST_BYTES = 256 * 1024
MAX_SETTINGS_BYTES = 4 * 1024 * 1024
MAX_LAYER_BYTES = 4 * 1024**3
MAX_RELEASE_BYTES = 8 * 1024**3
MAX_LAYERS = 64
RAW_TYPES = frozenset({WEIGHT_TYPE, WEIGHT_CONFIG_TYPE, DATASET_TYPE, DOC_TYPE})
ALLOWED_SUFFIXES = {
    ".onnx": WEIGHT_TYPE,
    ".safetensors": DATASET_TYPE,
    ".json": WEIGHT_CONFIG_TYPE,
    ".md": DOC_TYPE,
    ".whl": CODE_TYPE,
    ".img": CODE_TYPE,
    ".raucb": CODE_TYPE,
}
_CODE_SUFFIXES = frozenset(suffix for suffix, kind in ALLOWED_SUFFIXES.items() if kind == CODE_TYPE)
IMAGE_SUFFIXES = frozenset({".img", ".raucb"})
"""Firmware images; what is in them is verified by who writes them into a slot."""


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename={"media_type": "mediaType"}):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}

    @property
    def sha256(self) -> str:
        algorithm, _, value = self.digest.partition(":")
        if algorithm != "sha256":
            raise BadReleaseError(f"digest {self.digest[:90]!r}: only sha256 is accepted")
        try:
            return check_digest(value)
        except BadIdError as error:
            raise BadReleaseError(f"digest: {error}") from error

    @property
    def path(self) -> str:
        return check_path(self.annotations.get(FILEPATH, ""))


class Manifest(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"schema_version": "schemaVersion", "media_type": "mediaType", "artifact_type": "artifactType"},
):
    schema_version: int = 2
    media_type: str = MANIFEST_TYPE
    artifact_type: str = ARTIFACT_TYPE
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}

    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything the release consists of besides the manifest, config first."""
        return (self.config, *self.layers)

    @property
    def settings(self) -> Descriptor:
        """The blob that holds our `ReleaseConfig`: its own layer, in older releases the config."""
        return self.layer(SETTINGS_FILE) or self.config

    def layer(self, path: str) -> Descriptor | None:
        """The layer of that file, or None."""
        return next((layer for layer in self.layers if layer.path == path), None)


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a model as its callers know it: a name, a kind, a unit."""

    name: str
    kind: str  # "number" or "category"
    unit: str = ""
    required: bool = True
    low: float | None = None
    high: float | None = None


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a graph: its name, its datatype in the words of the Open Inference Protocol (``FP32``,
    ``INT64``, …) and its shape. The first axis counts rows; -1 means any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """What goes in and comes out.

    Of a tabular model ``inputs`` are rows of columns; the graph's own input is ``tensor``, float32 of shape
    (rows, width); the output is ``output``, float32 of shape (rows,). A tensor model has ``tensors`` and ``outputs``
    instead: callers send the graph's inputs themselves, and ``inputs`` are the numbers derived from them.
    """

    inputs: tuple[Column, ...]
    output: str
    output_unit: str = ""
    tensor: str = "x"
    width: int = 0
    tensors: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a release comes from."""

    run: str = ""
    site: str = ""
    dataset: str = ""
    dataset_rows: int = 0
    dataset_first: str = ""
    dataset_last: str = ""
    code: str = ""
    recipe: str = ""
    configuration: dict[str, Any] = {}
    parent: str = ""
    reason: str = ""


class Gates(msgspec.Struct, frozen=True, kw_only=True):
    """The quality a release claims on its golden set and the limits a box must reproduce.

    ``metrics`` are claimed figures (``log_loss``, ``auc``, ``calibration``); ``max_output_difference`` is the
    largest accepted difference to the golden outputs at fp32, and ``max_metric_loss`` how much the metric may
    worsen for a reduced precision (nats of log loss). ``max_p95_ms`` bounds one row's latency.
    """

    metric: str = "log_loss"
    metrics: dict[str, float] = {}
    max_output_difference: float = 1e-3
    max_metric_loss: float = 0.002
    max_p95_ms: float = 50.0
    max_rss_mb: float = 512.0


class ReleaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What we say of a release. ``blocks`` maps a layer's sha256 to its blocks' sha256s. ``component`` is the kind of
    thing it is: a model, an ``agent``, whose files are wheels, or ``firmware``, whose file is an image."""

    model: str
    family: str
    created: str
    signature: Signature
    gates: Gates
    lineage: Lineage
    minimum_agent: str = "0.1.0"
    component: str = "model"
    hardware: dict[str, Any] = {}
    blocks: dict[str, tuple[str, ...]] = {}


def check_path(path: str) -> str:
    """The same relative path when it is plain (`landreeve.release.paths`) and its suffix that of an accepted format."""
    check_plain(path)
    if PurePosixPath(path).suffix not in ALLOWED_SUFFIXES:
        allowed = ", ".join(sorted(ALLOWED_SUFFIXES))
        raise BadReleaseError(f"layer {path[:120]!r}: format not accepted; accepted are {allowed} (never pickle)")
    return path


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in the bytes, every descriptor checked; `BadReleaseError` says what is wrong."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadReleaseError(f"manifest of {len(data)} bytes: at most {MAX_MANIFEST_BYTES} are accepted")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReleaseError(f"manifest: {error}") from error
    except RecursionError as error:
        raise BadReleaseError("manifest: nested too deeply") from error
    if manifest.schema_version != 2 or manifest.media_type != MANIFEST_TYPE or manifest.artifact_type != ARTIFACT_TYPE:
        raise BadReleaseError(f"manifest: expected an OCI manifest of artifact type {ARTIFACT_TYPE}")
    if manifest.config.media_type != CONFIG_TYPE or not 0 < len(manifest.layers) <= MAX_LAYERS:
        raise BadReleaseError(f"manifest: expected a config of type {CONFIG_TYPE} and 1 to {MAX_LAYERS} layers")
    check_together(layer.path for layer in manifest.layers)
    _check_blobs(manifest)
    for layer in manifest.layers:
        _check_type(layer)
    return manifest


def _check_blobs(manifest: Manifest) -> None:
    sizes: dict[str, int] = {}
    for blob in manifest.blobs():
        if not 0 < blob.size <= MAX_LAYER_BYTES:
            raise BadReleaseError(
                f"blob {blob.sha256[:12]}: size {blob.size} is out of bounds (1 to {MAX_LAYER_BYTES})"
            )
        if sizes.setdefault(blob.sha256, blob.size) != blob.size:
            raise BadReleaseError(f"blob {blob.sha256[:12]}: occurs with two sizes")
    if sum(sizes.values()) > MAX_RELEASE_BYTES:
        raise BadReleaseError(f"release of {sum(sizes.values())} bytes: at most {MAX_RELEASE_BYTES} are accepted")


def _check_type(layer: Descriptor) -> None:
    kind = layer.media_type
    if kind in RAW_TYPES or (kind == CODE_TYPE and PurePosixPath(layer.path).suffix in _CODE_SUFFIXES):
        return  # whether this release may hold wheels or images is decided by its component (`landreeve.release.vet`)
    if kind.startswith("application/vnd.cncf.model.code."):
        raise BadReleaseError(f"layer {layer.path!r}: is code ({kind}); a release holds none")
    if kind.partition("+")[0].endswith(".tar"):
        raise BadReleaseError(f"layer {layer.path!r}: is archived ({kind}); each file must be a raw layer of its own")
    raise BadReleaseError(f"layer {layer.path!r}: media type {kind[:90]!r} is not one of ModelPack's raw files")


def parse_config(data: bytes) -> ReleaseConfig:
    """What we say of a release, from the blob `Manifest.settings`; `BadReleaseError` says what is wrong."""
    if len(data) > MAX_SETTINGS_BYTES:
        raise BadReleaseError(f"config of {len(data)} bytes: at most {MAX_SETTINGS_BYTES} are accepted")
    try:
        whole = msgspec.json.decode(data)
        config = msgspec.convert(whole.get("landreeve") if isinstance(whole, dict) else None, ReleaseConfig)
        check_id(config.model)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadReleaseError(f"config: {error}") from error
    except RecursionError as error:
        raise BadReleaseError("config: nested too deeply") from error
    return config


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes: the same manifest always has the same digest."""
    return msgspec.json.encode(manifest, order="sorted")


def encode_settings(config: ReleaseConfig) -> bytes:
    """The content of ``landreeve.json``."""
    return msgspec.json.encode({"landreeve": config}, order="sorted")


def encode_config(config: ReleaseConfig, layers: tuple[Descriptor, ...]) -> bytes:
    """The ModelPack config blob. Layers are raw files, so their DiffIDs are their digests."""
    descriptor = {"name": config.model, "family": config.family, "createdAt": config.created}
    if config.lineage.code:
        descriptor["revision"] = config.lineage.code
    document = {
        "descriptor": descriptor,
        "config": {"format": "onnx", "precision": "float32", "architecture": config.family},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }
    return msgspec.json.encode(document, order="sorted")


def digest_of(data: bytes) -> str:
    """The sha256 of the bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def block_digests(data: bytes, block_bytes: int) -> tuple[str, ...]:
    """The sha256 of each block of the data."""
    return tuple(digest_of(data[i : i + block_bytes]) for i in range(0, len(data), block_bytes))
