"""A model made into a complete release: every file of it, its claims, its card and its bill of materials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import BadReleaseError, Lineage, ReleaseConfig
from numpy.typing import NDArray

from landreeve_models import evaluate, onnx_policy
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition, check_definition, encode_definition
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.inference import predict_graph, run_graph
from landreeve_models.papers import Material, Story, bill, card
from landreeve_models.samples import DTYPES, derived_rows, predictions

Array = NDArray[Any]
MAX_PARITY = 1e-4
BATCH_ROWS = 16
ALONE_ROWS = 8


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


@dataclass(frozen=True, slots=True)
class TensorParts:
    """What a release of a tensor model is made of.

    ``calibration`` and ``golden`` have one array for each input of the graph, in its order; ``golden_labels`` is the
    truth (g,). ``reference`` rows (as many as there are, never shipped) say what inputs usually look like; without
    them the calibration rows do. ``weights`` and ``data`` are of others, with their licences; ``notes`` go on the card.
    """

    definition: Definition
    graph: bytes
    calibration: Sequence[Array]
    golden: Sequence[Array]
    golden_labels: NDArray[np.float32]
    lineage: Lineage
    created: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    reference: Sequence[Array] = ()
    weights: Sequence[Material] = ()
    data: Sequence[Material] = ()
    notes: Sequence[str] = ()


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
        "calibration.safetensors": _floats({"x": parts.calibration}),
        "golden.safetensors": _floats(golden),
    }
    story = Story(parts.definition, parts.graph, parts.lineage, parts.created, claims, parts.libraries)
    kept = {name: value for name, value in claims.items() if name in ("log_loss", "auc", "calibration")}
    return _pack(files, story, kept)


def assemble_tensors(parts: TensorParts) -> Packed:
    """The release of a tensor model.

    `BadReleaseError` when the graph breaks the policy or is not what the definition says, when rows do not fit it,
    when an answer is no number, or when a row is answered otherwise alone than among others: a server joins rows of
    different callers in one run.
    """
    definition = check_definition(parts.definition)
    onnx_policy.check(parts.graph, signature=definition.signature())
    calibration = _fitting(definition, "calibration", parts.calibration)
    golden = _fitting(definition, "golden", parts.golden)
    labels = np.asarray(parts.golden_labels, np.float32)
    if labels.shape != (len(golden[0]),):
        raise BadReleaseError(f"golden: {len(golden[0])} rows with labels of shape {list(labels.shape)}")
    expected = _answers(definition, parts.graph, golden)
    _check_alone(definition, parts.graph, golden, expected)
    claims = evaluate.figures(definition.task, expected, labels)
    if not np.isfinite(list(claims.values())).all() or definition.gates.metric not in claims:
        raise BadReleaseError(f"golden: {definition.gates.metric} is unknown of these labels; both 0 and 1 must occur")
    files = {
        "model.onnx": parts.graph,
        "definition.json": encode_definition(definition),
        "baseline.json": _baseline(parts, definition, calibration, claims).to_bytes(),
        "calibration.safetensors": _tensors(_named("input", definition.tensors, calibration)),
        "golden.safetensors": _tensors(
            _named("input", definition.tensors, golden)
            | _named("expected", definition.outputs, expected)
            | {"label": labels}
        ),
    }
    story = Story(
        definition, parts.graph, parts.lineage, parts.created, claims, parts.libraries,
        weights=parts.weights, data=parts.data, notes=parts.notes,
    )  # fmt: skip
    return _pack(files, story, claims)


def check_parity(fitted: NDArray[Any], graph: bytes, x: NDArray[np.float32]) -> float:
    """The largest difference between the fitted model and its graph on x; `BadReleaseError` above `MAX_PARITY`."""
    worst = float(np.abs(predict_graph(graph, x) - fitted).max()) if len(x) else 0.0
    if not worst <= MAX_PARITY:
        raise BadReleaseError(f"export: the graph differs from the fitted model by {worst:.2g}, allowed {MAX_PARITY}")
    return worst


def _fitting(definition: Definition, what: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """The rows as the graph takes them: every array of the definition's shape, all of the same length."""
    if len(arrays) != len(definition.tensors):
        raise BadReleaseError(f"{what}: {len(arrays)} arrays for {len(definition.tensors)} inputs")
    for spec, array in zip(definition.tensors, arrays, strict=True):
        wanted = np.dtype(DTYPES[spec.datatype])
        if array.dtype != wanted:
            raise BadReleaseError(f"{what}: {spec.name!r} is {array.dtype}, the definition says {spec.datatype}")
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise BadReleaseError(f"{what}: {spec.name!r} has shape {list(array.shape)}, not {list(spec.shape)}")
        if wanted.kind == "f" and not np.isfinite(array).all():
            raise BadReleaseError(f"{what}: {spec.name!r} holds values that are not numbers")
    if len({len(array) for array in arrays}) != 1 or len(arrays[0]) == 0:
        raise BadReleaseError(f"{what}: {sorted({len(array) for array in arrays})} rows; all need the same, 1 or more")
    return tuple(np.ascontiguousarray(array) for array in arrays)


