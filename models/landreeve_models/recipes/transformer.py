"""A sentence encoder's graph, written node by node from its weights.

The network is the encoder of BERT (Devlin et al. 2019, arXiv 1810.04805) with post-layer normalisation, the mean of
its tokens' vectors and a length of one (Reimers & Gurevych 2019, arXiv 1908.10084). Exporting it here instead of
tracing a library's module keeps that library out of the build, and gives the same bytes for the same weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from landreeve_models.recipes.contract import Floats

OPSET = 17  # the first with LayerNormalization
_IR_VERSION = 9
# Added to the attention of padding: its share then is exactly 0, and half precision still holds the number.
_MASKED = -10000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What the weights do not tell: attention heads, and the layer norm's epsilon."""

    heads: int
    epsilon: float = 1e-12


class BadWeightsError(ValueError):
    """Weights that are no such encoder's; the text names the tensor."""


def encoder(weights: Mapping[str, NDArray[Any]], shape: Shape) -> bytes:
    """The graph, opset 17, of weights named as BERT's are (``embeddings.word_embeddings.weight``, …, float32).

    ``input_ids`` and ``attention_mask`` INT64 (rows, tokens) in, up to as many tokens as there are positions;
    ``embedding`` float32 (rows, hidden) of length one out. A row that masks every token is answered with zeros.
    """
    graph = _Graph(weights, shape)
    hidden = graph.embed()
    mask = graph.attention_mask()
    layers = sum(1 for name in weights if name.endswith("attention.self.query.weight"))
    if not layers:
        raise BadWeightsError("weights: no encoder.layer.0.attention.self.query.weight; is this a BERT encoder?")
    for layer in range(layers):
        hidden = graph.layer(f"encoder.layer.{layer}", hidden, mask)
    graph.pool(hidden)
    return graph.serialise()


