"""What is asked of whom: the bytes of each request, and how to read the numbers out of its answer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.bench_worker import ROW, oip_binary, oip_json

Read = Callable[[bytes], list[float]]


@dataclass(frozen=True, slots=True)
class Case:
    """One way of asking one server for one model."""

    server: str
    model: str
    form: str
    request: bytes
    read: Read
    transport: str = "http"


def post(path: str, body: bytes, header: int | None = None, kind: str = "application/json") -> bytes:
    """An HTTP request, complete; ``header`` is the length of the JSON part before binary tensors."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if header is not None:
        lines.append(f"Inference-Header-Content-Length: {header}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def short(x: np.ndarray) -> list[Any]:
    """Nested lists of the numbers without the digits that float32 does not have.

    >>> short(np.array([[0.1]], np.float32))
    [[0.1]]
    """
    return np.array([float(f"{value:.7g}") for value in x.ravel().tolist()]).reshape(x.shape).tolist()


def infer_json(model: str, name: str, x: np.ndarray) -> bytes:
    """Open Inference Protocol, the tensor as JSON numbers."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "data": short(x.ravel())}
    return post(f"/v2/models/{model}/infer", json.dumps({"id": "bench", "inputs": [tensor]}).encode())


def infer_binary(model: str, name: str, x: np.ndarray) -> bytes:
    """Open Inference Protocol with the binary tensor extension, both ways."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    document = {"id": "bench", "parameters": {"binary_data_output": True}, "inputs": [tensor]}
    head = json.dumps(document).encode()
    return post(f"/v2/models/{model}/infer", head + x.tobytes(), len(head), "application/octet-stream")


def oip_answer(answer: bytes) -> list[float]:
    """The numbers of the first output of an Open Inference Protocol answer, JSON or binary."""
    head, _, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"inference-header-content-length:")[2].split(b"\r\n")[0].strip()
    document = json.loads(body[: int(length)] if length else body)
    output = document["outputs"][0]
    if "data" in output:
        return [float(value) for value in np.ravel(output["data"])]
    raw = body[int(length) : int(length) + output["parameters"]["binary_data_size"]]
    return [float(value) for value in np.frombuffer(raw, "<f4")]


def infer_grpc(model: str, name: str, x: np.ndarray) -> bytes:
    """The same over gRPC, the tensor raw: a ``ModelInferRequest``, serialised."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, id="bench", raw_input_contents=[x.tobytes()])
    request.inputs.add(name=name, datatype="FP32", shape=x.shape)
    return bytes(request.SerializeToString())


def grpc_answer(answer: bytes) -> list[float]:
    """The numbers of the first output of a ``ModelInferResponse``."""
    from tritonclient.grpc import service_pb2

    response = service_pb2.ModelInferResponse.FromString(answer)
    if response.raw_output_contents:
        return [float(value) for value in np.frombuffer(response.raw_output_contents[0], "<f4")]
    return list(response.outputs[0].contents.fp32_contents)


def plain_answer(member: str) -> Read:
    """Reads that member of a JSON answer."""

    def read(answer: bytes) -> list[float]:
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        return [float(value) for value in np.ravel(document[member])]

    return read


def tabular(x: np.ndarray) -> list[Case]:
    """A row of flight-delay. The peers take the ready tensor (FastAPI: the row); we take the row and keep it."""
    model = "flight-delay"
    return [
        Case("worker", "tabular", "JSON", oip_json(), oip_answer),
        Case("worker", "tabular", "binary", oip_binary(), oip_answer),
        Case("worker", "tabular", "compact binary", infer_binary(model, "x", x), oip_answer),
        Case("mlserver", "tabular", "JSON", infer_json("tabular", "x", x), oip_answer),
        Case("pytriton", "tabular", "JSON", infer_json("tabular", "x", x), oip_answer),
        Case("pytriton", "tabular", "binary", infer_binary("tabular", "x", x), oip_answer),
        Case("fastapi", "tabular", "JSON", post("/tabular", json.dumps(ROW).encode()), plain_answer("probability")),
    ]


def image(x: np.ndarray) -> list[Case]:
    """One picture, (1, 3, 224, 224) float32."""
    nested = json.dumps({"pixels": short(x)}).encode()
    raw = post("/image/raw", x.tobytes(), kind="application/octet-stream")
    return [
        Case("worker", "image", "binary", infer_binary("page-rotation", "x", x), oip_answer),
        Case("mlserver", "image", "JSON", infer_json("image", "x", x), oip_answer),
        Case("mlserver", "image", "gRPC", infer_grpc("image", "x", x), grpc_answer, "grpc"),
        Case("pytriton", "image", "binary", infer_binary("image", "x", x), oip_answer),
        Case("pytriton", "image", "gRPC", infer_grpc("image", "x", x), grpc_answer, "grpc"),
        Case("fastapi", "image", "JSON", post("/image", nested), plain_answer("classes")),
        Case("fastapi", "image", "raw bytes", raw, plain_answer("classes")),
    ]
