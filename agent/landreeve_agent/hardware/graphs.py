"""Makes the two ONNX files beside it, ``tiny.onnx`` and ``matmul.onnx``: ``python -m landreeve_agent.hardware.graphs``.

They are shipped, so that proving a device needs no onnx package; a test holds that they are what this file makes.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

from landreeve_agent.hardware import tiny

TINY, MATMUL = Path(__file__).with_name("tiny.onnx"), Path(__file__).with_name("matmul.onnx")
# Old enough for any runtime in use; the operators mean the same in later ones.
_OPSET, _IR = 13, 8
SIZE, PRODUCTS = 512, 8


def tiny_graph() -> bytes:
    """The tiny model: (1, 3, 16, 16) to (1, 4)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", [tiny.INPUT, "kernels"], ["convolved"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["convolved"], ["bent"]),
        helper.make_node("GlobalAveragePool", ["bent"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], [tiny.OUTPUT]),
    ]
    weights = [
        numpy_helper.from_array(tiny.kernels(), "kernels"), numpy_helper.from_array(tiny.matrix(), "matrix"),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(tiny.INPUT, TensorProto.FLOAT, list(tiny.SHAPE))]
    outputs = [helper.make_tensor_value_info(tiny.OUTPUT, TensorProto.FLOAT, [1, 4])]
    return _model(helper.make_graph(nodes, "tiny", inputs, outputs, weights))


def matmul_graph() -> bytes:
    """Eight products of square matrices (512) in a row, 2.1 billion operations: two such matrices to the largest value
    of each row, so that little has to be copied back."""
    from onnx import TensorProto, helper

    names = ["a", *(f"p{n}" for n in range(PRODUCTS))]
    nodes = [helper.make_node("MatMul", [before, "b"], [after]) for before, after in pairwise(names)]
    nodes.append(helper.make_node("ReduceMax", [names[-1]], ["y"], axes=[1], keepdims=0))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE, SIZE]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE])]
    return _model(helper.make_graph(nodes, "matmul", inputs, outputs))


def _model(graph: Any) -> bytes:
    from onnx import checker, helper

    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="landreeve", ir_version=_IR
    )
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def main() -> None:
    """Write both files."""
    TINY.write_bytes(tiny_graph())
    MATMUL.write_bytes(matmul_graph())


if __name__ == "__main__":
    main()
