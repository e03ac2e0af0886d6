"""The Open Inference Protocol as others speak it: Triton's own Python client against a real worker.

Whatever this client cannot say or read, no application written for Triton, KServe or MLServer could use either.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx
import pytest
import tritonclient.grpc as oip_grpc
import tritonclient.http as oip
import tritonclient.http.aio as oip_aio
from landreeve.release.manifest import Gates, TensorSpec
from landreeve_agent.inference import Hold, hold_port
from landreeve_agent.serving.control import Plan, Route
from landreeve_agent.serving.options import Options
from landreeve_agent.serving.supervise import WorkerProcess
from landreeve_models.definition import Definition, encode_definition
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.agent.onnx_models import CARRIERS, answers, graph, version, write_release

T = TypeVar("T")
ROWS = 5
HOURS = [0.0, 6.5, 12.0, 17.25, 23.0]
WINDS = [0.0, 2.5, 11.0, 4.0, 7.5]
PRICE_BIAS = 1.5


class Loop:
    """An event loop on a thread of its own: the supervisor lives there while the client blocks here."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def write_tensor_release(folder: Path) -> Path:
    """A tensor model of two inputs: the mean of each picture's channels, plus the sum of its tokens."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("ReduceSum", ["tokens", "axes"], ["total"], keepdims=1),
        helper.make_node("Cast", ["total"], ["offset"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["means", "offset"], ["scores"]),
        helper.make_node("Identity", ["total"], ["counted"]),
    ]
    inputs = [
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 4, 4]),
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "length"]),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("counted", TensorProto.INT64, ["n", 1]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    built = helper.make_graph(nodes, "pooled", inputs, outputs, [axes])
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    definition = Definition(
        name="pictures",
        purpose="tests",
        label="kind",
        task="classification",
        output="scores",
        gates=Gates(metric="accuracy"),
        tensors=(
            TensorSpec(name="pixels", datatype="FP32", shape=(-1, 3, 4, 4)),
            TensorSpec(name="tokens", datatype="INT64", shape=(-1, -1)),
        ),
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=(-1, 3)),
            TensorSpec(name="counted", datatype="INT64", shape=(-1, 1)),
        ),
    )
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "definition.json").write_bytes(encode_definition(definition))
    return folder


def routes(folder: Path) -> tuple[Route, ...]:
    """Two tabular models, which answer differently, and a tensor model."""
    delay = version(write_release(folder / "delay"), plan=Plan(batch=16))
    price = msgspec.structs.replace(
        version(write_release(folder / "price", PRICE_BIAS), "2.1.0", model="price"), plan=Plan()
    )
    pictures = version(write_tensor_release(folder / "pictures"), "3.0.0", model="pictures")
    return Route("delay", delay), Route("price", price), Route("pictures", pictures)


@pytest.fixture(scope="module")
def grpc_hold() -> Iterator[Hold]:
    hold = hold_port("127.0.0.1", 0)
    yield hold
    hold.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, grpc_hold: Hold) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("oip")
    loop, process = Loop(), WorkerProcess(folder / "spool", options=Options(grpc=grpc_hold.address))
    try:
        loop.run(process.start())
        loop.run(process.apply(routes(folder)))
        yield process
    finally:
        loop.run(process.stop())
        loop.stop()


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[oip.InferenceServerClient]:
    host, port = worker.address
    with oip.InferenceServerClient(f"{host}:{port}", concurrency=4) as made:
        yield made


@pytest.fixture
def grpc_client(worker: WorkerProcess, grpc_hold: Hold) -> Iterator[oip_grpc.InferenceServerClient]:
    host, port = grpc_hold.address
    with oip_grpc.InferenceServerClient(f"{host}:{port}") as made:
        deadline = time.monotonic() + 20
        while not _lives(made):  # the door opens a moment after the first routes serve
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield made


def _lives(client: oip_grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False


# --- what is asked


def tensor(name: str, values: NDArray[Any], datatype: str, *, binary: bool) -> oip.InferInput:
    made = oip.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def columns(rows: int = ROWS, *, binary: bool = True, deep: bool = False) -> list[oip.InferInput]:
    """The delay model's rows; ``deep`` gives each tensor the shape [rows, 1]."""
    shape = (rows, 1) if deep else (rows,)
    carriers = np.array([CARRIERS[i % 3].encode() for i in range(rows)], np.object_).reshape(shape)
    return [
        tensor("hour", np.array(HOURS[:rows], np.float64).reshape(shape), "FP64", binary=binary),
        tensor("wind", np.array(WINDS[:rows], np.float32).reshape(shape), "FP32", binary=binary),
        tensor("carrier", carriers, "BYTES", binary=binary),
    ]


