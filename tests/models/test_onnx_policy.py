"""Which graphs are refused, named after what an attacker would try."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.manifest import BadReleaseError
from landreeve_models import onnx_policy
from landreeve_models.recipes.graph import dense
from onnx import helper, numpy_helper

ONES = np.ones(3, dtype=np.float32)
GOOD = dense(ONES, ONES, ((np.ones((1, 6), dtype=np.float32), np.zeros(1, dtype=np.float32)),), 6.0)


def changed(change: Callable[[Any], object]) -> bytes:
    model = onnx.load_model_from_string(GOOD)
    change(model)
    data: bytes = model.SerializeToString()
    return data


def outside(tensor: Any) -> None:
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="/etc/passwd")


def nested(depth: int) -> Any:
    tensor = numpy_helper.from_array(ONES, "inner")
    if depth == 0:
        outside(tensor)
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("c", 1, [3])])
    for level in range(depth):
        branch = helper.make_node("If", ["b"], [f"o{level}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([branch], "g", [], [helper.make_tensor_value_info(f"o{level}", 1, [3])])
    return helper.make_node("If", ["b"], ["o"], then_branch=graph, else_branch=graph)


def test_graph_of_a_recipe_is_accepted() -> None:
    onnx_policy.check(GOOD, width=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: outside(m.graph.initializer[0]), "outside the file"),
        (lambda m: m.graph.node.append(nested(0)), "outside the file"),
        (lambda m: m.graph.node.append(nested(9)), "nested deeper"),
        (lambda m: m.graph.node.append(helper.make_node("Run", [], ["o"], domain="com.evil")), "com.evil"),
        (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1)), "ai.onnx.contrib"),
        (lambda m: m.opset_import.append(helper.make_opsetid("", 999)), "opset 999"),
        (lambda m: m.functions.add(name="f", domain="d"), "local functions"),
        (lambda m: m.training_info.add(), "training"),
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("y", 1, [1])), "exactly one input"),
        (lambda m: setattr(m.graph.input[0], "name", "z"), "exactly one input"),
        (lambda m: m.graph.output.append(helper.make_tensor_value_info("q", 1, [1])), "exactly one output"),
        (lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 11, ["n", 3])), "float32"),
        (lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, ["n", 4])), "width 4"),
        (lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, ["n", "w"])), "width 0"),
        (lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("p", 1, ["n", 2])), "one output"),
        (lambda m: m.graph.ClearField("node"), "no node"),
    ],
)
def test_graph_that_could_do_harm_is_refused_with_its_reason(change: Callable[[Any], object], said: str) -> None:
    with pytest.raises(BadReleaseError, match=said):
        onnx_policy.check(changed(change), width=3)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(BadReleaseError):
        onnx_policy.check(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_one_damaged_byte_is_refused_or_keeps_the_policy(place: int, flip: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= flip
    try:
        onnx_policy.check(bytes(data), width=3)
    except BadReleaseError as error:
        assert str(error).startswith("model.onnx")  # noqa: PT017 - both ends are right; only the kind of error matters
