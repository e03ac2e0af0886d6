"""Which ONNX graphs may be loaded at all, decided from their bytes before any runtime sees them.

Refused are external tensors (a path to read), operator domains outside the allow-list (code of somebody else),
unknown opsets, graphs over the size limits, and graphs whose ends are not those of the release's signature: ``x``
float32 (n, width) in and float32 (n,) out of a tabular model, the named tensors of a tensor model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from landreeve.release.manifest import BadReleaseError, Signature, TensorSpec
from landreeve.release.onnx_wire import ALLOWED_OPERATORS, MAX_DEPTH, MAX_NODES, check_domain, check_graph

MAX_WIDTH = 4096
INPUT_NAME = "x"
# Datatype of the Open Inference Protocol by ONNX's TensorProto.DataType. No strings: BYTES would need a parser.
DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FP16",
    11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip


def check(data: bytes, *, width: int | None = None, signature: Signature | None = None) -> None:
    """Return when the graph is acceptable; raise `BadReleaseError` saying what is wrong and what is accepted.

    ``signature`` says which ends it must have; without it they are those of a tabular model of ``width`` columns
    (any number where that is None). Parse hostile bytes under rlimits: protobuf is native code.
    """
    check_graph(data)  # before protobuf sees it; what follows asks the same of what protobuf made of it
    model = _parse(data)
    for opset in model.opset_import:
        if opset.domain not in ALLOWED_OPERATORS:
            check_domain(opset.domain, opset.version)
    if model.functions:
        raise BadReleaseError(f"model.onnx: {len(model.functions)} local functions; export with functions inlined")
    if len(model.training_info):
        raise BadReleaseError("model.onnx: carries training graphs; export for inference")
    for count, node in enumerate(_nodes(model.graph, 0)):
        if count >= MAX_NODES:
            raise BadReleaseError(f"model.onnx: more than {MAX_NODES} nodes")
        if node.op_type not in ALLOWED_OPERATORS.get(node.domain, ()):
            check_domain(node.domain, 0)
    if signature is not None and signature.tensors:
        _check_tensors(model.graph, signature)
    else:
        _check_ends(model.graph, width if signature is None else signature.width or None)


def _parse(data: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise BadReleaseError(f"model.onnx: no ONNX graph: {error}") from error
    if not model.graph.node:
        raise BadReleaseError("model.onnx: no ONNX graph: it has no node")
    return model


def _nodes(graph: Any, depth: int) -> Iterator[Any]:
    """Every node of a graph and of the graphs in its attributes; refuses external tensors on the way."""
    if depth > MAX_DEPTH:
        raise BadReleaseError(f"model.onnx: graphs nested deeper than {MAX_DEPTH}")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _check_tensor(sparse.values)
        _check_tensor(sparse.indices)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                _check_tensor(sparse.values)
                _check_tensor(sparse.indices)
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, depth + 1)
            for inner in attribute.graphs:
                yield from _nodes(inner, depth + 1)


def _check_tensor(tensor: Any) -> None:
    if tensor.data_location == 1 or len(tensor.external_data):
        raise BadReleaseError(f"model.onnx: tensor {tensor.name[:60]!r} lies outside the file; store it inside")


def _check_tensors(graph: Any, signature: Signature) -> None:
    """The graph's inputs and outputs are the signature's, in its order."""
    for end, values, specs in (
        ("input", _inputs(graph), signature.tensors),
        ("output", list(graph.output), signature.outputs),
    ):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise BadReleaseError(f"model.onnx: {end}s are {_names(values)}, the definition names {_names(specs)}")
        for value, spec in zip(values, specs, strict=True):
            _check_tensor_end(end, value, spec)


def _check_tensor_end(end: str, value: Any, spec: TensorSpec) -> None:
    where = f"model.onnx: {end} {spec.name[:60]!r}"
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        raise BadReleaseError(f"{where}: is no tensor of a known rank")
    datatype = DATATYPES.get(value.type.tensor_type.elem_type, "of another type")
    if datatype != spec.datatype:
        raise BadReleaseError(f"{where}: is {datatype}, the definition says {spec.datatype}")
    # A named or absent length counts as any: exporters often leave out what they cannot infer.
    axes = [
        axis.dim_value if axis.WhichOneof("value") == "dim_value" else -1 for axis in value.type.tensor_type.shape.dim
    ]
    wrong = len(axes) != len(spec.shape) or any(
        got not in (-1, want) for got, want in zip(axes, spec.shape, strict=True)
    )
    if wrong:
        raise BadReleaseError(f"{where}: has shape {axes}, the definition says {list(spec.shape)} (-1: any length)")


def _names(ends: Sequence[Any]) -> str:
    return ", ".join(repr(end.name[:60]) for end in ends[:12]) or "none"


def _inputs(graph: Any) -> list[Any]:
    """What a caller must give: stored tensors may be listed among the inputs too."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _check_ends(graph: Any, width: int | None) -> None:
    inputs = _inputs(graph)
    if len(inputs) != 1 or inputs[0].name != INPUT_NAME or not _is_float(inputs[0], 2):
        raise BadReleaseError(f"model.onnx: needs exactly one input {INPUT_NAME!r}, float32 of shape (n, width)")
    columns = inputs[0].type.tensor_type.shape.dim[1].dim_value
    if not 0 < columns <= MAX_WIDTH or (width is not None and columns != width):
        wanted = f"{width}" if width is not None else f"1 to {MAX_WIDTH}"
        raise BadReleaseError(f"model.onnx: input {INPUT_NAME!r} has width {columns}, expected {wanted}")
    if len(graph.output) != 1 or not _is_float(graph.output[0], 1):
        raise BadReleaseError("model.onnx: needs exactly one output, float32 of shape (n,)")


def _is_float(value: Any, rank: int) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type == 1 and tensor.HasField("shape") and len(tensor.shape.dim) == rank
