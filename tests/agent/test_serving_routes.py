"""The walk of a request through the routes: answer, shadow, capture; and the status that tells of it."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from landreeve_agent.intake.line import Line, parse_lines
from landreeve_agent.serving import oip
from landreeve_agent.serving.capture import Spool
from landreeve_agent.serving.control import Plan, Route, Share
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError, ServingError, UnknownError
from landreeve_agent.serving.metrics import Metrics
from landreeve_agent.serving.model import LoadedModel, load
from landreeve_agent.serving.routes import Answered, Routes, Serving
from landreeve_agent.serving.session import Array, OnnxRuntime, Opened, Session
from landreeve_agent.serving.split import point_of, unit_of
from landreeve_models.features.pipeline import Pipeline

from tests.agent.onnx_models import COLUMNS, answers, body, graph, pipeline, version, write_release
from tests.models.tensor_releases import image_release, images


class Failing:
    """A session whose every run fails."""

    inputs, outputs = ("x",), ("p",)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        raise RunFailedError(f"no luck with {len(feeds[0])} rows")


class Sleepy:
    """A session that answers 0.75, late."""

    inputs, outputs = ("x",), ("p",)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        time.sleep(0.4)
        return [np.full(len(feeds[0]), 0.75, np.float32)]


def with_session(model: LoadedModel, session: Session) -> LoadedModel:
    return dataclasses.replace(model, opened=Opened(session, Plan(), ""))


def read(answer: Answered | ServingError) -> dict[str, object]:
    """What the caller would read."""
    if not isinstance(answer, Answered):
        return {"error": str(answer)}
    body, _ = oip.encode(answer.interface, answer.request, answer.ids, answer.outputs)
    return msgspec.json.decode(body, type=dict)


class Stand:
    """Routes over a real spool, and what they answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.routes = Routes(Spool(folder / "spool", 1), self.metrics)
        self.routes.alone = lambda: True
        self.answered: list[Answered | ServingError] = []

    def serve(self, active: LoadedModel, shadow: LoadedModel | None = None) -> None:
        route = Route("delay", active.version, shadow.version if shadow else None)
        lane = self.routes.make_lane
        self.routes.replace({"delay": Serving(route, lane(active), lane(shadow) if shadow else None)})

    def ask(self, document: object, model: str = "delay", name: str | None = None) -> dict[str, object]:
        request = oip.decode(msgspec.json.encode(document), None, self.routes.interface(model, name))
        self.routes.submit(model, name, request, self.answered.append)
        answer = self.answered[-1]
        return read(answer)

    async def wait(self, document: object) -> dict[str, object]:
        """Ask a model that answers from its thread."""
        before = len(self.answered)
        request = oip.decode(msgspec.json.encode(document), None, self.routes.interface("delay", None))
        self.routes.submit("delay", None, request, self.answered.append)
        while len(self.answered) == before:  # noqa: ASYNC110 - the answer arrives through a plain callback
            await asyncio.sleep(0.005)
        return read(self.answered[-1])

    def lines(self) -> tuple[Line, ...]:
        data = b"".join(p.read_bytes() for p in sorted((self.folder / "spool").iterdir()))
        return parse_lines(data, 0, closed=True).lines


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., LoadedModel]:
    def make(name: str = "1.0.0", bias: float = 0.0) -> LoadedModel:
        return load(version(write_release(tmp_path / name, bias), name), checked=True)

    return make


def expected(bias: float = 0.0) -> float:
    x = pipeline().encode([{"hour": 9.5, "wind": 4.0, "carrier": "UA"}])
    return float(answers(graph(bias), np.nan_to_num(x))[0])


