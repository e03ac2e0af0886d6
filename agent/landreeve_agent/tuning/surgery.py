"""Gives nodes of a quantised graph their full precision back.

A quantiser rewires a node's inputs through pairs of QuantizeLinear and DequantizeLinear (and scales that smooth
outliers). Wired to the original's inputs again, the node is what it was, and everything else stays as it was
calibrated: no second calibration is needed to leave a layer out.
"""

from collections.abc import Collection
from typing import Any


def restore(quantised: Any, original: Any, kept: Collection[str]) -> None:
    """Take the named nodes of the ONNX model ``quantised`` back to what they are in ``original``, in place.

    `ValueError` when the quantiser has renamed what such a node reads.
    """
    stored = {tensor.name: tensor for tensor in original.graph.initializer}
    before = {node.name: node for node in original.graph.node if node.name in kept}
    here = {output for node in quantised.graph.node for output in node.output}
    here |= {value.name for value in quantised.graph.input} | {t.name for t in quantised.graph.initializer} | {""}
    for node in quantised.graph.node:
        if node.name not in before:
            continue
        for name in before[node.name].input:
            if name in here:
                continue
            if name not in stored:
                raise ValueError(f"node {node.name!r} reads {name!r}, which the quantised graph no longer has")
            quantised.graph.initializer.append(stored[name])
            here.add(name)
        del node.input[:]
        node.input.extend(before[node.name].input)
    _restore_biases(quantised, stored, before)
    prune(quantised)


def _restore_biases(quantised: Any, stored: dict[str, Any], kept: Collection[str]) -> None:
    """A quantiser may move the bias added to a node's output to make up for the node's error: it has none now."""
    answers = {output for node in quantised.graph.node if node.name in kept for output in node.output}
    added = {
        name
        for node in quantised.graph.node
        if node.op_type == "Add" and answers & set(node.input)
        for name in node.input
    }
    for tensor in quantised.graph.initializer:
        if tensor.name in added and tensor.name in stored:
            tensor.CopyFrom(stored[tensor.name])


def prune(model: Any) -> None:
    """Remove nodes and stored tensors that nothing uses, in place."""
    graph = model.graph
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        dead = [node for node in graph.node if not any(output in used for output in node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