def expected(rows: int = ROWS, bias: float = 0.0) -> NDArray[np.float32]:
    """What ONNX's reference evaluator says to those rows; rain is not known."""
    x = [[HOURS[i], WINDS[i], np.nan, float(i % 3)] for i in range(rows)]
    return answers(graph(bias), np.array(x, np.float32))


def output(name: str = "probability", *, binary: bool) -> list[oip.InferRequestedOutput]:
    return [oip.InferRequestedOutput(name, binary_data=binary)]


# --- health and metadata


def test_health_is_told_of_server_models_and_versions(client: oip.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("delay")
    assert client.is_model_ready("price", "2.1.0")
    assert not client.is_model_ready("price", "1.0.0")
    assert not client.is_model_ready("weather")


def test_the_server_says_who_it_is_and_what_it_can(client: oip.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "landreeve"
    assert metadata["version"].startswith("0.")
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(metadata["extensions"])


def test_a_tabular_model_names_each_column_as_an_input(client: oip.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("delay")
    assert (metadata["name"], metadata["versions"]) == ("delay", ["1.0.0"])
    assert {i["name"]: (i["datatype"], i["shape"]) for i in metadata["inputs"]} == {
        "hour": ("FP64", [-1]),
        "wind": ("FP64", [-1]),
        "rain": ("FP64", [-1]),
        "carrier": ("BYTES", [-1]),
    }
    assert metadata["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]


def test_a_tensor_model_names_the_graphs_own_inputs_and_outputs(client: oip.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("pictures", "3.0.0")
    assert metadata["inputs"] == [
        {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 4, 4]},
        {"name": "tokens", "datatype": "INT64", "shape": [-1, -1]},
    ]
    assert metadata["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "counted", "datatype": "INT64", "shape": [-1, 1]},
    ]


# --- inference


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_rows_in_json_or_binary_get_the_graphs_answers_in_json_or_binary(
    client: oip.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    answer = client.infer("delay", columns(binary=binary_in), outputs=output(binary=binary_out))
    np.testing.assert_allclose(answer.as_numpy("probability"), expected(), atol=1e-5)
    described = answer.get_output("probability")
    assert (described["datatype"], described["shape"]) == ("FP32", [ROWS])
    assert ("data" in described) is not binary_out


def test_one_row_and_rows_as_a_column_are_the_same_to_it(client: oip.InferenceServerClient) -> None:
    one = client.infer("delay", columns(1)).as_numpy("probability")
    deep = client.infer("delay", columns(1, deep=True, binary=False)).as_numpy("probability")
    np.testing.assert_allclose(one, expected(1), atol=1e-5)
    np.testing.assert_array_equal(one, deep)


def test_each_model_answers_by_its_own_graph_and_says_its_version(client: oip.InferenceServerClient) -> None:
    delay = client.infer("delay", columns(), model_version="1.0.0")
    price = client.infer("price", columns())
    assert (delay.get_response()["model_name"], delay.get_response()["model_version"]) == ("delay", "1.0.0")
    assert (price.get_response()["model_name"], price.get_response()["model_version"]) == ("price", "2.1.0")
    np.testing.assert_allclose(price.as_numpy("probability"), expected(bias=PRICE_BIAS), atol=1e-5)


def test_the_callers_id_comes_back_and_parameters_are_understood(client: oip.InferenceServerClient) -> None:
    answer = client.infer("delay", columns(1), request_id="till 7/42", parameters={"at": "2026-01-31T09:30:00Z"})
    assert answer.get_response()["id"] == "till 7/42"


@pytest.mark.parametrize("binary", [True, False])
def test_a_tensor_model_takes_its_tensors_and_answers_all_outputs(
    client: oip.InferenceServerClient, binary: bool
) -> None:
    pixels = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
    tokens = np.array([[1, 2, 3], [4, 5, 6]], np.int64)
    sent = [tensor("pixels", pixels, "FP32", binary=binary), tensor("tokens", tokens, "INT64", binary=binary)]
    answer = client.infer("pictures", sent)
    scores = pixels.mean(axis=(2, 3)) + tokens.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("counted"), tokens.sum(axis=1, keepdims=True))


def test_a_caller_may_ask_for_one_of_the_outputs(client: oip.InferenceServerClient) -> None:
    pixels, tokens = np.zeros((1, 3, 4, 4), np.float32), np.array([[7]], np.int64)
    sent = [tensor("pixels", pixels, "FP32", binary=True), tensor("tokens", tokens, "INT64", binary=False)]
    answer = client.infer("pictures", sent, outputs=output("counted", binary=True))
    np.testing.assert_array_equal(answer.as_numpy("counted"), [[7]])
    assert answer.as_numpy("scores") is None


def test_requests_under_way_at_once_all_get_their_own_answers(client: oip.InferenceServerClient) -> None:
    asked = [client.async_infer("delay", columns(1 + n % ROWS), request_id=str(n)) for n in range(24)]
    for n, one in enumerate(asked):
        answer = one.get_result()
        assert answer.get_response()["id"] == str(n)
        np.testing.assert_allclose(answer.as_numpy("probability"), expected(1 + n % ROWS), atol=1e-5)


async def test_the_asyncio_client_is_served_as_well(worker: WorkerProcess) -> None:
    host, port = worker.address
    async with oip_aio.InferenceServerClient(f"{host}:{port}") as client:
        answer = await client.infer("delay", columns())
        np.testing.assert_allclose(answer.as_numpy("probability"), expected(), atol=1e-5)


# --- refusals: the client's own exception carries our sentence


def wrong_shape() -> list[oip.InferInput]:
    return [*columns(1)[1:], tensor("hour", np.zeros((1, 2), np.float64), "FP64", binary=True)]


def wrong_rows() -> list[oip.InferInput]:
    return [*columns(2)[:2], columns(1)[2]]


def wrong_datatype() -> list[oip.InferInput]:
    return [*columns(1)[:2], tensor("carrier", np.array([3], np.int64), "INT64", binary=True)]


def wrong_name() -> list[oip.InferInput]:
    return [*columns(1), tensor("snow", np.array([1.0]), "FP64", binary=True)]


def out_of_range() -> list[oip.InferInput]:
    return [*columns(1)[1:], tensor("hour", np.array([31.0]), "FP64", binary=True)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_shape, "input 'hour': shape [1, 2] does not fit; expected [rows] or [rows, 1]"),
        (wrong_rows, "input 'carrier': shape [1] does not fit"),
        (wrong_datatype, "input 'carrier': datatype 'INT64', expected a category: BYTES"),
        (wrong_name, "input 'snow': unknown; the model's inputs are hour, wind, rain, carrier"),
        (out_of_range, "input 'hour': value 0"),
        (lambda: columns(1)[1:], "input 'hour': missing"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_by_name(
    client: oip.InferenceServerClient, make: Callable[[], list[oip.InferInput]], words: str
) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        client.infer("delay", make())
    assert refusal.value.message().startswith(words)
    assert refusal.value.status() == "400"


@pytest.mark.parametrize(
    ("pixels", "datatype", "words"),
    [
        (np.zeros((1, 3, 4, 5), np.float32), "FP32", "input 'pixels': shape [1, 3, 4, 5]"),
        (np.zeros((1, 3, 4), np.float32), "FP32", "input 'pixels': shape [1, 3, 4]"),
        (np.zeros((1, 3, 4, 4), np.float64), "FP64", "input 'pixels': datatype 'FP64'"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), "FP32", "input 'pixels'"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    client: oip.InferenceServerClient, pixels: NDArray[Any], datatype: str, words: str
) -> None:
    tokens = tensor("tokens", np.array([[1]], np.int64), "INT64", binary=True)
    with pytest.raises(InferenceServerException) as refusal:
        client.infer("pictures", [tensor("pixels", pixels, datatype, binary=True), tokens])
    assert refusal.value.message().startswith(words)


@pytest.mark.parametrize(
    ("model", "of_version", "status", "words"),
    [
        ("weather", "", "404", "model 'weather' is not served here; there are: delay, pictures, price"),
        ("delay", "9.9.9", "404", "version '9.9.9' of model 'delay' is not served here; there is: 1.0.0"),
    ],
)
def test_a_model_that_is_not_served_is_named_with_those_that_are(
    client: oip.InferenceServerClient, model: str, of_version: str, status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        client.infer(model, columns(1), model_version=of_version)
    assert (refusal.value.status(), refusal.value.message()) == (status, words)
    with pytest.raises(InferenceServerException) as refusal:
        client.get_model_metadata(model, of_version)
    assert refusal.value.message() == words


def test_an_unknown_output_and_a_compressed_body_are_refused(client: oip.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"outputs\[0\].name: 'price' is unknown"):
        client.infer("delay", columns(1), outputs=output("price", binary=True))
    with pytest.raises(InferenceServerException, match="send the body uncompressed"):
        client.infer("delay", columns(1), request_compression_algorithm="gzip")


def test_after_refusals_the_same_connections_go_on(client: oip.InferenceServerClient) -> None:
    for _ in range(6):
        with pytest.raises(InferenceServerException):
            client.infer("delay", wrong_shape())
        np.testing.assert_allclose(client.infer("delay", columns()).as_numpy("probability"), expected(), atol=1e-5)


# --- extensions


def test_the_repository_index_lists_what_is_served(client: oip.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert {(i["name"], i["version"], i["state"]) for i in index} == {
        ("delay", "1.0.0", "READY"),
        ("price", "2.1.0", "READY"),
        ("pictures", "3.0.0", "READY"),
    }


def test_a_model_unloaded_by_a_caller_refuses_until_it_is_loaded_again(client: oip.InferenceServerClient) -> None:
    client.unload_model("price")
    try:
        assert not client.is_model_ready("price")
        with pytest.raises(InferenceServerException) as refusal:
            client.infer("price", columns(1))
        assert refusal.value.status() in {"404", "503"}
        assert "price" in refusal.value.message()
        assert client.is_model_ready("delay")
    finally:
        client.load_model("price")
    assert client.is_model_ready("price")
    np.testing.assert_allclose(
        client.infer("price", columns()).as_numpy("probability"), expected(bias=PRICE_BIAS), atol=1e-5
    )


def test_loading_what_no_release_holds_is_refused_by_name(client: oip.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="'weather'"):
        client.load_model("weather")


def test_statistics_count_rows_and_requests(client: oip.InferenceServerClient) -> None:
    before = client.get_inference_statistics("delay")["model_stats"][0]
    client.infer("delay", columns())
    after = client.get_inference_statistics("delay")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == ROWS
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert {stats["name"] for stats in client.get_inference_statistics()["model_stats"]} >= {"delay", "price"}


# --- over gRPC the same server says the same


def grpc_input(name: str, values: NDArray[Any], datatype: str) -> oip_grpc.InferInput:
    made = oip_grpc.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def grpc_columns(rows: int = ROWS) -> list[oip_grpc.InferInput]:
    return [
        grpc_input("hour", np.array(HOURS[:rows], np.float64), "FP64"),
        grpc_input("wind", np.array(WINDS[:rows], np.float32), "FP32"),
        grpc_input("carrier", np.array([CARRIERS[i % 3].encode() for i in range(rows)], np.object_), "BYTES"),
    ]


def test_over_grpc_health_metadata_and_index_are_those_of_http(
    client: oip.InferenceServerClient, grpc_client: oip_grpc.InferenceServerClient
) -> None:
    assert grpc_client.is_server_ready()
    for model in ("delay", "price", "pictures"):
        assert grpc_client.is_model_ready(model)
        over_http = client.get_model_metadata(model)
        over_grpc = grpc_client.get_model_metadata(model, as_json=True)
        assert (over_grpc["name"], over_grpc["versions"]) == (over_http["name"], over_http["versions"])
        for end in ("inputs", "outputs"):
            shapes = [{**t, "shape": [int(axis) for axis in t["shape"]]} for t in over_grpc[end]]
            assert shapes == [{key: t[key] for key in ("name", "datatype", "shape")} for t in over_http[end]]
    told = grpc_client.get_model_repository_index(as_json=True)["models"]
    index = {(i["name"], i["version"], i["state"]) for i in client.get_model_repository_index()}
    assert {(i["name"], i["version"], i["state"]) for i in told} == index


def test_over_grpc_rows_and_tensors_get_the_graphs_answers(grpc_client: oip_grpc.InferenceServerClient) -> None:
    answer = grpc_client.infer("delay", grpc_columns(), request_id="till 7/42")
    assert (answer.get_response().id, answer.get_response().model_version) == ("till 7/42", "1.0.0")
    np.testing.assert_allclose(answer.as_numpy("probability"), expected(), atol=1e-5)
    pixels = np.random.default_rng(2).normal(size=(2, 3, 4, 4)).astype(np.float32)
    tokens = np.array([[1, 2], [3, 4]], np.int64)
    sent = [grpc_input("pixels", pixels, "FP32"), grpc_input("tokens", tokens, "INT64")]
    answer = grpc_client.infer("pictures", sent)
    scores = pixels.mean(axis=(2, 3)) + tokens.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("counted"), tokens.sum(axis=1, keepdims=True))


def test_over_grpc_a_refusal_is_the_sentence_of_http(
    client: oip.InferenceServerClient, grpc_client: oip_grpc.InferenceServerClient
) -> None:
    cases = [
        ("delay", columns(1)[1:], grpc_columns(1)[1:], "INVALID_ARGUMENT"),
        ("weather", columns(1), grpc_columns(1), "NOT_FOUND"),
        (
            "delay",
            [*columns(1), tensor("snow", np.array([1.0]), "FP64", binary=True)],
            [*grpc_columns(1), grpc_input("snow", np.array([1.0]), "FP64")],
            "INVALID_ARGUMENT",
        ),
    ]
    for model, over_http, over_grpc, status in cases:
        with pytest.raises(InferenceServerException) as http_refusal:
            client.infer(model, over_http)
        with pytest.raises(InferenceServerException) as grpc_refusal:
            grpc_client.infer(model, over_grpc)
        assert grpc_refusal.value.message() == http_refusal.value.message()
        assert grpc_refusal.value.status() == f"StatusCode.{status}"
