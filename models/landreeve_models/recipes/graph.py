"""ONNX graphs written node by node: the same weights always give the same bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from landreeve_models.recipes.contract import Floats

OPSETS = {"": 17, "ai.onnx.ml": 3}
_IR_VERSION = 9


def dense(mean: Floats, scale: Floats, layers: Sequence[tuple[Floats, Floats]], clip: float) -> bytes:
    """Impute, indicate, standardise, clip, then dense layers with ReLU between and a sigmoid at the end."""
    stored = {"mean": mean, "scale": scale, "low": np.float32(-clip), "high": np.float32(clip)}
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "mean", "x"], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["missing"], ["indicators"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["clipped", "indicators"], ["h0"], axis=1),
    ]
    for i, (weight, bias) in enumerate(layers):
        stored |= {f"w{i}": np.ascontiguousarray(weight.T), f"b{i}": bias}
        last = i == len(layers) - 1
        nodes.append(helper.make_node("Gemm", [f"h{i}", f"w{i}", f"b{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"z{i}"], [f"h{i + 1}"]))
    stored["column"] = np.array([1], dtype=np.int64)
    nodes.append(helper.make_node("Squeeze", [f"h{len(layers)}", "column"], ["probability"]))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    return _serialise(nodes, initializers, len(mean))


@dataclass(frozen=True, slots=True)
class Tree:
    """One regression tree as arrays over its nodes, node 0 the root: a row goes ``left`` when its ``feature`` is at
    most ``threshold``, an unknown value when ``missing_left``; a ``leaf`` adds ``value``."""

    feature: NDArray[np.int64]
    threshold: Floats
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.int64]
    leaf: NDArray[np.bool_]
    value: Floats


def trees(ensemble: Sequence[Tree], base: float, width: int) -> bytes:
    """The sigmoid of a base value plus the sum of regression trees."""
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor",
            ["x"],
            ["logit"],
            domain="ai.onnx.ml",
            n_targets=1,
            base_values=[base],
            **_tables(ensemble),
        ),
        helper.make_node("Sigmoid", ["logit"], ["positive"]),
        helper.make_node("Squeeze", ["positive", "column"], ["probability"]),
    ]
    column = numpy_helper.from_array(np.array([1], dtype=np.int64), "column")
    return _serialise(nodes, [column], width)


def _tables(ensemble: Sequence[Tree]) -> dict[str, Any]:
    """The attribute tables of TreeEnsembleRegressor (ONNX-ML operators, version 3)."""
    sizes = [len(tree.leaf) for tree in ensemble]
    tree_ids, node_ids = np.repeat(np.arange(len(ensemble)), sizes), np.concatenate([np.arange(n) for n in sizes])
    leaf = np.concatenate([tree.leaf for tree in ensemble])

    def inner(name: str, outside: float) -> list[Any]:
        values: list[Any] = np.where(leaf, outside, np.concatenate([getattr(t, name) for t in ensemble])).tolist()
        return values

    return {
        "nodes_treeids": tree_ids.tolist(),
        "nodes_nodeids": node_ids.tolist(),
        "nodes_modes": ["LEAF" if is_leaf else "BRANCH_LEQ" for is_leaf in leaf],
        "nodes_featureids": inner("feature", 0),
        "nodes_values": inner("threshold", 0.0),
        "nodes_truenodeids": inner("left", 0),
        "nodes_falsenodeids": inner("right", 0),
        "nodes_missing_value_tracks_true": inner("missing_left", 0),
        "target_treeids": tree_ids[leaf].tolist(),
        "target_nodeids": node_ids[leaf].tolist(),
        "target_ids": [0] * int(leaf.sum()),
        "target_weights": np.concatenate([tree.value for tree in ensemble])[leaf].tolist(),
    }


def _serialise(nodes: list[Any], initializers: list[Any], width: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])],
        initializers,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="landreeve", ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
