"""Small real releases of tensor models for tests: a picture classifier and a text encoder, built in a blink.

``image_release(folder)``, ``text_release(folder)`` and ``series_release(folder)`` write a whole release folder as the
agent materialises it. Their golden figures are real: the classifier's last layer is fitted, the encoder's random
vectors keep texts of one topic together, the detector scores distance from what is usual.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from landreeve.release.layout import write_folder
from landreeve.release.manifest import Gates, Lineage, TensorSpec
from landreeve_models.assemble import TensorParts, assemble_tensors
from landreeve_models.definition import Definition
from landreeve_models.inference import run_graph
from landreeve_models.recipes.transformer import Shape, encoder
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CREATED = "2026-01-01T00:00:00Z"
SIDE, CLASSES = 32, 4
TOKENS, VOCABULARY, HIDDEN, TOPICS = 24, 240, 32, 6
STEPS, CHANNELS = 24, 3


def image_definition(name: str = "corner") -> Definition:
    """Which quarter of a small picture is the brightest: FP32 (rows, 3, 32, 32) to scores (rows, 4)."""
    return Definition(
        name=name,
        purpose="Which corner of a picture is the brightest",
        label="corner",
        task="classification",
        tensors=(TensorSpec(name="image", datatype="FP32", shape=(-1, 3, SIDE, SIDE)),),
        outputs=(TensorSpec(name="scores", datatype="FP32", shape=(-1, CLASSES)),),
        gates=Gates(metric="accuracy", max_metric_loss=0.01),
    )


def images(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Noise with one brighter quarter, and which one it is."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (rows, 3, SIDE, SIDE)).astype(np.float32)
    corner = random.integers(0, CLASSES, rows)
    half = SIDE // 2
    for picture, where in zip(x, corner, strict=True):
        top, left = (where // 2) * half, (where % 2) * half
        picture[:, top : top + half, left : left + half] += random.uniform(0.03, 0.4)
    return x, corner.astype(np.float32)


def image_graph(seed: int = 7, channels: int = 16) -> bytes:
    """Two convolutions drawn from a seed, pooled, under a linear layer fitted by least squares."""
    random = np.random.default_rng(seed)
    first = random.normal(0, 0.3, (channels, 3, 3, 3)).astype(np.float32)
    second = random.normal(0, 0.1, (channels, channels, 3, 3)).astype(np.float32)
    width = channels * 16
    features = _image_graph(first, second, np.eye(width, dtype=np.float32), np.zeros(width, np.float32))
    x, label = images(400, seed)
    seen = np.concatenate([run_graph(features, [x])[0], np.ones((len(x), 1), np.float32)], axis=1).astype(np.float64)
    wanted = np.eye(CLASSES)[label.astype(int)]
    fitted = np.linalg.solve(seen.T @ seen + 0.1 * len(x) * np.eye(width + 1), seen.T @ wanted).astype(np.float32)
    return _image_graph(first, second, fitted[:-1], fitted[-1])


def _image_graph(first: Any, second: Any, weight: Any, bias: Any) -> bytes:
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("AveragePool", ["d"], ["e"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["e"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "weight", "bias"], ["scores"]),
    ]
    stored = {"first": first, "second": second, "weight": weight, "bias": bias}
    return _model(
        nodes,
        stored,
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 3, SIDE, SIDE]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", len(bias)]),
    )


def image_release(folder: Path, name: str = "corner", seed: int = 7, gates: Gates | None = None) -> Path:
    """A picture classifier; another ``seed`` gives other weights."""
    x, label = images(200, 1)
    definition = image_definition(name)
    rows = ((images(64, 2)[0],), (x,), label)
    return _write(folder, definition, image_graph(seed), rows, gates)


def text_definition(name: str = "notes") -> Definition:
    """A sentence's vector: INT64 (rows, tokens) twice to FP32 (rows, 32)."""
    ids = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))
    return Definition(
        name=name,
        purpose="What a short text is about",
        label="topic",
        task="embedding",
        tensors=ids,
        outputs=(TensorSpec(name="embedding", datatype="FP32", shape=(-1, HIDDEN)),),
        gates=Gates(metric="neighbours", max_metric_loss=0.02),
    )