def _answers(definition: Definition, graph: bytes, feeds: Sequence[Array]) -> list[Array]:
    """The graph's outputs, each of the shape and datatype that the definition says, every value a number."""
    answers = run_graph(graph, feeds, BATCH_ROWS)
    for spec, answer in zip(definition.outputs, answers, strict=True):
        fits = answer.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, answer.shape, strict=True)
        )
        if not fits or len(answer) != len(feeds[0]):
            raise BadReleaseError(
                f"model.onnx: output {spec.name!r} has shape {list(answer.shape)} for {len(feeds[0])} rows, "
                f"the definition says {list(spec.shape)}"
            )
        if answer.dtype.kind == "f" and not np.isfinite(answer).all():
            raise BadReleaseError(f"model.onnx: output {spec.name!r} gives values that are not numbers")
    return answers


def _check_alone(definition: Definition, graph: bytes, golden: Sequence[Array], expected: Sequence[Array]) -> None:
    """Rows answered one by one, and a second time, give what they gave among others."""
    # Backwards: a runtime that seeds its generator anew for each session draws the same numbers in the same order.
    alone = [a[::-1] for a in run_graph(graph, [array[:ALONE_ROWS][::-1] for array in golden], 1)]
    for spec, one, many in zip(definition.outputs, alone, expected, strict=True):
        apart = float(np.abs(one.astype(np.float64) - many[:ALONE_ROWS].astype(np.float64)).max())
        if apart > definition.gates.max_output_difference:
            raise BadReleaseError(
                f"model.onnx: output {spec.name!r} of a row differs by {apart:.2g} when it is run alone, allowed "
                f"{definition.gates.max_output_difference:g}: its rows are not independent, or it draws random numbers"
            )


def _baseline(
    parts: TensorParts, definition: Definition, calibration: Sequence[Array], claims: Mapping[str, float]
) -> Baseline:
    """What derived numbers and answers usually look like. The rows have no time: nothing is known of weeks."""
    reference = _fitting(definition, "reference", parts.reference) if parts.reference else calibration
    prediction = np.array(predictions(definition, run_graph(parts.graph, reference, BATCH_ROWS)))
    rows = derived_rows(definition, reference)
    return Baseline.fit(definition, rows, prediction, np.zeros(len(rows), np.int64), claims)


def _named(prefix: str, specs: Sequence[Any], arrays: Sequence[Array]) -> dict[str, Array]:
    return {f"{prefix}.{spec.name}": array for spec, array in zip(specs, arrays, strict=True)}


def _floats(arrays: dict[str, NDArray[Any]]) -> bytes:
    return _tensors({name: np.asarray(array, np.float32) for name, array in arrays.items()})


def _tensors(arrays: dict[str, NDArray[Any]]) -> bytes:
    data: bytes = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return data


def _pack(files: dict[str, bytes], story: Story, kept: Mapping[str, float]) -> Packed:
    """The files with their papers, as a release."""
    files["card.md"] = card(story).encode()
    files["bom.json"] = bill(replace(story, files=tuple(files)))
    definition, lineage = story.definition, story.lineage
    figures = {name: round(value, 6) for name, value in kept.items()}
    config = ReleaseConfig(
        model=definition.name,
        family=lineage.recipe,
        created=story.created,
        signature=definition.signature(),
        gates=msgspec.structs.replace(definition.gates, metrics=figures),
        lineage=lineage,
    )
    return pack(files, config)
