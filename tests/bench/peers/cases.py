"""What is asked of whom: the bytes of each request, and how to read the numbers out of its answer."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.peers.graphs import rows

Read = Callable[[bytes], list[float]]
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Case:
    """One way of asking one server for one model."""

    server: str
    model: str
    form: str
    requests: tuple[bytes, ...]
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


def infer_json(model: str, name: str, x: np.ndarray, number: int) -> bytes:
    """Open Inference Protocol, the tensor as JSON numbers."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "data": short(x.ravel())}
    return post(f"/v2/models/{model}/infer", json.dumps({"id": f"bench-{number}", "inputs": [tensor]}).encode())


def columns_json(row: Row, number: int) -> bytes:
    """A row as the worker's tabular callers send it: each column a JSON tensor, with the time of the row."""
    inputs = [{"name": n, "datatype": _datatype(v), "shape": [1], "data": [v]} for n, v in row.items()]
    document = {"id": f"bench-{number}", "parameters": {"at": _at(number)}, "inputs": inputs}
    return post("/v2/models/flight-delay/infer", json.dumps(document).encode())


def columns_binary(row: Row, number: int) -> bytes:
    """The same with each column a binary tensor, the answer too."""
    raws = [_raw(value) for value in row.values()]
    inputs = [
        {"name": n, "datatype": _datatype(v), "shape": [1], "parameters": {"binary_data_size": len(raw)}}
        for (n, v), raw in zip(row.items(), raws, strict=True)
    ]
    parameters = {"at": _at(number), "binary_data_output": True}
    head = json.dumps({"id": f"bench-{number}", "parameters": parameters, "inputs": inputs}).encode()
    body = head + b"".join(raws)
    return post("/v2/models/flight-delay/infer", body, len(head), "application/octet-stream")


def _datatype(value: object) -> str:
    return "BYTES" if isinstance(value, str) else "FP64"


def _raw(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", len(value)) + value.encode()
    return struct.pack("<d", value)


def _at(number: int) -> str:
    return f"2026-01-31T{number // 60 % 24:02d}:{number % 60:02d}:00Z"


def infer_binary(model: str, name: str, x: np.ndarray, number: int) -> bytes:
    """Open Inference Protocol with the binary tensor extension, both ways."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    document = {"id": f"bench-{number}", "parameters": {"binary_data_output": True}, "inputs": [tensor]}
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


def infer_grpc(model: str, name: str, x: np.ndarray, number: int) -> bytes:
    """The same over gRPC, the tensor raw: a ``ModelInferRequest``, serialised."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, id=f"bench-{number}", raw_input_contents=[x.tobytes()])
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
    """Rows of flight-delay. The peers take the ready tensor (FastAPI: the row); we take the row and keep it."""
    asked = list(enumerate(rows()))
    fastapi = tuple(post("/tabular", json.dumps(row).encode()) for _, row in asked)
    return [
        Case("worker", "tabular", "JSON", tuple(columns_json(row, i) for i, row in asked), oip_answer),
        Case("worker", "tabular", "binary", tuple(columns_binary(row, i) for i, row in asked), oip_answer),
        Case("worker", "tabular", "compact binary", each(infer_binary, "flight-delay", x), oip_answer),
        Case("mlserver", "tabular", "JSON", each(infer_json, "tabular", x), oip_answer),
        Case("pytriton", "tabular", "JSON", each(infer_json, "tabular", x), oip_answer),
        Case("pytriton", "tabular", "binary", each(infer_binary, "tabular", x), oip_answer),
        Case("fastapi", "tabular", "JSON", fastapi, plain_answer("probability")),
    ]


def image(x: np.ndarray) -> list[Case]:
    """Pictures, each (1, 3, 224, 224) float32."""
    pictures = [x[i : i + 1] for i in range(len(x))]
    nested = tuple(post("/image", json.dumps({"pixels": short(one)}).encode()) for one in pictures)
    raw = tuple(post("/image/raw", one.tobytes(), kind="application/octet-stream") for one in pictures)
    over_json, over_binary, over_grpc = (each(make, "image", x) for make in (infer_json, infer_binary, infer_grpc))
    return [
        Case("worker", "image", "binary", each(infer_binary, "page-rotation", x), oip_answer),
        Case("mlserver", "image", "JSON", over_json, oip_answer),
        Case("mlserver", "image", "gRPC", over_grpc, grpc_answer, "grpc"),
        Case("pytriton", "image", "binary", over_binary, oip_answer),
        Case("pytriton", "image", "gRPC", over_grpc, grpc_answer, "grpc"),
        Case("fastapi", "image", "JSON", nested, plain_answer("classes")),
        Case("fastapi", "image", "raw bytes", raw, plain_answer("classes")),
    ]


def each(make: Callable[[str, str, np.ndarray, int], bytes], model: str, x: np.ndarray) -> tuple[bytes, ...]:
    """One request for each input along the first axis."""
    return tuple(make(model, "x", x[i : i + 1], i) for i in range(len(x)))
