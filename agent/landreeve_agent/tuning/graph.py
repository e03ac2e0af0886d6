"""What a graph is made of, as far as tuning asks. Pure but for parsing."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

QUANTISED_OPS = ("MatMul", "Gemm", "Conv")
_FLOAT = 1


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """Counts of a graph's nodes by what can be done to them.

    ``products`` are matrix products, ``weighted`` those whose second factor is stored in the graph, ``weight_bytes``
    the size of these factors, ``convolutions`` and ``nodes`` the counts their names say.
    """

    nodes: int = 0
    products: int = 0
    weighted: int = 0
    weight_bytes: int = 0
    convolutions: int = 0

    @property
    def quantisable(self) -> int:
        """Nodes that int8 could speed up."""
        return self.products + self.convolutions


def facts_of(model: Any) -> GraphFacts:
    """The facts of an ONNX model."""
    counts = Counter(node.op_type for node in model.graph.node)
    sizes = {tensor.name: _bytes(tensor) for tensor in model.graph.initializer if tensor.data_type == _FLOAT}
    sizes |= {
        node.output[0]: _bytes(attribute.t)
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and attribute.t.data_type == _FLOAT
    }
    weighted = [
        sizes[node.input[1]]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in sizes
    ]
    return GraphFacts(
        nodes=len(model.graph.node),
        products=counts["MatMul"] + counts["Gemm"],
        weighted=len(weighted),
        weight_bytes=sum(weighted),
        convolutions=counts["Conv"],
    )


def quantisable(model: Any) -> list[str]:
    """The names of the nodes a recipe may quantise, in the graph's order: what a recipe's mask counts."""
    return [node.name for node in model.graph.node if node.op_type in QUANTISED_OPS]


def _bytes(tensor: Any) -> int:
    size = 4
    for axis in tensor.dims:
        size *= axis
    return size
