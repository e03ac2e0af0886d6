"""What a release says of itself to people and auditors: its card and its bill of materials."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from landreeve.release.manifest import Lineage, TensorSpec

from landreeve_models.definition import Definition

_NAMESPACE = uuid.UUID("5b1f1d57-6c6c-5d5e-8f0e-6c616e647265")
TASK_NAMES = {
    "binary": "binary classification",
    "classification": "classification",
    "embedding": "sentence or image embedding",
    "anomaly": "anomaly detection",
}


@dataclass(frozen=True, slots=True)
class Material:
    """Something of others that a release contains or was made from: its licence as an SPDX expression, the package
    it came in (a purl) and the sha256 of the part that was used."""

    name: str
    version: str
    licence: str
    purl: str = ""
    sha256: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """What the papers tell: the model, its graph, where it comes from, and its ``claims`` on the golden set.

    ``libraries`` (name → version) made it; ``data`` and ``weights`` are of others; ``notes`` are sentences for the
    card; ``files`` are the names of the release's files.
    """

    definition: Definition
    graph: bytes
    lineage: Lineage
    created: str
    claims: Mapping[str, float]
    libraries: Mapping[str, str]
    files: Sequence[str] = ()
    weights: Sequence[Material] = ()
    data: Sequence[Material] = ()
    notes: Sequence[str] = ()


def card(story: Story) -> str:
    """``card.md``."""
    definition = story.definition
    lines = [
        f"# {definition.name}",
        "",
        definition.purpose + ".",
        "",
        *(_trained(story.lineage) if definition.tabular else _origin(story)),
        "",
        f"| on {'held-out rows' if definition.tabular else 'the golden set'} | value |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in sorted(story.claims.items())),
        "",
        *(_columns(definition) if definition.tabular else _tensors(definition)),
        "",
        *(_SPLIT if definition.tabular else story.notes),
        "",
    ]
    return "\n".join(lines)


_SPLIT = (
    "The held-out rows are the latest of the training range; the golden set is half of them and was never",
    "trained on. A category that training did not see counts as unknown. Figures hold for data like that of the",
    "training range: `baseline.json` says what it looked like, and the site reports when it changes.",
)


def _trained(lineage: Lineage) -> list[str]:
    span = f"from {lineage.dataset_first} until {lineage.dataset_last} by recipe `{lineage.recipe}`"
    return [
        f"Trained at {lineage.site or 'an unnamed site'} on {lineage.dataset_rows} labelled rows {span}.",
        f"Reason: {lineage.reason or 'not given'}. Parent release: {lineage.parent or 'none'}.",
    ]


def _origin(story: Story) -> list[str]:
    lines = [f"Built by recipe `{story.lineage.recipe}`."]
    for word, materials in (("Weights", story.weights), ("Data", story.data)):
        for m in materials:
            by = f" by {m.author}" if m.author else ""
            lines.append(
                f"{word}: {m.name} {m.version}{by}, licence {m.licence}.".replace(" ,", ",").replace("  ", " ")
            )
    return lines


def _columns(definition: Definition) -> list[str]:
    head = ["| input | kind | unit | required |", "|---|---|---|---|"]
    return head + [f"| {c.name} | {c.kind} | {c.unit} | {'yes' if c.required else 'no'} |" for c in definition.columns]


def _tensors(definition: Definition) -> list[str]:
    def rows(word: str, specs: Sequence[TensorSpec]) -> list[str]:
        return [f"| {word} | {s.name} | {s.datatype} | {_shape(s)} |" for s in specs]

    head = ["| | tensor | datatype | shape |", "|---|---|---|---|"]
    return head + rows("input", definition.tensors) + rows("output", definition.outputs)


def _shape(spec: TensorSpec) -> str:
    return ", ".join(["rows", *("any" if axis == -1 else str(axis) for axis in spec.shape[1:])])


def bill(story: Story) -> bytes:
    """``bom.json``: a CycloneDX 1.7 ML-BOM (ECMA-424): the model with its card, its data, its weights' origin, and
    the libraries that made it."""
    digest = hashlib.sha256(story.graph).hexdigest()
    used = [_component(m, "machine-learning-model", f"weights:{m.name}") for m in story.weights]
    data = [_component(m, "data", f"data:{m.name}") for m in story.data] or [_own_data(story)]
    libraries = [
        {"type": "library", "name": name, "version": version, "bom-ref": name}
        for name, version in sorted(story.libraries.items())
    ]
    files = [{"type": "file", "bom-ref": f"file:{path}", "name": path} for path in sorted(story.files)]
    refs = [component["bom-ref"] for component in (*data, *used)]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest + story.lineage.run)}",
        "version": 1,
        "metadata": {"timestamp": story.created, "component": _model(story, digest, [c["bom-ref"] for c in data])},
        "components": [*data, *used, *libraries, *files],
        "dependencies": [{"ref": "model", "dependsOn": [*refs, *sorted(story.libraries)]}],
    }
    return msgspec.json.encode(document, order="sorted")


def _model(story: Story, digest: str, data: Sequence[str]) -> dict[str, Any]:
    definition = story.definition
    performance = [
        {"type": name, "value": f"{value:.6f}", "slice": "golden"} for name, value in sorted(story.claims.items())
    ]
    if definition.tabular:
        inputs = [{"format": f"{c.name}: {c.kind}"} for c in definition.columns]
        outputs = [{"format": f"{definition.output}: {definition.output_unit}"}]
    else:
        inputs = [{"format": f"{s.name}: {s.datatype} {_shape(s)}"} for s in definition.tensors]
        outputs = [{"format": f"{s.name}: {s.datatype} {_shape(s)}"} for s in definition.outputs]
    parameters = {
        "approach": {"type": "unsupervised" if definition.task == "anomaly" else "supervised"},
        "task": TASK_NAMES[definition.task],
        "architectureFamily": story.lineage.recipe,
        "datasets": [{"ref": ref} for ref in data],
        "inputs": inputs,
        "outputs": outputs,
    }
    licences = sorted({m.licence for m in story.weights})
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": definition.name,
        "version": digest[:12],
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "modelCard": {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": performance}},
    } | ({"licenses": [_licence(licence) for licence in licences]} if licences else {})


def _component(material: Material, kind: str, ref: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": ref,
        "name": material.name,
        "licenses": [_licence(material.licence)],
    }
    if material.version:
        component["version"] = material.version
    if material.purl:
        component["purl"] = material.purl
    if material.author:
        component["publisher"] = material.author
    if material.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": material.sha256}]
    return component


def _licence(identifier: str) -> dict[str, Any]:
    return {"license": {"id": identifier}}


def _own_data(story: Story) -> dict[str, Any]:
    lineage = story.lineage
    return {
        "type": "data",
        "bom-ref": "dataset",
        "name": f"{story.definition.name} rows of {lineage.site or 'an unnamed site'}",
        "hashes": [{"alg": "SHA-256", "content": lineage.dataset}] if lineage.dataset else [],
        "data": [{"type": "dataset", "classification": "kept on site"}],
    }
