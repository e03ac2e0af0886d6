"""Paths, statuses and headers of the inference API."""

import dataclasses
import json
from pathlib import Path

import pytest
from landreeve_agent.serving import errors
from landreeve_agent.serving.access import Access
from landreeve_agent.serving.batcher import Batcher, Job
from landreeve_agent.serving.capture import Spool
from landreeve_agent.serving.control import Route
from landreeve_agent.serving.heads import Head
from landreeve_agent.serving.http import Request, Response
from landreeve_agent.serving.lanes import Lanes
from landreeve_agent.serving.memory import Memory
from landreeve_agent.serving.metrics import Metrics
from landreeve_agent.serving.model import load
from landreeve_agent.serving.repository import Repository
from landreeve_agent.serving.routes import Routes, Serving
from landreeve_agent.serving.server import InferenceServer, error_response

from tests.agent.onnx_models import body, version, write_release


@pytest.fixture
async def server(tmp_path: Path) -> InferenceServer:
    metrics = Metrics()
    routes = Routes(Spool(tmp_path / "spool", 1), metrics)
    routes.alone = lambda: True
    model = load(version(write_release(tmp_path / "m")), checked=True)
    broken = version(tmp_path / "nowhere", model="price")
    problem = errors.LoadFailedError("bad_release", "model.onnx is missing")
    routes.replace(
        {
            "delay": Serving(Route("delay", model.version), routes.make_lane(model), None),
            "price": Serving(Route("price", broken), None, None, problem),
        }
    )
    memory = Memory(1 << 40)
    lanes = Lanes(routes, memory, lambda _version, _cause, _count: None)
    return InferenceServer(routes, metrics, Repository(lanes, routes, metrics, memory), Access())


def ask(
    server: InferenceServer, method: str, path: str, headers: dict[bytes, bytes] | None = None, document: object = None
) -> Response:
    answers: list[Response] = []
    server.handle(
        Request(Head(method, path, headers or {}, keep_alive=True), json.dumps(document).encode()), answers.append
    )
    (answer,) = answers
    return answer


INFER = "/v2/models/delay/infer"


@pytest.mark.parametrize(
    ("line", "headers", "status", "words"),
    [
        ("GET /v2", {}, 200, "binary_tensor_data"),
        ("GET /v2/health/live", {}, 200, "true"),
        ("GET /v2/health/ready", {}, 503, "false"),
        ("GET /v2/models", {}, 200, '["delay","price"]'),
        ("GET /v2/models/delay", {}, 200, '"name":"rain","datatype":"FP64"'),
        ("GET /v2/models/price", {}, 200, '"versions":["1.0.0"]'),
        ("GET /v2/models/delay/ready", {}, 200, "true"),
        ("GET /v2/models/price/ready", {}, 503, "false"),
        ("GET /metrics", {}, 200, "landreeve_worker_resident_bytes"),
        (f"GET {INFER}", {}, 405, "use POST"),
        ("GET /favicon.ico", {}, 404, "the API begins at /v2"),
        ("DELETE /v2/models/delay", {}, 405, "method DELETE"),
        (f"POST {INFER}", {}, 200, "probability"),
        ("POST /v2/models/delay/versions/1.0.0/infer", {}, 200, "probability"),
        ("POST /v2/models/delay/versions/2.0.0/infer", {}, 404, "there is: 1.0.0"),
        ("POST /v2/models/price/infer", {}, 503, "model.onnx is missing"),
        ("POST /v2/models/a%2Fb/infer", {}, 404, "model 'a/b' is not served"),
        (f"POST {INFER}", {b"origin": b"https://evil.example"}, 403, "web pages may not call"),
        (f"POST {INFER}", {b"content-encoding": b"gzip"}, 415, "send the body uncompressed"),
        (f"POST {INFER}", {b"inference-header-content-length": b"x"}, 400, "is no number of bytes"),
    ],
)
async def test_every_path_answers_with_its_status(
    server: InferenceServer, line: str, headers: dict[bytes, bytes], status: int, words: str
) -> None:
    answer = ask(server, *line.split(), headers, body())
    assert (answer.status, words in answer.body.decode()) == (status, True), answer.body


async def test_metrics_tell_the_device_and_plan_that_a_version_runs_with(server: InferenceServer) -> None:
    text = ask(server, "GET", "/metrics").body.decode()
    told = 'version="1.0.0",role="active",device="cpu",backend="onnxruntime",precision="fp32",threads="1",streams="1"'
    assert f'landreeve_model_plan{{model="delay",{told}}} 1' in text
    assert 'landreeve_model_plan{model="price"' not in text


async def test_a_version_that_stands_in_for_a_share_is_told_once(server: InferenceServer) -> None:
    serving = server._routes.table["delay"]
    assert serving.active is not None
    server._routes.replace({"delay": dataclasses.replace(serving, shares=(serving.active,))})
    lines = ask(server, "GET", "/metrics").body.decode().splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))


async def test_a_request_turned_away_for_a_full_queue_is_counted(
    server: InferenceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Batcher, _job: Job) -> None:
        raise errors.BusyError("1024 requests wait already")

    monkeypatch.setattr(Batcher, "submit", full)
    assert ask(server, "POST", INFER, {}, body()).status == 429
    assert 'landreeve_busy_total{model="delay"} 1' in ask(server, "GET", "/metrics").body.decode()


async def test_binary_output_tells_the_length_of_its_json_part(server: InferenceServer) -> None:
    answer = ask(server, "POST", INFER, {}, body(parameters={"binary_data_output": True}))
    assert answer.content_type == b"application/octet-stream"
    length = int(answer.headers.split(b": ")[1])
    assert len(answer.body) - length == 4


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (errors.BusyError("x"), 429, True),
        (errors.NotReadyError("x"), 503, True),
        (errors.TooLargeError("x"), 413, False),
        (errors.BadRequestError("x"), 400, False),
        (errors.RunFailedError("x"), 500, False),
    ],
)
def test_an_error_has_the_status_of_who_can_act(error: errors.ServingError, status: int, retry: bool) -> None:
    answer = error_response(error)
    assert (answer.status, b"retry-after" in answer.headers) == (status, retry)
    assert answer.body == b'{"error":"x"}'


def test_metadata_tells_how_rows_stand_in_the_one_tensor_form(server: InferenceServer) -> None:
    parameters = json.loads(ask(server, "GET", "/v2/models/delay").body)["parameters"]
    assert parameters["matrix"] == {
        "name": "x",
        "columns": ["hour", "wind", "rain", "carrier"],
        "categories": {"carrier": ["AA", "B6", "UA"]},
    }
