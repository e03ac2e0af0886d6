"""The bill of materials of an approved release, and the OCI manifest by which it refers to it. Pure.

CycloneDX 1.7 (ECMA-424) with a model card: what the release is and how good it claims to be, which data, code and
configuration it was trained with, from which parent and in which run, under which licence, and who let it through. It
is made when the release is approved, since only then is that known; the release itself does not change by it.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from landreeve.release.manifest import MANIFEST_TYPE, Descriptor, ReleaseConfig, digest_of
from landreeve.release.reference import repository_of

BILL_TYPE = "application/vnd.cyclonedx+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
SPEC_VERSION = "1.7"
MAX_LIBRARIES = 500
_NAMESPACE = uuid.UUID("5b1f1d57-6c6c-5d5e-8f0e-6c616e647265")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LICENCE = re.compile(r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*")


@dataclass(frozen=True, slots=True)
class Subject:
    """The release a bill is of. ``own`` is its own ``bom.json``, where it has one that can be read."""

    digest: str
    manifest_bytes: int
    version: str
    config: ReleaseConfig
    layers: Sequence[Descriptor]
    own: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """Who proposed and who approved it, and when (RFC 3339)."""

    proposed_by: str
    approved_by: str
    at: str


@dataclass(frozen=True, slots=True)
class Referrer:
    """A bill and the manifest whose subject is the release; digests in hex."""

    digest: str
    manifest: bytes
    content_digest: str
    content: bytes


def read_own(data: bytes) -> dict[str, Any]:
    """A release's own bill, as far as it is one; whoever made the release wrote it, so nothing in it is relied upon."""
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if document.get("bomFormat") == "CycloneDX" else {}


def bill_of(subject: Subject, decision: Decision) -> bytes:
    """The bill as JSON; the same release and decision always give the same bytes."""
    lineage = subject.config.lineage
    libraries = _libraries(subject.own)
    files = [_file(layer) for layer in subject.layers]
    refs = [*(["dataset"] if _has_data(subject) else []), *(one["bom-ref"] for one in libraries)]
    seed = subject.digest + decision.approved_by + decision.at
    document: dict[str, Any] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, seed)}",
        "version": 1,
        "metadata": {
            "timestamp": decision.at,
            "lifecycles": [{"phase": "post-build"}],
            "component": _model(subject),
            "properties": _properties({"approved_by": decision.approved_by, "proposed_by": decision.proposed_by}),
        },
        "components": [*([_dataset(subject)] if _has_data(subject) else []), *libraries, *files],
        "dependencies": [{"ref": "model", "dependsOn": refs}],
    }
    if lineage.run:
        document["formulation"] = [{"bom-ref": "formula", "workflows": [_training(subject)]}]
    return msgspec.json.encode(document, order="sorted")


def referrer_of(subject: Subject, bill: bytes, at: str) -> Referrer:
    """The manifest that says: this bill is of that release (OCI image-spec 1.1, artifacts without a config)."""
    content = digest_of(bill)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": BILL_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": f"sha256:{digest_of(EMPTY)}", "size": len(EMPTY)},
        "layers": [
            {
                "mediaType": BILL_TYPE,
                "digest": f"sha256:{content}",
                "size": len(bill),
                "annotations": {"org.opencontainers.image.title": "ml-bom.cdx.json"},
            }
        ],
        "subject": {
            "mediaType": MANIFEST_TYPE,
            "digest": f"sha256:{subject.digest}",
            "size": subject.manifest_bytes,
        },
        "annotations": {"org.opencontainers.image.created": at},
    }
    data = msgspec.json.encode(manifest, order="sorted")
    return Referrer(digest_of(data), data, content, bill)


def _model(subject: Subject) -> dict[str, Any]:
    config, lineage = subject.config, subject.config.lineage
    repository = repository_of(config.model)
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": config.model,
        "version": subject.version,
        "purl": f"pkg:oci/{repository}@sha256%3A{subject.digest}?tag={subject.version}",
        "hashes": [_sha256(subject.digest)],
        "modelCard": _card(subject),
        "properties": _properties(
            {"run": lineage.run, "site": lineage.site, "reason": lineage.reason, "minimum_agent": config.minimum_agent}
        ),
    }
    pedigree: dict[str, Any] = {}
    if lineage.parent:
        known = _DIGEST.fullmatch(lineage.parent)
        parent = {"type": "machine-learning-model", "name": config.model, "version": lineage.parent[:64]}
        pedigree["ancestors"] = [parent | ({"hashes": [_sha256(lineage.parent)]} if known else {})]
    if lineage.code:
        pedigree["commits"] = [{"uid": lineage.code}]
    return component | ({"pedigree": pedigree} if pedigree else {}) | _licences(subject.own)


