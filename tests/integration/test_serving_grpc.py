"""The worker's gRPC door, asked by a peer's client and by bare messages: same rules, same sentences as over HTTP."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from landreeve_agent.doors.connection import Connection, Server
from landreeve_agent.inference import hold_port
from landreeve_agent.serving.control import CERTIFICATE, KEY
from landreeve_agent.serving.grpc_messages import DESCRIPTOR, MESSAGES, SERVICE
from landreeve_agent.serving.options import Options
from landreeve_agent.serving.supervise import WorkerProcess
from tritonclient.utils import InferenceServerException

from tests.agent.serving_worker import ServingWorker, serving_worker

WAIT_S = 20.0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingWorker]:
    hold = hold_port("127.0.0.1", 0)
    options = Options(grpc=hold.address, grpc_max_bytes=1_000_000)
    with serving_worker(tmp_path_factory.mktemp("worker"), options) as made:
        made.serve()
        yield made
    hold.close()


@pytest.fixture
def address(worker: ServingWorker) -> str:
    assert worker.options.grpc is not None
    return "{}:{}".format(*worker.options.grpc)


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as made:
        until_live(made)
        yield made


@pytest.fixture
def call(address: str) -> Iterator[Any]:
    """A bare call: method, message, options → response."""
    with grpc.insecure_channel(address) as channel:

        def ask(method: str, message: Any, **options: Any) -> Any:
            return channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=type(message).SerializeToString,
                response_deserializer=MESSAGES[f"{method}Response"].FromString,
            )(message, timeout=options.pop("timeout", WAIT_S), wait_for_ready=True, **options)

        yield ask


def until_live(client: triton.InferenceServerClient) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if client.is_server_live():
                return
        except InferenceServerException:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def inputs(rows: int = 1, **changes: Any) -> list[triton.InferInput]:
    values: dict[str, tuple[Any, str]] = {
        "hour": (np.full(rows, 9.5), "FP64"),
        "wind": (np.arange(rows, dtype=np.float32) + 4, "FP32"),
        "carrier": (np.array(["UA"] * rows, np.object_), "BYTES"),
    }
    values |= changes
    made = []
    for name, (value, datatype) in values.items():
        tensor = triton.InferInput(name, [rows], datatype)
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


def typed(rows: int = 1, **fields: Any) -> Any:
    request = MESSAGES["ModelInferRequest"](model_name="delay", **fields)
    for name, datatype, member, value in (
        ("hour", "FP64", "fp64_contents", 9.5),
        ("wind", "INT32", "int_contents", 4),
        ("carrier", "BYTES", "bytes_contents", b"UA"),
    ):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[rows])
        getattr(tensor.contents, member).extend([value] * rows)
    return request


def over_http(worker: ServingWorker, rows: int) -> list[float]:
    data = {"hour": [9.5] * rows, "wind": [4.0 + i for i in range(rows)], "carrier": ["UA"] * rows}
    tensors = [
        {"name": name, "datatype": "BYTES" if name == "carrier" else "FP64", "shape": [rows], "data": values}
        for name, values in data.items()
    ]
    with Connection(Server(*worker.address)) as connection:
        answer = connection.infer("delay", None, json.dumps({"inputs": tensors}).encode()).document
    found: list[float] = answer["outputs"][0]["data"]
    return found


def test_health_and_metadata_tell_what_there_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_ready()
    assert client.is_model_ready("delay")
    assert client.is_model_ready("delay", "1.0.0")
    assert client.get_server_metadata().name == "landreeve"
    found = client.get_model_metadata("delay")
    assert [tensor.name for tensor in found.inputs] == ["hour", "wind", "rain", "carrier"]
    assert (found.outputs[0].name, list(found.outputs[0].shape), found.platform) == ("probability", [-1], "onnx")


def test_raw_tensors_are_answered_as_over_http(client: triton.InferenceServerClient, worker: ServingWorker) -> None:
    answer = client.infer("delay", inputs(8), request_id="raw", outputs=[triton.InferRequestedOutput("probability")])
    assert answer.as_numpy("probability") == pytest.approx(over_http(worker, 8))
    response = answer.get_response()
    assert (response.model_version, response.id) == ("1.0.0", "raw")
    assert json.loads(response.parameters["ids"].string_param) == [f"raw/{i}" for i in range(8)]
    assert response.raw_output_contents


def test_typed_tensors_ids_and_times_come_through(call: Any, worker: ServingWorker) -> None:
    request = typed(2, id="typed")
    request.parameters["ids"].string_param = '["t1","t2"]'
    request.parameters["at"].string_param = "2026-01-31T09:30:00Z"
    response = call("ModelInfer", request)
    (output,) = response.outputs
    assert list(output.contents.fp32_contents) == pytest.approx(over_http(worker, 1) * 2)
    assert not response.raw_output_contents
    lines = {line.id: line for line in worker.captured()}
    assert lines["t2"].at == "2026-01-31T09:30:00Z"
    assert lines["t1"].row == {"hour": 9.5, "wind": 4, "rain": None, "carrier": "UA"}


def test_nan_is_an_absent_number_in_both_forms(client: triton.InferenceServerClient, call: Any) -> None:
    raw = client.infer("delay", inputs(rain=(np.array([np.nan]), "FP64"))).as_numpy("probability")
    request = typed()
    request.inputs.add(name="rain", datatype="FP32", shape=[1]).contents.fp32_contents.append(float("nan"))
    assert list(call("ModelInfer", request).outputs[0].contents.fp32_contents) == pytest.approx(raw)


def broken(**changes: Any) -> Any:
    request = typed()
    for field, value in changes.items():
        setattr(request.inputs[0], field, value)
    return request


def unpaired() -> Any:
    request = typed()
    request.raw_input_contents.append(b"1")
    return request


def with_parameter(name: str, text: str) -> Any:
    request = typed()
    request.parameters[name].string_param = text
    return request


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (broken(name="hours"), grpc.StatusCode.INVALID_ARGUMENT, "input 'hours': unknown"),
        (broken(datatype="FP16"), grpc.StatusCode.INVALID_ARGUMENT, "send raw_input_contents"),
        (broken(datatype="BYTES"), grpc.StatusCode.INVALID_ARGUMENT, "hour"),
        (unpaired(), grpc.StatusCode.INVALID_ARGUMENT, "1 tensors for 3 inputs"),
        (with_parameter("ids", "r1"), grpc.StatusCode.INVALID_ARGUMENT, "ids is a text that holds a JSON array"),
        (with_parameter("ids", "[1"), grpc.StatusCode.INVALID_ARGUMENT, "parameters: ids"),
        (with_parameter("at", "now"), grpc.StatusCode.INVALID_ARGUMENT, "RFC 3339"),
        (MESSAGES["ModelInferRequest"](model_name="delay"), grpc.StatusCode.INVALID_ARGUMENT, "inputs: empty"),
        (MESSAGES["ModelInferRequest"](model_name="price"), grpc.StatusCode.NOT_FOUND, "there are: delay"),
        (typed(model_version="9"), grpc.StatusCode.NOT_FOUND, "there is: 1.0.0"),
        (typed(id="x" * 1_000_001), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)
def test_refusals_have_a_status_and_the_sentence(call: Any, request_: Any, code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        call("ModelInfer", request_)
    assert (refusal.value.code(), words in refusal.value.details()) == (code, True), refusal.value.details()


def test_a_deadline_that_has_passed_is_told_as_such(call: Any) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        call("ModelInfer", typed(), timeout=1e-6)
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stream_is_answered_in_order_and_survives_a_refusal(client: triton.InferenceServerClient) -> None:
    heard: list[tuple[Any, Any]] = []
    done = threading.Event()

    def hear(result: Any, error: Any) -> None:
        heard.append((result, error))
        if len(heard) == 3:
            done.set()

    client.start_stream(hear)
    for number in range(3):
        client.async_stream_infer("delay" if number != 1 else "price", inputs(), request_id=f"s{number}")
    assert done.wait(WAIT_S)
    client.stop_stream()
    assert [result.get_response().id if result else None for result, _ in heard] == ["s0", None, "s2"]
    assert "there are: delay" in str(heard[1][1])


def test_the_repository_is_listed_unloaded_and_loaded(client: triton.InferenceServerClient) -> None:
    (entry,) = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state) == ("delay", "1.0.0", "READY")
    client.unload_model("delay")
    assert not client.is_model_ready("delay")
    with pytest.raises(InferenceServerException) as refusal:
        client.infer("delay", inputs())
    assert refusal.value.status() == "StatusCode.UNAVAILABLE"
    client.load_model("delay")
    assert client.infer("delay", inputs()).as_numpy("probability").shape == (1,)


def test_many_callers_at_once_are_all_answered(client: triton.InferenceServerClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: client.infer("delay", inputs(), request_id=f"m{n}"), range(200)))
    assert sorted(a.get_response().id for a in answers) == sorted(f"m{n}" for n in range(200))


def test_a_new_worker_answers_on_the_same_port(client: triton.InferenceServerClient, worker: ServingWorker) -> None:
    os.kill(worker.call(worker.process.status()).pid, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    answer = None
    while answer is None:
        try:
            answer = client.infer("delay", inputs()).as_numpy("probability")
        except InferenceServerException:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert answer.shape == (1,)


async def test_beyond_the_box_it_does_not_open_without_tls_and_token(tmp_path: Path) -> None:
    hold = hold_port("127.0.0.1", 0)
    worker = WorkerProcess(tmp_path / "spool", options=Options(grpc=("0.0.0.0", hold.address[1])))
    await worker.start()
    try:
        await asyncio.sleep(0)
        with socket.socket() as probe:
            assert probe.connect_ex(hold.address) != 0
    finally:
        await worker.stop()
        hold.close()


def test_with_a_token_set_only_its_holders_are_answered_and_over_tls(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "landreeve_agent.serving.certificate", str(tmp_path), "127.0.0.1"],
        check=True,
        timeout=60,
    )
    assert made.returncode == 0
    token = tmp_path / "token"
    token.write_text("secret\n")
    hold = hold_port("127.0.0.1", 0)
    certificate = tmp_path / CERTIFICATE
    options = Options(grpc=hold.address, tokens=(token,), tls_cert=certificate, tls_key=tmp_path / KEY)
    with serving_worker(tmp_path / "worker", options) as worker:
        worker.serve()
        address = "{}:{}".format(*hold.address)
        with triton.InferenceServerClient(address, ssl=True, root_certificates=str(certificate)) as client:
            until_live(client)
            with pytest.raises(InferenceServerException) as refusal:
                client.infer("delay", inputs())
            assert refusal.value.status() == "StatusCode.UNAUTHENTICATED"
            with pytest.raises(InferenceServerException):
                client.infer("delay", inputs(), headers={"authorization": "Bearer guess"})
            answer = client.infer("delay", inputs(), headers={"authorization": "Bearer secret"})
            assert answer.as_numpy("probability").shape == (1,)
        with Connection(Server(*worker.address, str(certificate), str(token))) as connection:
            assert connection.get("/v2/models").status == 200
    hold.close()


def test_the_descriptor_is_made_of_the_text_beside_it() -> None:
    """Every field of the .proto with its number, and no other, is in the descriptor."""
    text = DESCRIPTOR.with_name("open_inference.proto").read_text()
    wanted = sorted(re.findall(r"^\s+(?:repeated )?(?:map<\w+, )?\w+>? (\w+) = (\d+);", text, re.MULTILINE))
    found: list[tuple[str, str]] = []

    def walk(message: Any) -> None:
        if not message.GetOptions().map_entry:
            found.extend((field.name, str(field.number)) for field in message.fields)
        for inner in message.nested_types:
            walk(inner)

    for message in MESSAGES.values():
        walk(message.DESCRIPTOR)
    assert sorted(found) == wanted