async def test_the_answer_is_the_active_models_and_the_shadows_is_only_captured(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    stand.serve(model(), model("2.0.0", bias=2.0))
    outputs = stand.ask(body())["outputs"]
    (line,) = stand.lines()
    assert outputs == [{"name": "probability", "datatype": "FP32", "shape": [1], "data": [pytest.approx(expected())]}]
    assert line.p == pytest.approx(expected(), abs=1e-6)
    assert line.shadow == pytest.approx(expected(2.0), abs=1e-6)
    assert line.row == {"hour": 9.5, "wind": 4.0, "rain": None, "carrier": "UA"}
    assert (line.id, line.at, line.version) == ("r1", "2026-01-31T09:30:00Z", "1.0.0")


async def test_a_failing_shadow_never_hurts_the_answer(stand: Stand, model: Callable[..., LoadedModel]) -> None:
    stand.serve(model(), with_session(model("2.0.0"), Failing()))
    assert "outputs" in stand.ask(body())
    (line,) = stand.lines()
    assert (line.shadow, line.err) == (None, None)
    assert stand.metrics.counts().shadow_failures == 1


async def test_slow_graphs_answer_from_their_threads_and_shadows_too(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    stand.serve(dataclasses.replace(model(), quick=False), dataclasses.replace(model("2.0.0", bias=2.0), quick=False))
    assert "outputs" in await stand.wait(body())
    (line,) = stand.lines()
    assert line.p == pytest.approx(expected(), abs=1e-6)
    assert line.shadow == pytest.approx(expected(2.0), abs=1e-6)
    stand.routes.replace({})


async def test_a_shadow_that_is_too_slow_does_not_hold_the_answer_back(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    stand.serve(model(), dataclasses.replace(with_session(model("2.0.0"), Sleepy()), quick=False))
    assert "outputs" in await stand.wait(body())
    (line,) = stand.lines()
    assert line.shadow is None
    await asyncio.sleep(0.5)
    assert (len(stand.lines()), len(stand.answered)) == (1, 1)
    assert stand.metrics.counts().shadow_failures == 1
    stand.routes.replace({})


async def test_a_failed_run_is_captured_with_its_reason_and_answered_as_an_error(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    stand.serve(with_session(model(), Failing()))
    assert stand.ask(body()) == {"error": "no luck with 1 rows"}
    (line,) = stand.lines()
    assert (line.p, line.err) == (None, "no luck with 1 rows")
    assert stand.metrics.counts().errors == 1


async def test_a_model_that_answers_nan_fails_its_runs(stand: Stand, tmp_path: Path) -> None:
    stand.serve(load(version(write_release(tmp_path / "nan", nan=True)), checked=True))
    assert stand.ask(body()) == {"error": "the graph answered NaN or infinity"}


async def test_rows_of_a_request_are_named_by_ids_or_by_their_place(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    stand.serve(model())
    two = [
        {"name": "hour", "datatype": "FP64", "shape": [2], "data": [1, 2]},
        {"name": "wind", "datatype": "FP64", "shape": [2], "data": [1, 2]},
        {"name": "carrier", "datatype": "BYTES", "shape": [2], "data": ["AA", "??"]},
    ]
    stand.ask({"id": "x", "inputs": two})
    stand.ask({"inputs": two, "parameters": {"ids": ["a", "b"]}})
    made = stand.ask({"inputs": body()["inputs"]})["id"]
    assert [line.id for line in stand.lines()] == ["x/0", "x/1", "a", "b", made]


async def test_unknown_models_and_versions_are_told_what_there_is(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    with pytest.raises(UnknownError, match="there are: none yet"):
        stand.ask(body())
    stand.serve(model())
    with pytest.raises(UnknownError, match="model 'price' is not served here; there are: delay"):
        stand.ask(body(), model="price")
    with pytest.raises(UnknownError, match=r"version '9' of model 'delay' is not served here; there is: 1\.0\.0"):
        stand.ask(body(), name="9")
    assert stand.lines() == ()


async def test_a_full_disk_is_counted_and_costs_no_answer(stand: Stand, model: Callable[..., LoadedModel]) -> None:
    stand.serve(model())
    stand.routes._spool.close()
    assert "outputs" in stand.ask(body())
    assert stand.metrics.counts().capture_failures == 1
    assert "landreeve_capture_failures_total 1" in stand.metrics.text(0, {})


def test_a_device_that_is_not_there_gives_way_to_the_cpu_and_says_why(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    loaded = load(version(folder, plan=Plan("onnxruntime", "gpu", "fp32", 1, wanted="gpu")), checked=True)
    assert loaded.opened.used == "CPU · onnxruntime · fp32 · 1 thread"
    assert "this onnxruntime has no provider for gpu" in loaded.opened.reason


def test_a_tuned_graph_that_is_gone_gives_way_to_the_released_one(tmp_path: Path) -> None:
    plan = Plan(precision="int8", graph="model.int8.onnx")
    loaded = load(version(write_release(tmp_path), plan=plan), checked=True)
    assert loaded.opened.used == "CPU · onnxruntime · fp32 · 1 thread"
    assert loaded.opened.reason.startswith("model.int8.onnx is gone")


@pytest.mark.parametrize(
    ("damage", "cause", "words"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"nonsense"), "bad_graph", "model.onnx"),
        (lambda f: (f / "model.onnx").unlink(), "bad_release", "model.onnx"),
        (lambda f: (f / "features.json").write_bytes(b"{}"), "bad_release", "features.json"),
        (lambda f: (f / "definition.json").write_bytes(b"[]"), "bad_release", "definition"),
        (lambda f: (f / "calibration.safetensors").write_bytes(b"x" * 20), "bad_release", "calibration"),
    ],
)
def test_a_damaged_release_does_not_load_and_says_where(
    tmp_path: Path, damage: Callable[[Path], object], cause: str, words: str
) -> None:
    folder = write_release(tmp_path)
    damage(folder)
    with pytest.raises(LoadFailedError) as refusal:
        load(version(folder), checked=True)
    assert refusal.value.cause == cause
    assert words in refusal.value.sentence


def test_a_graph_outside_the_policy_is_refused_before_any_runtime_sees_it(tmp_path: Path) -> None:
    import onnx

    folder = write_release(tmp_path)
    foreign = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    foreign.graph.node[0].domain = "com.example"
    (folder / "model.onnx").write_bytes(foreign.SerializeToString())
    with pytest.raises(LoadFailedError, match=r"operator domain 'com\.example' is not accepted"):
        load(version(folder))


async def test_version_that_serves_on_in_a_new_table_keeps_its_threads(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    """A change of routes touches a version that stays in no way."""
    slow = dataclasses.replace(with_session(model(), Sleepy()), quick=False)
    stand.serve(slow)
    before = stand.routes.table["delay"]
    assert "outputs" in await stand.wait(body(id="a"))
    stand.routes.replace({"delay": dataclasses.replace(before)})
    assert "outputs" in await stand.wait(body(id="b"))


def split(stand: Stand, active: LoadedModel, *others: tuple[LoadedModel, float], key: str = "") -> None:
    """Serve the active version, and shares of the others."""
    shares = tuple(Share(model.version, share) for model, share in others)
    lane = stand.routes.make_lane
    serving = Serving(
        Route("delay", active.version, None, shares, key),
        lane(active),
        None,
        None,
        tuple(lane(model) for model, _ in others),
    )
    stand.routes.replace({"delay": serving})


async def test_a_share_answers_its_part_and_the_same_key_always_meets_the_same_version(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    split(stand, model(), (model("2.0.0", bias=2.0), 0.3))
    for i in range(200):
        for _ in range(2):
            stand.ask(body(id=f"{i}", parameters={"key": f"customer-{i % 100}"}))
    lines = stand.lines()
    met = {i % 100: {line.version for line in lines if int(line.id) % 100 == i % 100} for i in range(100)}
    assert all(len(versions) == 1 for versions in met.values())
    assert 15 <= sum(versions == {"2.0.0"} for versions in met.values()) <= 45
    assert {line.version: line.p for line in lines} == {
        "1.0.0": pytest.approx(expected(), abs=1e-6),
        "2.0.0": pytest.approx(expected(2.0), abs=1e-6),
    }


async def test_how_the_split_chose_is_kept_with_each_row_and_the_key_itself_is_not(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    """What was kept gives the same assignment again, whichever way the request named its key."""
    split(stand, model(), (model("2.0.0", bias=2.0), 0.4), key="carrier")
    for i in range(60):
        stand.ask(body(id=f"key-{i}", parameters={"key": f"ann.{i}@example.com"}))
    stand.ask(body(id="column-0"))
    stand.ask(body(id="asked-0"), name="2.0.0")
    lines = {line.id: line for line in stand.lines()}
    good, new = (lane.model.version.release for lane in stand.routes.table["delay"].lanes())
    for line in lines.values():
        if line.id == "asked-0":  # its caller chose, and not the split
            assert (line.unit, line.by, line.arm, line.against, line.share) == (None,) * 5
            continue
        key = f"ann.{line.id[4:]}@example.com" if line.by == "key" else "UA"
        assert line.unit == unit_of("delay", key)
        assert line.arm == ("new" if point_of(line.unit) < line.share else "good")
        assert (line.release, line.against) == ((new, good) if line.arm == "new" else (good, new))
    assert {line.by for line in lines.values()} == {"key", "column", None}
    assert {line.arm for line in lines.values()} == {"new", "good", None}
    spooled = b"".join(path.read_bytes() for path in (stand.folder / "spool").iterdir())
    assert b"example.com" not in spooled


async def test_nothing_is_called_assigned_where_nothing_is_split(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    split(stand, model(), (model("2.0.0", bias=2.0), 0.0))  # it stands by
    stand.ask(body(id="a", parameters={"key": "customer-1"}))
    stand.serve(model(), model("2.0.0", bias=2.0))
    stand.ask(body(id="b", parameters={"key": "customer-1"}))
    assert [(line.unit, line.arm, line.version) for line in stand.lines()] == [(None, None, "1.0.0")] * 2


async def test_a_share_encodes_rows_by_its_own_pipeline(
    stand: Stand, model: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    folder = write_release(tmp_path / "other")
    carriers = {"carrier": {"UA": 0.0, "AA": 1.0, "B6": 2.0}}  # another order than the active version learnt
    (folder / "features.json").write_bytes(Pipeline(COLUMNS, carriers).to_bytes())
    other = load(version(folder, "2.0.0"), checked=True)
    split(stand, model(), (other, 1.0))
    stand.ask(body())
    x = np.array([[9.5, 4.0, 0.0, 0.0]], np.float32)
    assert stand.lines()[0].p == pytest.approx(float(answers(graph(), x)[0]), abs=1e-6)


async def test_a_version_asked_by_name_answers_whatever_the_shares_say(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    split(stand, model(), (model("2.0.0", bias=2.0), 1.0))
    assert stand.ask(body(), name="1.0.0")["model_version"] == "1.0.0"
    assert stand.ask(body(), name="2.0.0")["model_version"] == "2.0.0"
    with pytest.raises(UnknownError, match=r"there is: 1\.0\.0, 2\.0\.0"):
        stand.ask(body(), name="3.0.0")


async def test_a_picture_is_answered_and_only_numbers_about_it_are_captured(stand: Stand, tmp_path: Path) -> None:
    folder = image_release(tmp_path / "corner")
    loaded = load(version(folder, model="corner"), checked=True)
    stand.routes.replace({"corner": Serving(Route("corner", loaded.version), stand.routes.make_lane(loaded), None)})
    x, _ = images(2, seed=5)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    before = len(stand.answered)
    request = oip.decode(
        msgspec.json.encode({"id": "pic", "inputs": [tensor]}), None, stand.routes.interface("corner", None)
    )
    stand.routes.submit("corner", None, request, stand.answered.append)
    while len(stand.answered) == before:  # noqa: ASYNC110 - the answer arrives through a plain callback
        await asyncio.sleep(0.005)
    outputs: Any = read(stand.answered[-1])["outputs"]
    (wanted,) = OnnxRuntime(Plan(), (folder / "model.onnx").read_bytes()).run([x])
    assert outputs[0]["shape"] == [2, 4]
    assert outputs[0]["data"] == pytest.approx(wanted.reshape(-1).tolist(), abs=1e-5)
    lines = stand.lines()
    assert [line.id for line in lines] == ["pic/0", "pic/1"]
    assert set(lines[0].row) == {"image.mean", "image.std"}
    assert lines[0].row["image.mean"] == pytest.approx(float(x[0].mean()), abs=1e-4)
    assert lines[0].p == pytest.approx(float(wanted[0].max()), abs=1e-5)
    stand.routes.replace({})


async def test_where_requests_spent_their_time_is_told_by_stage(
    stand: Stand, model: Callable[..., LoadedModel]
) -> None:
    stand.serve(model())
    for i in range(3):
        stand.ask(body(id=f"{i}"))
    text = stand.metrics.text(0, {})
    for stage in ("decode", "queue", "features", "run", "encode"):
        assert f'landreeve_stage_seconds_count{{model="delay",stage="{stage}"}} 3' in text
    assert 'landreeve_batch_rows_bucket{model="delay",le="1"} 3' in text
