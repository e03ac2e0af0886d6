"""Two readers of one graph must agree: what the scan of bytes lets through, protobuf finds nothing forbidden in."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.release import onnx_wire
from landreeve.release.manifest import BadReleaseError
from landreeve_models import onnx_policy
from onnx import TensorProto, helper, numpy_helper

FORBIDDEN = ("lies outside", "domain", "opset", "local functions", "training graphs", "nested deeper", "more than")


def model(**more: Any) -> onnx.ModelProto:
    """x (n, 2) times weights and a branch: initializers, attributes that are tensors, graphs within graphs."""
    weights = numpy_helper.from_array(np.ones((2, 1), np.float32), "w")
    typed = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    value = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])
    constant = helper.make_node("Constant", [], ["c"], value=value)
    branch = helper.make_graph([constant], "then", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("If", ["b"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Squeeze", ["y", "axes"], ["p"], **more),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    p = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "g", [x], [p], [weights, typed])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


WHOLE = model().SerializeToString()
# What an attacker would splice in: external data, a location, a foreign domain, functions, another graph.
SPLICES = [
    b"\x6a\x04\x0a\x02ab", b"\x70\x01", b"\x3a\x01e", b"\x3a\x08com.evil", b"\xca\x01\x00", b"\xa2\x01\x00",
    b"\x3a\x00", b"\x42\x05\x0a\x01e\x10\x01", b"\x0b\x0c", b"\xff" * 9 + b"\x01", b"\x2a\x00",
]  # fmt: skip


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 6))] = draw(st.sampled_from(SPLICES) | st.binary(max_size=6))
        data = data or bytearray(b"\0")
    return bytes(data)


@given(spliced())
@settings(max_examples=300, deadline=None)
def test_what_the_scan_lets_through_protobuf_finds_nothing_forbidden_in(data: bytes) -> None:
    try:
        onnx_wire.check_graph(data)
    except BadReleaseError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_policy, "check_graph", lambda _: None)
        try:
            onnx_policy.check(data)
        except BadReleaseError as error:
            found = str(error)
        else:
            found = ""
    assert not any(words in found for words in FORBIDDEN), found


def test_graphs_of_the_onnx_package_pass_whatever_their_tensors_hold() -> None:
    onnx_wire.check_graph(WHOLE)
    kinds = {
        TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16,
        TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8, TensorProto.INT16: np.int16,
        TensorProto.INT32: np.int32, TensorProto.INT64: np.int64, TensorProto.UINT32: np.uint32,
        TensorProto.UINT64: np.uint64, TensorProto.BOOL: np.bool_, TensorProto.COMPLEX64: np.complex64,
        TensorProto.COMPLEX128: np.complex128,
    }  # fmt: skip
    for kind, dtype in kinds.items():
        for shape in ((3,), (2, 5), (), (0,)):
            array = np.arange(int(np.prod(shape)), dtype=np.int64).astype(dtype).reshape(shape)
            raw, typed = numpy_helper.from_array(array, "t"), helper.make_tensor("t", kind, shape, array.flatten())
            for tensor in (raw, typed):
                whole = model()
                whole.graph.initializer.append(tensor)
                onnx_wire.check_graph(whole.SerializeToString())
    words = model()
    words.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]))
    onnx_wire.check_graph(words.SerializeToString())
    for kind in (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.UINT4):
        small = model()
        small.graph.initializer.append(helper.make_tensor("q", kind, [5], [1.0, 0.0, 1.0, 0.0, 1.0]))
        onnx_wire.check_graph(small.SerializeToString())
