"""Two releases on probation in one real worker, one of which ends it from within its own run: only that one is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig
from landreeve.wire.messages import DesiredModel, Probation
from landreeve.wire.strategy import Strategy
from landreeve_agent.inference import restarted
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.serving.control import Route
from landreeve_agent.serving.ending import Ending
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.options import Limits
from landreeve_agent.serving.supervise import WorkerProcess
from landreeve_agent.store.database import Database
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.runner import Runner
from landreeve_agent.update.standing import Phase, State
from landreeve_models.definition import encode_definition
from safetensors.numpy import save_file

from tests.agent.onnx_models import (
    TRAPS,
    body,
    crashing,
    definition,
    endless,
    graph,
    pipeline,
    rows,
    version,
    write_release,
)
from tests.fakes.update_box import NOW, QUICK, WAITING
from tests.fakes.update_ports import FakeEvidence, FakeFetcher, FakePreflight, FakeVerifier, Hub, Reaper, document
from tests.integration.test_worker_process import post, until

WILD = {"name": "wind", "datatype": "FP64", "shape": [1], "data": [5000.0]}


def release(model: str, graph_bytes: bytes) -> Packed:
    config = ReleaseConfig(
        model=model, family="mlp", created="2026-11-29T00:00:00Z", signature=definition(model).signature(),
        gates=Gates(), lineage=Lineage(),
    )  # fmt: skip
    files = {
        "model.onnx": graph_bytes,
        "definition.json": encode_definition(definition(model)),
        "features.json": pipeline().to_bytes(),
    }
    return pack(files, config)


def wanted(packed: Packed, model: str, version: str, kind: str = "direct", max_crashes: int = 2) -> DesiredModel:
    probation = Probation(min_rows=10, min_labelled=0, max_crashes=max_crashes)
    return DesiredModel(
        model=model, release=packed.digest, version=version, manifest_bytes=len(packed.manifest_bytes),
        rollout=f"{model}-{version}", probation=probation, strategy=Strategy(kind=kind),  # type: ignore[arg-type]
    )  # fmt: skip


class Box:
    """The real runner with a real worker; what is fetched, proven and judged is told by the test."""

    def __init__(self, root: Path) -> None:
        self.hub, reaper = Hub(), Reaper()
        self.ends: list[Ending] = []
        self.worker = WorkerProcess(root / "spool", on_restart=self._ended)
        self.database = Database(root / "agent.db")
        blobs = BlobStore(root / "blobs", margin_bytes=0)
        self.runner = Runner(
            self.database, Outbox(self.database), FakeVerifier(self.hub), FakeFetcher(self.hub, blobs, reaper), blobs,
            root / "models", self.worker, FakePreflight(self.hub, reaper), FakeEvidence(self.hub, reaper), lambda: NOW,
            agent_version="0.1.0", options=QUICK,
        )  # fmt: skip
        self._told: set[asyncio.Task[None]] = set()

    def _ended(self, ending: Ending) -> None:
        self.ends.append(ending)
        self._told.add(asyncio.ensure_future(self.runner.worker_restarted(ending)))

    def add(self, model: str, graph_bytes: bytes, stats: ProbationStats | None = None) -> Packed:
        packed = release(model, graph_bytes)
        self.hub.add(packed, stats)
        return packed

    async def until(self, model: str, phase: Phase) -> State:
        async with asyncio.timeout(60):
            while model not in self.runner.views or self.state(model).phase is not phase:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.state(model)

    def state(self, model: str) -> State:
        return self.runner.views[model].state

    async def ask(self, model: str, *changed: dict[str, object]) -> str:
        """The version that answered; empty when the worker died over it."""
        named = {tensor["name"] for tensor in changed}
        inputs = [*changed, *(tensor for tensor in body()["inputs"] if tensor["name"] not in named)]  # type: ignore[attr-defined]
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            return str((await post(self.worker, body(inputs=inputs), f"/v2/models/{model}/infer"))[1]["model_version"])
        return ""

    async def keep_asking(self, model: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.ask(model)


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[Box]:
    box = Box(root)
    await box.worker.start()
    await box.runner.recover()
    life = asyncio.create_task(box.runner.run())
    try:
        yield box
    finally:
        life.cancel()
        await asyncio.gather(life, *box._told, return_exceptions=True)
        await box.worker.stop()
        box.database.close()


@pytest.mark.skipif(not TRAPS, reason="here the smallest integer divided by -1 is no fault")
@pytest.mark.parametrize(
    ("kind", "max_crashes", "deaths"),
    [
        pytest.param("direct", 2, 2, id="answers, until it may die no more"),
        pytest.param("shadow", 5, 3, id="listens, until the worker goes on without shadows"),
    ],
)
async def test_only_the_version_that_kills_the_worker_is_rolled_back(
    tmp_path: Path, kind: str, max_crashes: int, deaths: int
) -> None:
    async with running(tmp_path) as box:
        good = box.add("delay", graph())
        await box.runner.on_desired(document(1, wanted(good, "delay", "1.0.0")))
        await box.until("delay", Phase.COMMITTED)
        bad, innocent = box.add("delay", crashing(), WAITING), box.add("price", endless(4000), WAITING)
        await box.runner.on_desired(
            document(2, wanted(bad, "delay", "2.0.0", kind, max_crashes), wanted(innocent, "price", "1.0.0"))
        )
        await box.until("delay", Phase.PROBATION)
        await box.until("price", Phase.PROBATION)
        # It nearly always has a run under way, in a thread of its own.
        stop = asyncio.Event()
        callers = [asyncio.create_task(box.keep_asking("price", stop)) for _ in range(2)]
        async with asyncio.timeout(60):
            while box.state("delay").phase is Phase.PROBATION:
                await box.ask("delay", WILD)
        state = await box.until("delay", Phase.ROLLED_BACK)
        stop.set()
        await asyncio.gather(*callers)
        assert (state.cause, state.crashes) == ("worker_crashed", deaths)
        assert "(last: signal SIGFPE while delay 2.0.0 was running)" in state.sentence
        assert "(signal SIGFPE) while delay 2.0.0 was running; it was" in restarted(box.ends[0]).sentence
        assert [end.during for end in box.ends] == [" while delay 2.0.0 was running"] * len(box.ends)
        assert (box.state("price").phase, box.state("price").crashes) == (Phase.PROBATION, 0)
        box.hub.stats[innocent.digest] = ProbationStats(rows=100, distinct=50)
        await box.until("price", Phase.COMMITTED)
        assert (await box.ask("delay", WILD), await box.ask("price")) == ("1.0.0", "1.0.0")


def made(root: Path, model: str, graph_bytes: bytes, **sample: float) -> Route:
    """A route to a version whose first runs get that row."""
    folder = write_release(root / model)
    (folder / "model.onnx").write_bytes(graph_bytes)
    x = rows(128)
    x[0, 1] = sample.get("wind", x[0, 1])
    save_file({"x": x}, folder / "calibration.safetensors")
    return Route(model, version(folder, "2.0.0", model=model))


async def keep_posting(worker: WorkerProcess, model: str, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with suppress(ConnectionError):
            await post(worker, body(), f"/v2/models/{model}/infer")


async def test_a_hang_of_the_event_loop_is_told_to_the_run_on_it(tmp_path: Path) -> None:
    ends: list[Ending] = []
    limits = Limits(hang_s=0.4, ask_every_s=0.1)
    worker = WorkerProcess(tmp_path / "spool", on_restart=ends.append, limits=limits)
    await worker.start()
    try:
        await worker.apply((made(tmp_path, "quick", endless(10)), made(tmp_path, "slow", endless())))
        stop = asyncio.Event()
        beside = asyncio.create_task(keep_posting(worker, "slow", stop))
        wild = [WILD if tensor["name"] == "wind" else tensor for tensor in body()["inputs"]]  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            await post(worker, body(inputs=wild), "/v2/models/quick/infer")
        await until(lambda: bool(ends))
        stop.set()
        await beside
        assert [(end.cause, end.during) for end in ends] == [("hung", " while quick 2.0.0 was running")]
        assert [one.model for one in ends[0].suspects] == ["quick"]
    finally:
        await worker.stop()


@pytest.mark.skipif(not TRAPS, reason="here the smallest integer divided by -1 is no fault")
async def test_a_death_while_a_version_is_loaded_is_told_to_that_load(tmp_path: Path) -> None:
    ends: list[Ending] = []
    worker = WorkerProcess(tmp_path / "spool", on_restart=ends.append)
    await worker.start()
    try:
        good = made(tmp_path, "slow", endless())
        await worker.apply((good,))
        stop = asyncio.Event()
        beside = asyncio.create_task(keep_posting(worker, "slow", stop))
        with pytest.raises(LoadFailedError):
            await worker.apply((made(tmp_path, "bad", crashing(), wind=5000.0), good))
        await until(lambda: bool(ends))
        stop.set()
        await beside
        assert [end.during for end in ends] == [" while bad 2.0.0 was being loaded"]
        assert [(one.model, one.loading) for one in ends[0].suspects] == [("bad", True)]
    finally:
        await worker.stop()
