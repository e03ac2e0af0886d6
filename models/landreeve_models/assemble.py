"""A fitted model made into a complete release: every file of it, its claims, its card and its bill of materials."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import BadReleaseError, Lineage, ReleaseConfig
from numpy.typing import NDArray

from landreeve_models import evaluate, onnx_policy
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition, encode_definition
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.inference import predict_graph

MAX_PARITY = 1e-4
_NAMESPACE = uuid.UUID("5b1f1d57-6c6c-5d5e-8f0e-6c616e647265")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a release is made of.

    ``graph`` is the ONNX model, ``calibration`` float32 (c, width) rows of the training part, ``golden`` float32
    (g, width) rows that training never saw with their ``golden_labels`` (g,); ``figures`` are shown on the card.
    """

    definition: Definition
    pipeline: Pipeline
    graph: bytes
    baseline: Baseline
    calibration: NDArray[np.float32]
    golden: NDArray[np.float32]
    golden_labels: NDArray[np.float32]
    lineage: Lineage
    created: str
    figures: Mapping[str, Any]
    libraries: Mapping[str, str]


def assemble(parts: Parts) -> Packed:
    """The release. Its golden outputs are the graph's own at fp32, its claimed figures those of the golden set; the
    graph must keep `landreeve_models.onnx_policy`."""
    onnx_policy.check(parts.graph, width=parts.pipeline.width)
    expected = predict_graph(parts.graph, parts.golden)
    if not np.isfinite(expected).all():
        raise BadReleaseError("model.onnx: gives values that are not numbers on the golden rows")
    claims = evaluate.summary(expected, parts.golden_labels)
    golden = {"x": parts.golden, "expected": expected, "label": parts.golden_labels}
    files = {
        "model.onnx": parts.graph,
        "features.json": parts.pipeline.to_bytes(),
        "definition.json": encode_definition(parts.definition),
        "baseline.json": parts.baseline.to_bytes(),
        "calibration.safetensors": _tensors({"x": parts.calibration}),
        "golden.safetensors": _tensors(golden),
        "card.md": _card(parts, claims).encode(),
    }
    files["bom.json"] = _bom(parts, files)
    return pack(files, _config(parts, claims))


def check_parity(fitted: NDArray[Any], graph: bytes, x: NDArray[np.float32]) -> float:
    """The largest difference between the fitted model and its graph on x; `BadReleaseError` above `MAX_PARITY`."""
    worst = float(np.abs(predict_graph(graph, x) - fitted).max()) if len(x) else 0.0
    if not worst <= MAX_PARITY:
        raise BadReleaseError(f"export: the graph differs from the fitted model by {worst:.2g}, allowed {MAX_PARITY}")
    return worst


def _tensors(arrays: dict[str, NDArray[Any]]) -> bytes:
    data: bytes = safetensors.numpy.save({name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()})
    return data


def _config(parts: Parts, claims: dict[str, float]) -> ReleaseConfig:
    figures = {name: round(claims[name], 6) for name in ("log_loss", "auc", "calibration") if name in claims}
    return ReleaseConfig(
        model=parts.definition.name,
        family=parts.lineage.recipe,
        created=parts.created,
        signature=parts.definition.signature(),
        gates=msgspec.structs.replace(parts.definition.gates, metrics=figures),
        lineage=parts.lineage,
    )


def _card(parts: Parts, claims: dict[str, float]) -> str:
    lineage, definition = parts.lineage, parts.definition
    lines = [
        f"# {definition.name}",
        "",
        definition.purpose + ".",
        "",
        (
            f"Trained at {lineage.site or 'an unnamed site'} on {lineage.dataset_rows} labelled rows from "
            f"{lineage.dataset_first} until {lineage.dataset_last} by recipe `{lineage.recipe}`."
        ),
        f"Reason: {lineage.reason or 'not given'}. Parent release: {lineage.parent or 'none'}.",
        "",
        "| on held-out rows | value |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in sorted(claims.items())),
        "",
        "| input | kind | unit | required |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.kind} | {c.unit} | {'yes' if c.required else 'no'} |" for c in definition.columns),
        "",
        "The held-out rows are the latest of the training range; the golden set is half of them and was never",
        "trained on. A category that training did not see counts as unknown. Figures hold for data like that of the",
        "training range: `baseline.json` says what it looked like, and the site reports when it changes.",
        "",
    ]
    return "\n".join(lines)


def _bom(parts: Parts, files: Mapping[str, bytes]) -> bytes:
    """A CycloneDX 1.6 ML-BOM (ECMA-424): the model with its card, its data set, and the libraries that made it."""
    lineage = parts.lineage
    digest = hashlib.sha256(parts.graph).hexdigest()
    performance = [
        {"type": name, "value": f"{value:.6f}", "slice": "golden"}
        for name, value in sorted(evaluate.summary(*_golden(parts)).items())
    ]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": parts.definition.name,
        "version": digest[:12],
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "binary classification",
                "architectureFamily": lineage.recipe,
                "datasets": [{"ref": "dataset"}],
                "inputs": [{"format": f"{c.name}: {c.kind}"} for c in parts.definition.columns],
                "outputs": [{"format": f"{parts.definition.output}: {parts.definition.output_unit}"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": performance},
        },
    }
    dataset = {
        "type": "data",
        "bom-ref": "dataset",
        "name": f"{parts.definition.name} rows of {lineage.site or 'an unnamed site'}",
        "hashes": [{"alg": "SHA-256", "content": lineage.dataset}] if lineage.dataset else [],
        "data": [{"type": "dataset", "classification": "kept on site"}],
    }
    others = [{"type": "library", "name": n, "version": v, "bom-ref": n} for n, v in sorted(parts.libraries.items())]
    documents = [{"type": "file", "bom-ref": f"file:{path}", "name": path} for path in sorted(files)]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest + lineage.run)}",
        "version": 1,
        "metadata": {"timestamp": parts.created, "component": model},
        "components": [dataset, *others, *documents],
        "dependencies": [{"ref": "model", "dependsOn": ["dataset", *sorted(parts.libraries)]}],
    }
    return msgspec.json.encode(document, order="sorted")


def _golden(parts: Parts) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return predict_graph(parts.graph, parts.golden), parts.golden_labels
