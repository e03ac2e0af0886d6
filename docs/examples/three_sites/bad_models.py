"""Two ways to spoil a release folder, as they happen to people: damaged weights, and a model that got worse."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file


def damage(folder: Path) -> None:
    """Overwrite a part of the largest weights, as a bad disk would; golden outputs and claims stay."""
    model = onnx.load(folder / "model.onnx")
    noise = np.random.default_rng(5)
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    if floats:
        largest = max(floats, key=lambda t: int(np.prod(t.dims)))
        weights = numpy_helper.to_array(largest).copy()
        weights.ravel()[: max(1, weights.size // 3)] = noise.normal(0, 3, max(1, weights.size // 3))
        largest.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), largest.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("nodes_values", "target_weights", "leaf_weights") and len(attribute.floats):
                values = np.array(attribute.floats)
                count = max(1, values.size // 3)
                values[:count] = values[:count] * 4 + noise.normal(0, 1, count)
                del attribute.floats[:]
                attribute.floats.extend(values.astype(np.float32).tolist())
    onnx.save(model, folder / "model.onnx")


def worsen(folder: Path) -> None:
    """A model fitted to the wrong label: consistent in itself, its golden outputs made by itself, and worse."""
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    old = graph.output[0].name
    inner = f"{old}_before"
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = inner
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = inner
    graph.initializer.append(numpy_helper.from_array(np.float32(-0.7), "worse_slope"))
    graph.initializer.append(numpy_helper.from_array(np.float32(0.85), "worse_offset"))
    graph.node.append(helper.make_node("Mul", [inner, "worse_slope"], ["worse_scaled"]))
    graph.node.append(helper.make_node("Add", ["worse_scaled", "worse_offset"], [old]))
    onnx.save(model, folder / "model.onnx")
    golden = load_file(folder / "golden.safetensors")
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    golden["expected"] = session.run(None, {session.get_inputs()[0].name: golden["x"]})[0].astype(np.float32)
    save_file(golden, folder / "golden.safetensors")
