"""A picture classifier that takes pixels as they are: colour scaling and axis order become part of its graph.

Callers then send a quarter of the bytes (uint8 for float32), and cannot scale them by other numbers than those the
network was trained with.
"""

from typing import Any

import numpy as np
import onnx
from landreeve.release.manifest import BadReleaseError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def take_pixels(
    graph: bytes, mean: NDArray[np.float32], deviation: NDArray[np.float32], *, image: str, output: str
) -> bytes:
    """The graph with input ``image`` uint8 (rows, height, width, 3) and its one output renamed ``output``.

    The given graph takes float32 (n, 3, height, width) of (pixel / 255 - mean) / deviation by channel.
    `BadReleaseError` when it does not.
    """
    model = onnx.load_model_from_string(graph)
    given, height, width = _picture(model.graph)
    answer = model.graph.output[0].name
    _rename(model.graph, answer, output)
    scale = (1 / (255 * deviation)).astype(np.float32).reshape(1, 3, 1, 1)
    shift = (-mean / deviation).astype(np.float32).reshape(1, 3, 1, 1)
    front = [
        helper.make_node("Transpose", [image], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["channels_first"], ["raw"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["raw", "pixel_scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "pixel_shift"], [given]),
    ]
    nodes = [*front, *model.graph.node]
    stored = [
        *model.graph.initializer,
        numpy_helper.from_array(scale, "pixel_scale"),
        numpy_helper.from_array(shift, "pixel_shift"),
    ]
    ends = (
        [helper.make_tensor_value_info(image, TensorProto.UINT8, ["rows", height, width, 3])],
        [_rows_first(model.graph.output[0])],
    )
    whole = helper.make_graph(nodes, "pictures", *ends, stored)
    opsets = [helper.make_opsetid(opset.domain, opset.version) for opset in model.opset_import]
    made = helper.make_model(whole, opset_imports=opsets, producer_name="landreeve", ir_version=model.ir_version)
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def _picture(graph: Any) -> tuple[str, int, int]:
    """The name, height and width of the graph's one input."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise BadReleaseError(
            f"picture graph: {len(inputs)} inputs and {len(graph.output)} outputs; one of each needed"
        )
    axes = [axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim]
    if len(axes) != 4 or axes[1] != 3 or min(axes[2:]) < 1:
        raise BadReleaseError(f"picture graph: input has shape {axes}; needs (rows, 3, height, width), fixed size")
    return inputs[0].name, axes[2], axes[3]


def _rows_first(value: Any) -> Any:
    """The output with its first axis called rows."""
    axes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, ["rows", *axes[1:]])


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    graph.output[0].name = new
