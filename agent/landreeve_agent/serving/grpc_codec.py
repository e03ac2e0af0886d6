"""gRPC messages to requests and answers to gRPC messages. What is allowed is judged by `oip`, as over HTTP.

Tensors come typed or as raw bytes; raw costs no look at the elements. gRPC parameters hold no lists, so ``ids`` and
a list of ``at`` are texts with a JSON array.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from landreeve_models.samples import DTYPES

from landreeve_agent.serving import oip
from landreeve_agent.serving.columns import Raw
from landreeve_agent.serving.errors import BadRequestError
from landreeve_agent.serving.grpc_messages import MESSAGES
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.messages import Body, Infer, InputParameters, InputTensor, Parameters, WantedOutput
from landreeve_agent.serving.routes import Answered

# Datatype → the member of InferTensorContents that holds it; FP16 has none, so it travels raw.
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_ONES = ((1,), (1, 1))
_FLOATS = ("FP32", "FP64")
_LITTLE = {name: np.dtype(kind).newbyteorder("<") for name, kind in DTYPES.items()}
_ModelInferResponse = MESSAGES["ModelInferResponse"]


def decode(request: Any, interface: Interface) -> Infer:
    """The request in a ModelInferRequest; `BadRequestError` names the field that is wrong."""
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise BadRequestError(f"raw_input_contents: {len(raws)} tensors for {len(request.inputs)} inputs")
    message = Body(
        inputs=[],
        id=request.id or None,
        parameters=_parameters(request.parameters) if request.parameters else None,
        outputs=[WantedOutput(output.name) for output in request.outputs] or None,
    )
    if raws and (usual := interface.one_row) is not None and _are_ones(request.inputs):
        names, datatypes = [t.name for t in request.inputs], [t.datatype for t in request.inputs]
        if (found := usual.raw(names, datatypes, raws)) is not None:
            return oip.of_row(message, found, interface)
    message.inputs = [_input(tensor, raws[index] if raws else None) for index, tensor in enumerate(request.inputs)]
    tail: Raw = raws[0] if len(raws) == 1 else b"".join(raws)
    return oip.read(message, tail, interface)


def _are_ones(inputs: Iterable[Any]) -> bool:
    """Whether each tensor is one element, and that only as raw bytes."""
    return all(tuple(t.shape) in _ONES and not t.HasField("contents") for t in inputs)


def _input(tensor: Any, raw: bytes | None) -> InputTensor:
    shape = tuple(tensor.shape)
    if raw is not None:
        if tensor.HasField("contents"):
            raise BadRequestError(f"input {tensor.name!r}: has both contents and raw_input_contents; send one of them")
        return InputTensor(tensor.name, shape, tensor.datatype, parameters=InputParameters(binary_data_size=len(raw)))
    return InputTensor(tensor.name, shape, tensor.datatype, data=_typed(tensor))


def _typed(tensor: Any) -> list[Any]:
    """The elements of a tensor; NaN is an absent number, as in a binary tensor."""
    member = CONTENTS.get(tensor.datatype)
    if member is None:
        known = ", ".join(CONTENTS)
        raise BadRequestError(
            f"input {tensor.name!r}: datatype {tensor.datatype[:20]!r} has no contents; send raw_input_contents, or "
            f"one of {known}"
        )
    values = list(getattr(tensor.contents, member))
    if member == "bytes_contents":
        return [_text(tensor.name, index, value) for index, value in enumerate(values)]
    if tensor.datatype in _FLOATS:
        return [None if value != value else value for value in values]  # noqa: PLR0124 - only NaN differs from itself
    return values


def _text(name: str, index: int, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRequestError(f"input {name!r}: element {index} is no UTF-8: {error}") from error


def _parameters(sent: Mapping[str, Any]) -> Parameters:
    """Those of the parameters that we know, by the same names as over HTTP; others are somebody else's."""
    found: dict[str, Any] = {}
    for name in ("at", "ids", "key", "priority", "timeout"):
        if name in sent:
            choice = sent[name].WhichOneof("parameter_choice")
            value = getattr(sent[name], choice) if choice else None
            found[name] = _list(name, value) if isinstance(value, str) and value.startswith("[") else value
    try:
        return msgspec.convert(found, Parameters)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"parameters: {error}; ids is a text that holds a JSON array of texts") from error


def _list(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise BadRequestError(f"parameters: {name}: {error}") from error


def encode(answer: Answered, *, raw: bool) -> Any:
    """The ModelInferResponse; ``raw`` as the request was, or when an output has no typed form."""
    interface, request = answer.interface, answer.request
    response = _ModelInferResponse(model_name=interface.model, model_version=interface.version, id=request.id)
    wanted = [
        (spec, output)
        for spec, output, asked in zip(interface.outputs, answer.outputs, request.wanted, strict=True)
        if asked is not None
    ]
    raw = raw or any(spec.datatype not in CONTENTS for spec, _ in wanted)
    for spec, output in wanted:
        tensor = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=output.shape)
        if raw:
            response.raw_output_contents.append(np.ascontiguousarray(output, _LITTLE[spec.datatype]).tobytes())
        else:
            getattr(tensor.contents, CONTENTS[spec.datatype]).extend(output.reshape(-1).tolist())
    if request.rows > 1:
        _set_ids(response, answer.ids)
    return response


def _set_ids(response: Any, ids: Sequence[str]) -> None:
    response.parameters["ids"].string_param = msgspec.json.encode(list(ids)).decode()


def metadata(name: str, versions: Sequence[str], inputs: Iterable[Any], outputs: Iterable[Any]) -> Any:
    """A ModelMetadataResponse; tensors have ``name``, ``datatype`` and ``shape``."""
    response = MESSAGES["ModelMetadataResponse"](name=name, versions=versions, platform="onnx")
    for target, tensors in ((response.inputs, inputs), (response.outputs, outputs)):
        for tensor in tensors:
            target.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return response