@dataclass(slots=True)
class _Graph:
    """A graph being written; each method adds nodes and returns the name of their result."""

    weights: Mapping[str, NDArray[Any]]
    shape: Shape
    nodes: list[Any] = field(default_factory=list)
    stored: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return int(self.weight("embeddings.word_embeddings.weight").shape[1])

    def weight(self, name: str) -> Floats:
        if name not in self.weights:
            raise BadWeightsError(f"weights: tensor {name!r} is missing; is this a BERT encoder?")
        return np.ascontiguousarray(self.weights[name], np.float32)

    def add(self, operator: str, inputs: list[str], result: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [result], name=result, **attributes))
        return result

    def store(self, name: str, value: Any) -> str:
        self.stored[name] = np.ascontiguousarray(value)
        return name

    def embed(self) -> str:
        """Word, position and token type 0, added up and normalised."""
        word = self.store("words", self.weight("embeddings.word_embeddings.weight"))
        place = self.weight("embeddings.position_embeddings.weight")
        kind = self.weight("embeddings.token_type_embeddings.weight")
        positions = self.store("positions", place + kind[:1])
        found = self.add("Gather", [word, "input_ids"], "word_vectors")
        self.add("Shape", ["input_ids"], "tokens", start=1, end=2)
        self.store("zero", np.array([0], np.int64))
        used = self.add("Slice", [positions, "zero", "tokens", "zero"], "position_vectors")
        total = self.add("Add", [found, used], "embedded")
        return self.normalise("embeddings.LayerNorm", total)

    def attention_mask(self) -> str:
        """float32 (rows, 1, 1, tokens): 0 for a token, far below it for padding."""
        self.add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        self.store("inner_axes", np.array([1, 2], np.int64))
        self.add("Unsqueeze", ["mask", "inner_axes"], "mask_of_heads")
        self.store("one", np.float32(1))
        self.store("masked", np.float32(_MASKED))
        self.add("Sub", ["one", "mask_of_heads"], "padding")
        return self.add("Mul", ["padding", "masked"], "padding_bias")

    def layer(self, name: str, hidden: str, mask: str) -> str:
        """Self-attention, then two dense layers with GELU, each added to its input and normalised."""
        attended = self.attention(f"{name}.attention", hidden, mask)
        inner = self.gelu(self.dense(f"{name}.intermediate.dense", attended))
        outer = self.dense(f"{name}.output.dense", inner)
        return self.normalise(f"{name}.output.LayerNorm", self.add("Add", [outer, attended], f"{name}.sum"))

    def attention(self, name: str, hidden: str, mask: str) -> str:
        query = self.heads(f"{name}.self.query", hidden, [0, 2, 1, 3])
        key = self.heads(f"{name}.self.key", hidden, [0, 2, 3, 1])
        value = self.heads(f"{name}.self.value", hidden, [0, 2, 1, 3])
        self.store("scale", np.float32(np.sqrt(self.width // self.shape.heads)))
        scores = self.add("MatMul", [query, key], f"{name}.scores")
        scaled = self.add("Div", [scores, "scale"], f"{name}.scaled")
        biased = self.add("Add", [scaled, mask], f"{name}.biased")
        shares = self.add("Softmax", [biased], f"{name}.shares", axis=-1)
        mixed = self.add("MatMul", [shares, value], f"{name}.mixed")
        joined = self.add("Transpose", [mixed], f"{name}.joined", perm=[0, 2, 1, 3])
        self.store("whole", np.array([0, 0, self.width], np.int64))
        flat = self.add("Reshape", [joined, "whole"], f"{name}.flat")
        out = self.dense(f"{name}.output.dense", flat)
        return self.normalise(f"{name}.output.LayerNorm", self.add("Add", [out, hidden], f"{name}.sum"))

    def heads(self, name: str, hidden: str, order: list[int]) -> str:
        dense = self.dense(name, hidden)
        self.store("split", np.array([0, 0, self.shape.heads, self.width // self.shape.heads], np.int64))
        split = self.add("Reshape", [dense, "split"], f"{name}.split")
        return self.add("Transpose", [split], f"{name}.heads", perm=order)

    def dense(self, name: str, hidden: str) -> str:
        weight = self.store(f"{name}.weight", self.weight(f"{name}.weight").T)
        bias = self.store(f"{name}.bias", self.weight(f"{name}.bias"))
        product = self.add("MatMul", [hidden, weight], f"{name}.product")
        return self.add("Add", [product, bias], f"{name}.out")

    def gelu(self, x: str) -> str:
        """GELU by the error function: x · ½ (1 + erf(x / √2)) (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
        self.store("root_two", np.float32(np.sqrt(2)))
        self.store("half", np.float32(0.5))
        divided = self.add("Div", [x, "root_two"], f"{x}.divided")
        erf = self.add("Erf", [divided], f"{x}.erf")
        more = self.add("Add", [erf, "one"], f"{x}.more")
        product = self.add("Mul", [x, more], f"{x}.times")
        return self.add("Mul", [product, "half"], f"{x}.gelu")

    def normalise(self, name: str, x: str) -> str:
        weight = self.store(f"{name}.weight", self.weight(f"{name}.weight"))
        bias = self.store(f"{name}.bias", self.weight(f"{name}.bias"))
        result = f"{name}.normal"
        return self.add("LayerNormalization", [x, weight, bias], result, axis=-1, epsilon=self.shape.epsilon)

    def pool(self, hidden: str) -> None:
        """The mean of the tokens that are no padding, at length one."""
        self.store("last_axis", np.array([2], np.int64))
        self.store("token_axis", np.array([1], np.int64))
        self.add("Unsqueeze", ["mask", "last_axis"], "mask_of_tokens")
        self.add("Mul", [hidden, "mask_of_tokens"], "kept")
        self.add("ReduceSum", ["kept", "token_axis"], "summed", keepdims=0)
        self.add("ReduceSum", ["mask_of_tokens", "token_axis"], "count", keepdims=0)
        self.store("least", np.float32(1e-6))
        self.add("Max", ["count", "least"], "counted")
        self.add("Div", ["summed", "counted"], "mean")
        self.add("ReduceL2", ["mean"], "length", axes=[1], keepdims=1)
        self.add("Max", ["length", "least"], "some_length")
        self.add("Div", ["mean", "some_length"], "embedding")

    def serialise(self) -> bytes:
        ids = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", self.width])
        initializers = [numpy_helper.from_array(value, name) for name, value in self.stored.items()]
        graph = helper.make_graph(self.nodes, "encoder", ids, [out], initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="landreeve", ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