def texts(rows: int, seed: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]:
    """Token numbers and mask of texts whose words come mostly from their topic's own, and the topics."""
    random = np.random.default_rng(seed)
    topic = random.integers(0, TOPICS, rows)
    own = random.integers(0, VOCABULARY // TOPICS, (rows, TOKENS)) + (topic * (VOCABULARY // TOPICS))[:, None]
    ids = np.where(random.random((rows, TOKENS)) < 0.7, own, random.integers(0, VOCABULARY, (rows, TOKENS)))
    mask = np.arange(TOKENS) < random.integers(6, TOKENS + 1, rows)[:, None]
    return ((ids * mask).astype(np.int64), mask.astype(np.int64)), topic.astype(np.float32)


def text_weights(seed: int = 7, layers: int = 2) -> dict[str, NDArray[np.float32]]:
    """Random weights of an encoder, named as BERT's are; words of one topic point the same way."""
    random = np.random.default_rng(seed)
    ways = np.repeat(random.normal(0, 0.5, (TOPICS, HIDDEN)), VOCABULARY // TOPICS, axis=0)
    weights: dict[str, Any] = {
        "embeddings.word_embeddings.weight": ways + random.normal(0, 1, (VOCABULARY, HIDDEN)),
        "embeddings.position_embeddings.weight": random.normal(0, 0.1, (64, HIDDEN)),
        "embeddings.token_type_embeddings.weight": random.normal(0, 0.1, (2, HIDDEN)),
    }
    wide = 4 * HIDDEN
    for name in (f"encoder.layer.{layer}" for layer in range(layers)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            weights[f"{name}.attention.{part}.weight"] = random.normal(0, HIDDEN**-0.5, (HIDDEN, HIDDEN))
            weights[f"{name}.attention.{part}.bias"] = random.normal(0, 0.02, HIDDEN)
        weights[f"{name}.intermediate.dense.weight"] = random.normal(0, HIDDEN**-0.5, (wide, HIDDEN))
        weights[f"{name}.intermediate.dense.bias"] = random.normal(0, 0.02, wide)
        weights[f"{name}.output.dense.weight"] = random.normal(0, 0.5 * wide**-0.5, (HIDDEN, wide))
        weights[f"{name}.output.dense.bias"] = random.normal(0, 0.02, HIDDEN)
        for part in ("attention.output", "output"):
            weights |= _norm(f"{name}.{part}", random)
    weights |= _norm("embeddings", random)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def _norm(name: str, random: np.random.Generator) -> dict[str, Any]:
    return {
        f"{name}.LayerNorm.weight": random.uniform(0.8, 1.2, HIDDEN),
        f"{name}.LayerNorm.bias": random.normal(0, 0.02, HIDDEN),
    }


def text_release(folder: Path, name: str = "notes", seed: int = 7, gates: Gates | None = None) -> Path:
    """A text encoder of two layers; another ``seed`` gives other weights."""
    golden, topic = texts(160, 1)
    graph = encoder(text_weights(seed), Shape(heads=4))
    return _write(folder, text_definition(name), graph, (texts(64, 2)[0], golden, topic), gates)


def series_definition(name: str = "meter") -> Definition:
    """How unusual a day of three readings an hour is: FP32 (rows, 24, 3) to a score (rows,)."""
    return Definition(
        name=name,
        purpose="How unusual a day of readings is",
        label="fault",
        task="anomaly",
        output="score",
        output_unit="",
        tensors=(TensorSpec(name="window", datatype="FP32", shape=(-1, STEPS, CHANNELS)),),
        outputs=(TensorSpec(name="score", datatype="FP32", shape=(-1,)),),
        gates=Gates(metric="auc", max_metric_loss=0.01),
    )


def series(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Days of a daily wave with noise; in a third of them one reading stands still for some hours."""
    random = np.random.default_rng(seed)
    hour = np.arange(STEPS) / STEPS * 2 * np.pi
    wave = np.stack([np.sin(hour), np.cos(hour), np.sin(2 * hour)], axis=1)
    x = (wave + random.normal(0, 0.15, (rows, STEPS, CHANNELS))).astype(np.float32)
    fault = random.random(rows) < 1 / 3
    for i in np.flatnonzero(fault):
        first, channel = int(random.integers(0, STEPS - 6)), int(random.integers(0, CHANNELS))
        x[i, first : first + 6, channel] = x[i, first, channel] + random.uniform(-0.4, 0.4)
    return x, fault.astype(np.float32)


def series_release(folder: Path, name: str = "meter", gates: Gates | None = None) -> Path:
    """The mean squared distance of a day from the mean day."""
    usual = series(400, 3)
    mean = usual[0][usual[1] == 0].mean(axis=0)
    nodes = [
        helper.make_node("Sub", ["window", "mean"], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["score"], axes=[1, 2], keepdims=0),
    ]
    graph = _model(
        nodes,
        {"mean": mean},
        helper.make_tensor_value_info("window", TensorProto.FLOAT, ["rows", STEPS, CHANNELS]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"]),
    )
    golden, fault = series(200, 1)
    return _write(folder, series_definition(name), graph, ((series(64, 2)[0],), (golden,), fault), gates)


def _model(nodes: list[Any], stored: dict[str, Any], given: Any, answer: Any) -> bytes:
    initializers = [numpy_helper.from_array(np.ascontiguousarray(v, np.float32), name) for name, v in stored.items()]
    graph = helper.make_graph(nodes, "tiny", [given], [answer], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


Rows = tuple[tuple[NDArray[Any], ...], tuple[NDArray[Any], ...], NDArray[np.float32]]


def _write(folder: Path, definition: Definition, graph: bytes, rows: Rows, gates: Gates | None) -> Path:
    """``rows`` are the calibration sample, the golden inputs and their labels."""
    parts = TensorParts(
        definition=msgspec.structs.replace(definition, gates=gates or definition.gates),
        graph=graph,
        calibration=rows[0],
        golden=rows[1],
        golden_labels=rows[2],
        lineage=Lineage(recipe="test", run=definition.name),
        created=CREATED,
    )
    write_folder(assemble_tensors(parts), folder)
    return folder
