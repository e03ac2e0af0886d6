"""The example application against a server that behaves badly: every departure once, in order, labels in time."""

import csv
import gzip
import importlib.util
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "models/catalog/flight-delay/data"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("replay_application", ROOT / "docs/examples/replay.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


replay = load()


class Agent(ThreadingHTTPServer):
    """Keeps what it was sent. ``model`` is whether there is one; ``failures`` are answered first, then dropped."""

    daemon_threads = True

    def __init__(self) -> None:
        self.model = False
        self.failures: list[int] = []
        self.infers: list[dict[str, Any]] = []
        self.samples: dict[str, dict[str, Any]] = {}
        self.labels: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # head and body in one write
    server: Agent

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            if self.server.failures:
                status = self.server.failures.pop(0)
                if status == 0:
                    self.close_connection = True
                    return
                self._answer(status, {})
                return
            self._answer(*self._take(body))

    def _take(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.path == "/v2/models/flight-delay/infer":
            if not self.server.model:
                return 404, {"error": "no such model"}
            self.server.infers.append(body)
            return 200, {"model_version": "3", "outputs": [{"name": "probability", "data": [0.25]}]}
        assert self.headers["Authorization"] == "Bearer secret"
        kind = self.path.rsplit("/", 1)[1]
        kept = self.server.samples if kind == "samples" else self.server.labels
        kept.update({item["id"]: item for item in body[kind]})
        return 200, {"accepted": len(body[kind]), "repeated": 0}

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        del format, args


@pytest.fixture
def agent() -> Iterator[Agent]:
    server = Agent()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The first two days of a real site."""
    path = tmp_path / "EWR.csv.gz"
    with gzip.open(DATA / "EWR.csv.gz", "rt") as lines, gzip.open(path, "wt") as out:
        for line, _ in zip(lines, range(600), strict=False):
            out.write(line)
    return path


@pytest.fixture
def application(agent: Agent) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(data: Path, log: Path) -> Any:
        made.append(start(agent, data, log))
        return made[-1]

    yield make
    for each in made:
        each.close()


def start(agent: Agent, data: Path, log: Path, every: int = 1) -> Any:
    kept = replay.Log(log)
    made = replay.Application(
        replay.read_departures("EWR", data, every), replay.Server(agent.url), replay.Server(agent.url, "secret"), kept
    )
    if kept.last:
        made.remember(d for d in replay.read_departures("EWR", data, every) if d.id <= kept.last)
    return made


def run(made: Any, *commands: str) -> list[dict[str, Any]]:
    out = io.StringIO()
    assert replay.serve(made, io.StringIO("\n".join(commands) + "\n"), out) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def log_of(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


def test_before_there_is_a_model_rows_are_collected_then_answered(
    agent: Agent, application: Any, data: Path, tmp_path: Path
) -> None:
    made = application(data, tmp_path / "log.csv")
    (first,) = run(made, "until 2013-01-01T17:00:00Z")
    assert first["sent"] == first["collected"] == len(agent.samples) > 50
    assert first["answered"] == 0
    agent.model = True
    (second,) = run(made, "until 2013-01-02T00:00:00Z", "quit")
    assert second["sent"] == second["answered"] == len(agent.infers)
    assert second["p95_us"] >= second["p50_us"] > 0
    kept = log_of(tmp_path / "log.csv")
    assert [row["id"] for row in kept] == sorted({row["id"] for row in kept})
    assert kept[0]["version"] == "" == kept[0]["probability"]
    assert (kept[-1]["version"], kept[-1]["probability"]) == ("3", "0.25")


def test_request_is_an_open_inference_request_with_id_time_and_known_columns(
    agent: Agent, application: Any, data: Path, tmp_path: Path
) -> None:
    agent.model = True
    run(application(data, tmp_path / "log.csv"), "until 2013-01-01T11:00:00Z")
    request = agent.infers[0]
    assert request["id"] == "EWR-000000"
    assert request["parameters"]["at"] == "2013-01-01T10:15:00Z"
    assert {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["UA"]} in request["inputs"]
    assert "recent_late" not in {tensor["name"] for tensor in request["inputs"]}


def test_no_label_is_told_before_the_world_knows_it(agent: Agent, application: Any, data: Path, tmp_path: Path) -> None:
    run(application(data, tmp_path / "log.csv"), "until 2013-01-01T20:00:00Z")
    now = datetime(2013, 1, 1, 20, tzinfo=UTC)
    departures = {d.id: d for d in replay.read_departures("EWR", data)}
    assert set(agent.labels) == {d.id for d in departures.values() if d.known <= now and d.at < now}
    for name, label in agent.labels.items():
        assert label["label"] == departures[name].label
        assert label["at"] == replay.rfc3339(departures[name].known)


def test_failing_server_is_asked_until_it_answers_and_nothing_is_doubled(
    agent: Agent, application: Any, data: Path, tmp_path: Path
) -> None:
    agent.model = True
    agent.failures = [503, 0, 500, 0]
    (report,) = run(application(data, tmp_path / "log.csv"), "until 2013-01-01T12:00:00Z")
    assert report["retries"] >= 2
    ids = [request["id"] for request in agent.infers]
    assert len(ids) == len(set(ids)) == report["answered"] + report["collected"] - len(agent.samples)
    assert {*ids, *agent.samples} == {row["id"] for row in log_of(tmp_path / "log.csv")}


def test_server_that_restarts_is_waited_for_once_it_had_a_model(
    agent: Agent, application: Any, data: Path, tmp_path: Path
) -> None:
    agent.model = True
    made = application(data, tmp_path / "log.csv")
    run(made, "until 2013-01-01T12:00:00Z")
    agent.failures = [404, 404, 0, 503]
    (report,) = run(made, "until 2013-01-01T13:00:00Z")
    assert report["collected"] == 0
    assert report["retries"] == 4


def test_killed_application_goes_on_after_its_last_line(
    agent: Agent, application: Any, data: Path, tmp_path: Path
) -> None:
    agent.model = True
    log = tmp_path / "log.csv"
    run(application(data, log), "until 2013-01-01T15:00:00Z")
    with log.open("a") as out:
        out.write("EWR-0000")  # a kill in the middle of a line
    labels = dict(agent.labels)
    agent.labels.clear()
    run(application(data, log), "until 2013-01-02T15:00:00Z")
    ids = [request["id"] for request in agent.infers]
    assert len(ids) == len(set(ids))
    assert ids == [row["id"] for row in log_of(log)]
    due = {d.id for d in replay.read_departures("EWR", data) if d.known <= datetime(2013, 1, 2, 15, tzinfo=UTC)}
    assert due <= {*labels, *agent.labels}


def test_shortened_year_keeps_ids_and_features_of_the_whole(data: Path) -> None:
    whole = {d.id: d for d in replay.read_departures("EWR", data)}
    short = list(replay.read_departures("EWR", data, 7))
    assert len(short) == -(-len(whole) // 7)
    assert all(whole[d.id] == d for d in short)


def test_recent_late_knows_only_what_was_certain(data: Path) -> None:
    departures = list(replay.read_departures("EWR", data))
    for d in departures[200:260]:
        known = [e for e in departures if 3600 <= (d.at - e.at).total_seconds() <= 3 * 3600]
        earlier = [e for e in known if (d.at - e.at).total_seconds() > 3600]
        share = sum(e.label for e in earlier) / len(earlier) if len(earlier) >= 3 else None
        assert d.row.get("recent_late") == pytest.approx(share)


def test_refused_request_stops_with_the_reason(agent: Agent, application: Any, data: Path, tmp_path: Path) -> None:
    agent.model = True
    agent.failures = [422]
    with pytest.raises(replay.RefusedError, match="422"):
        run(application(data, tmp_path / "log.csv"), "until 2013-01-01T12:00:00Z")