def _card(subject: Subject) -> dict[str, Any]:
    config, signature = subject.config, subject.config.signature
    inputs = [f"{s.name}: {s.datatype} {list(s.shape)}" for s in signature.tensors] or [
        f"{c.name}: {c.kind} {c.unit}".rstrip() for c in signature.inputs
    ]
    outputs = [f"{s.name}: {s.datatype} {list(s.shape)}" for s in signature.outputs] or [
        f"{signature.output}: {signature.output_unit}".rstrip(": ")
    ]
    metrics = [
        {"type": name, "value": f"{value:g}", "slice": "golden"} for name, value in sorted(config.gates.metrics.items())
    ]
    parameters: dict[str, Any] = {
        "architectureFamily": config.family,
        "inputs": [{"format": text} for text in inputs],
        "outputs": [{"format": text} for text in outputs],
    }
    if _has_data(subject):
        parameters["datasets"] = [{"ref": "dataset"}]
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": metrics}}


def _has_data(subject: Subject) -> bool:
    return bool(subject.config.lineage.dataset or subject.config.lineage.dataset_rows)


def _dataset(subject: Subject) -> dict[str, Any]:
    lineage = subject.config.lineage
    told = {"rows": str(lineage.dataset_rows), "first": lineage.dataset_first, "last": lineage.dataset_last}
    component: dict[str, Any] = {
        "type": "data",
        "bom-ref": "dataset",
        "name": f"{subject.config.model} rows of {lineage.site or 'an unnamed site'}",
        "data": [{"type": "dataset", "classification": "kept on site"}],
        "properties": _properties(told | {"digest": lineage.dataset}),
    }
    return component | ({"hashes": [_sha256(lineage.dataset)]} if _DIGEST.fullmatch(lineage.dataset) else {})


def _training(subject: Subject) -> dict[str, Any]:
    """The run that made it: what went in, and the configuration it was given."""
    lineage = subject.config.lineage
    given = [{"name": name, "value": _text(value)} for name, value in sorted(lineage.configuration.items())]
    inputs: list[dict[str, Any]] = [{"resource": {"ref": "dataset"}}] if _has_data(subject) else []
    if given:
        inputs.append({"parameters": given})
    workflow = {
        "bom-ref": "training",
        "uid": lineage.run,
        "name": f"training by recipe {lineage.recipe or subject.config.family}",
        "taskTypes": ["build"],
        "outputs": [{"type": "artifact", "resource": {"ref": "model"}}],
    }
    return workflow | ({"inputs": inputs} if inputs else {})


def _file(layer: Descriptor) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{layer.path}",
        "name": layer.path,
        "mime-type": layer.media_type,
        "hashes": [_sha256(layer.sha256)],
        "properties": _properties({"bytes": str(layer.size)}),
    }


def _libraries(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The libraries a release says it was made with."""
    listed = own.get("components")
    found: dict[str, dict[str, Any]] = {}
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict) and one.get("type") == "library" and len(found) < MAX_LIBRARIES:
            name, version = str(one.get("name", ""))[:100], str(one.get("version", ""))[:100]
            if name:
                ref = f"library:{name}"
                found[ref] = {"type": "library", "bom-ref": ref, "name": name, "version": version}
    return [found[ref] for ref in sorted(found)]


def _licences(own: Mapping[str, Any]) -> dict[str, Any]:
    """The licences a release says it is under: an SPDX expression where it is one, else the name."""
    metadata = own.get("metadata")
    component = metadata.get("component") if isinstance(metadata, dict) else None
    listed = component.get("licenses") if isinstance(component, dict) else None
    names: list[str] = []
    for one in listed if isinstance(listed, list) else ():
        licence = one.get("license") if isinstance(one, dict) else None
        name = (licence.get("id") or licence.get("name")) if isinstance(licence, dict) else None
        if isinstance(name, str) and name and len(name) <= 100:
            names.append(name)
    if not names:
        return {}
    if all(_LICENCE.fullmatch(name) for name in names):
        return {"licenses": [{"expression": " AND ".join(names), "acknowledgement": "declared"}]}
    return {"licenses": [{"license": {"name": name, "acknowledgement": "declared"}} for name in names]}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"landreeve:{name}", "value": value} for name, value in values.items() if value]


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
