"""Small real releases for tests: a definition, a pipeline, an ONNX graph, calibration and golden sets in a folder."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from landreeve.release.manifest import Column, Gates, Lineage, ReleaseConfig
from landreeve_agent.serving.control import Plan, Version
from landreeve_models.definition import Definition, encode_definition
from landreeve_models.features.pipeline import Pipeline
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

WIDTH = 4
COLUMNS = (
    Column(name="hour", kind="number", unit="h", low=0, high=24),
    Column(name="wind", kind="number", unit="m/s"),
    Column(name="rain", kind="number", unit="mm", required=False),
    Column(name="carrier", kind="category"),
)
CARRIERS = ("AA", "B6", "UA")


def definition(name: str = "delay") -> Definition:
    """A model of three numbers, one of them optional, and a category."""
    return Definition(name=name, purpose="tests", columns=COLUMNS, label="late", output="probability")


def pipeline() -> Pipeline:
    """Its pipeline, carriers ranked in the order of `CARRIERS`."""
    return Pipeline(COLUMNS, {"carrier": {name: float(i) for i, name in enumerate(CARRIERS)}})


def graph(bias: float = 0.0, *, hidden: int = 16, nan: bool = False, seed: int = 7, width: int = WIDTH) -> bytes:
    """A small network; another ``bias`` gives other answers, ``nan`` gives no number at all."""
    rng = np.random.default_rng(seed)
    first = (rng.normal(size=(width, hidden)) * 0.2).astype(np.float32)
    second = (rng.normal(size=(hidden, 1)) * 0.5).astype(np.float32)
    offset = np.array([np.nan if nan else bias], np.float32)
    nodes = [
        helper.make_node("IsNaN", ["x"], ["unknown"]),
        helper.make_node("Where", ["unknown", "zero", "x"], ["filled"]),
        helper.make_node("MatMul", ["filled", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("Add", ["c", "offset"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["e"]),
        helper.make_node("Squeeze", ["e", "axes"], ["p"]),
    ]
    constants = {"w1": first, "w2": second, "offset": offset, "zero": np.zeros(1, np.float32)}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n"])],
    )
    built = helper.make_graph(nodes, "tiny", *ends, initializers)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def endless(turns: int = 40_000) -> bytes:
    """A graph whose run never ends for a row with wind above 1000; any other takes a few milliseconds (too long for the
    event loop) and answers 0.5."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["seen"], ["still"])],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("still", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("Gather", ["x", "one"], ["wind"], axis=1),
        helper.make_node("ReduceMax", ["wind"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["bad"]),
        helper.make_node("Where", ["bad", "forever", "turns"], ["count"]),
        helper.make_node("Loop", ["count", "yes", "zero"], ["end"], body=body),
        helper.make_node("Mul", ["wind", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "end"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["column"]),
        helper.make_node("Squeeze", ["column", "one"], ["p"]),
    ]
    constants = {
        "one": np.array([1], np.int64), "limit": np.float32(1000), "zero": np.zeros(1, np.float32),
        "forever": np.int64(2**62), "turns": np.int64(turns), "yes": np.bool_(True),
    }  # fmt: skip
    return _model("endless", nodes, constants)


def crashing() -> bytes:
    """A graph whose run ends its process with SIGFPE for a row with wind above 1000; any other is answered 0.5. On
    processors where the smallest integer divided by -1 is a fault: `TRAPS`."""
    nodes = [
        helper.make_node("Gather", ["x", "one"], ["wind"], axis=1),
        helper.make_node("ReduceMax", ["wind"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["bad"]),
        helper.make_node("Where", ["bad", "minus", "plus"], ["by"]),
        helper.make_node("Div", ["smallest", "by"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "zero"], ["nothing"]),
        helper.make_node("Mul", ["wind", "zero"], ["flat"]),
        helper.make_node("Add", ["flat", "nothing"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["column"]),
        helper.make_node("Squeeze", ["column", "one"], ["p"]),
    ]
    constants = {
        "one": np.array([1], np.int64), "limit": np.float32(1000), "zero": np.zeros(1, np.float32),
        "smallest": np.int32(-(2**31)), "plus": np.int32(1), "minus": np.int32(-1),
    }  # fmt: skip
    return _model("crashing", nodes, constants)


def _model(title: str, nodes: list[onnx.NodeProto], constants: Mapping[str, Any]) -> bytes:
    """The graph from ``x`` to ``p`` as a file."""
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n"])],
    )
    built = helper.make_graph(nodes, title, *ends, initializers)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


TRAPS = platform.machine().lower() in {"x86_64", "amd64", "i686"}


def answers(graph_bytes: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph says, by ONNX's own reference evaluator: another implementation than the one under test."""
    from onnx.reference import ReferenceEvaluator

    out = ReferenceEvaluator(onnx.load_model_from_string(graph_bytes)).run(None, {"x": x})
    return np.asarray(out[0], np.float32)


def rows(n: int, seed: int = 3) -> NDArray[np.float32]:
    """Plausible encoded rows, float32 (n, WIDTH)."""
    rng = np.random.default_rng(seed)
    columns = [rng.uniform(0, 24, n), rng.gamma(2, 3, n), rng.exponential(1, n), rng.integers(0, 3, n)]
    return np.stack(columns, axis=1).astype(np.float32)


def write_release(
    folder: Path, bias: float = 0.0, *, nan: bool = False, gates: Gates | None = None, hidden: int = 16
) -> Path:
    """A release folder as the agent materialises it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = graph(bias, nan=nan, hidden=hidden)
    x = rows(400)
    expected = answers(graph(bias, hidden=hidden), x)
    label = (np.random.default_rng(5).random(len(x)) < expected).astype(np.float32)
    config = ReleaseConfig(
        model="delay",
        family="mlp",
        created="2026-01-01T00:00:00Z",
        signature=definition().signature(),
        gates=gates or Gates(),
        lineage=Lineage(),
    )
    (folder / "model.onnx").write_bytes(model)
    (folder / "definition.json").write_bytes(encode_definition(definition()))
    (folder / "features.json").write_bytes(pipeline().to_bytes())
    (folder / "config.json").write_bytes(msgspec.json.encode({"landreeve": config}))
    save_file({"x": rows(128, seed=9)}, folder / "calibration.safetensors")
    save_file({"x": x, "expected": expected, "label": label}, folder / "golden.safetensors")
    return folder


def version(folder: Path, name: str = "1.0.0", plan: Plan | None = None, model: str = "delay") -> Version:
    """The folder as a version of the model."""
    return Version(model, name, (name.replace(".", "") * 64)[:64], str(folder), plan or Plan())


def body(**changes: object) -> dict[str, object]:
    """A correct one-row request; ``changes`` replace members."""
    inputs = [
        {"name": "hour", "datatype": "FP64", "shape": [1], "data": [9.5]},
        {"name": "wind", "datatype": "FP64", "shape": [1], "data": [4.0]},
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["UA"]},
    ]
    return {"id": "r1", "parameters": {"at": "2026-01-31T09:30:00Z"}, "inputs": inputs} | changes
