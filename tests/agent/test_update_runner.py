"""The runner with a real store, real blobs and files; worker, network and judgement are fakes."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.wire.codec import decode
from landreeve.wire.messages import Audit, Event, Fact, PlanReport, UpdateReport
from landreeve.wire.plans import RunPlan
from landreeve.wire.schedule import DayWindow, Schedule
from landreeve.wire.strategy import Strategy
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.update import journal
from landreeve_agent.update.machine import ATTEMPTS, effect_of
from landreeve_agent.update.pointer import read_pointers
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.runner import Options, Runner
from landreeve_agent.update.standing import TERMINAL, Phase, State
from sqlite_utils import Database as SqliteDatabase

from tests.fakes.update_ports import (
    FakeEvidence,
    FakeFetcher,
    FakePreflight,
    FakeVerifier,
    FakeWorker,
    Hub,
    MortalDatabase,
    Reaper,
    document,
    release,
    wanted,
)

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
A, B, C, D = (release(version) for version in "ABCD")
WORSE = ProbationStats(rows=100, invalid=3)
WAITING = ProbationStats(rows=1)
QUICK = Options(threads=1, probation_every_s=0.005, retry_s=0.0, restore_every_s=0.01, window_every_s=0.02)


class Box:
    """One device. `start` boots the agent, `kill` ends it as a power cut does: nothing is told, files stay."""

    def __init__(self, root: Path, choose: Callable[[str], bool] = lambda _step: False) -> None:
        self.root = root
        self.hub = Hub()
        for packed in (A, B, C, D):
            self.hub.add(packed)
        self.choose = choose
        self.desired = document(0)
        self.worker: FakeWorker

    async def start(self) -> None:
        self.reaper = Reaper(self.choose)
        self.database = MortalDatabase(self.root / "agent.db")
        self.database.reaper = self.reaper
        self.outbox = Outbox(self.database)
        self.worker = FakeWorker(self.hub, self.reaper)
        self.preflight = FakePreflight(self.hub, self.reaper)
        blobs = BlobStore(self.root / "blobs", margin_bytes=0)
        self.runner = Runner(
            self.database,
            self.outbox,
            FakeVerifier(self.hub),
            FakeFetcher(self.hub, blobs, self.reaper),
            blobs,
            self.root / "models",
            self.worker,
            self.preflight,
            FakeEvidence(self.hub, self.reaper),
            lambda: NOW,
            agent_version="0.1.0",
            options=QUICK,
        )
        self.life = asyncio.create_task(self._live())

    async def _live(self) -> None:
        await self.runner.recover()
        if self.desired.generation:
            await self.runner.on_desired(self.desired)  # the broker retains it
        await self.runner.run()

    async def kill(self) -> None:
        self.life.cancel()
        await asyncio.gather(self.life, return_exceptions=True)
        self.database.close()

    async def order(self, generation: int, *models: Any) -> None:
        self.desired = document(generation, *models)
        await self.runner.on_desired(self.desired)

    async def until(self, phase: Phase, generation: int = 0) -> State:
        async with asyncio.timeout(60):
            while True:
                state = self.state
                ended = state is not None and (phase not in TERMINAL or effect_of(state) is None)
                came = state is not None and state.order is not None and state.order.generation >= generation
                if state is not None and ended and came and state.phase is phase:
                    return state
                await asyncio.sleep(0.002)

    @property
    def state(self) -> State | None:
        view = self.runner.views.get("demo")
        return view.state if view else None

    async def settled(self) -> dict[str, tuple[str, str | None]]:
        """Who serves once everything is done."""
        async with asyncio.timeout(10):
            while busy := [drive for drive in self.runner._drives.values() if not drive.done()]:
                await asyncio.wait(busy)
        return self.worker.serves

    async def settled_after_start(self) -> dict[str, tuple[str, str | None]]:
        async with asyncio.timeout(10):
            while not self.runner._drives:  # noqa: ASYNC110 - the runner has no reason to announce its start
                await asyncio.sleep(0.002)
        return await self.settled()

    async def transitions(self) -> list[tuple[str, str, str]]:
        """(rollout, phase, cause) in order."""

        def read(db: SqliteDatabase) -> list[tuple[str, str, str]]:
            return list(db.conn.execute("SELECT rollout, state, cause FROM transitions ORDER BY n"))

        return await self.database.read(read)

    async def facts(self) -> list[Fact]:
        return [decode(row.body, Fact) for row in await self.outbox.pending(0, 10_000)]


@pytest.fixture
async def box(tmp_path: Path):
    box = Box(tmp_path)
    await box.start()
    yield box
    await box.kill()


async def test_first_model_goes_all_the_way(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    state = await box.until(Phase.COMMITTED)
    assert state.good is not None
    assert state.good.release == A.digest
    assert await box.settled() == {"demo": ("A", None)}
    assert [phase for _, phase, _ in await box.transitions()] == [
        "RECEIVED", "VERIFIED", "DOWNLOADING", "STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "COMMITTED",
    ]  # fmt: skip
    assert read_pointers(box.root / "models")["demo"].version == "A"


async def test_last_good_listens_in_while_the_new_version_is_on_probation(box: Box) -> None:
    box.hub.stats[B.digest] = WAITING
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.PROBATION)
    assert box.worker.serves == {"demo": ("B", "A")}
    box.hub.stats[B.digest] = ProbationStats(rows=50, distinct=9)
    await box.until(Phase.COMMITTED)
    assert await box.settled() == {"demo": ("B", None)}


async def test_bad_version_returns_to_the_last_good_by_itself(box: Box) -> None:
    box.hub.stats[B.digest] = WORSE
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    state = await box.until(Phase.ROLLED_BACK)
    assert (state.cause, state.sentence) == (
        "invalid_output",
        "3 answers of 100 were no probability; version A serves again.",
    )
    assert await box.settled() == {"demo": ("A", None)}
    reports = [fact.body for fact in await box.facts() if isinstance(fact.body, UpdateReport)]
    assert (reports[-1].state, reports[-1].rollout, reports[-1].data["good"]) == ("ROLLED_BACK", "r2", A.digest)


async def test_first_model_that_fails_is_withdrawn(box: Box) -> None:
    box.hub.stats[A.digest] = WORSE
    await box.order(1, wanted(A, "A", "r1"))
    state = await box.until(Phase.ROLLED_BACK)
    assert state.good is None
    assert "collects again" in state.sentence
    assert await box.settled() == {}
    assert read_pointers(box.root / "models") == {}
    await box.order(2, wanted(C, "C", "r2"))
    await box.until(Phase.COMMITTED)
    assert await box.settled() == {"demo": ("C", None)}


async def test_release_that_fails_preflight_never_serves(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    box.hub.preflight_fails[D.digest] = "golden_mismatch"
    await box.order(2, wanted(D, "D", "r2"))
    state = await box.until(Phase.REJECTED)
    assert state.cause == "golden_mismatch"
    assert all("D" not in (r.active.version, r.shadow and r.shadow.version) for h in box.worker.history for r in h)
    assert await box.settled() == {"demo": ("A", None)}


async def test_version_that_does_not_load_leaves_the_old_one_in_place(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    box.hub.does_not_load[B.digest] = "bad_graph"
    await box.order(2, wanted(B, "B", "r2"))
    state = await box.until(Phase.ROLLED_BACK)
    assert state.cause == "bad_graph"
    assert await box.settled() == {"demo": ("A", None)}


async def test_refused_document_changes_nothing_and_is_reported_once(box: Box) -> None:
    box.hub.unapproved.add(B.digest)
    for _ in range(3):
        await box.order(1, wanted(B, "B", "r1"))
    assert await box.transitions() == []
    assert box.runner.generation == 0
    events = [fact.body for fact in await box.facts() if isinstance(fact.body, Event)]
    assert [(event.name, event.cause) for event in events] == [("update.refused", "not_approved")]


async def test_stale_and_repeated_documents_change_nothing(box: Box) -> None:
    await box.order(5, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    before = await box.transitions()
    await box.order(5, wanted(B, "B", "r2"))
    await box.order(4, wanted(C, "C", "r3"))
    assert await box.transitions() == before
    assert box.runner.generation == 5


async def test_of_several_waiting_orders_only_the_newest_is_carried_out(box: Box) -> None:
    box.hub.stats[A.digest] = WAITING
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.PROBATION)
    for generation, packed, version in ((2, B, "B"), (3, C, "C"), (4, D, "D")):
        await box.order(generation, wanted(packed, version, f"r{generation}"))
    await box.until(Phase.COMMITTED)
    assert await box.settled() == {"demo": ("D", None)}
    assert [rollout for rollout, phase, _ in await box.transitions() if phase == "COMMITTED"] == ["r4"]


async def test_newer_order_cancels_a_download_that_hangs(box: Box) -> None:
    box.hub.reachable.clear()
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.DOWNLOADING)
    box.hub.reachable.set()
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.COMMITTED)
    assert ("r1", "CANCELLED", "superseded") in await box.transitions()
    assert await box.settled() == {"demo": ("B", None)}


async def test_bad_release_is_refused_under_the_same_rollout_and_accepted_under_a_newer(box: Box) -> None:
    box.hub.stats[B.digest] = WORSE
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.ROLLED_BACK)
    await box.order(3, wanted(A, "A", "r3"))
    await box.until(Phase.COMMITTED)
    await box.order(4, wanted(B, "B", "r2"))
    assert (await box.until(Phase.REJECTED)).cause == "quarantined"
    box.hub.stats[B.digest] = ProbationStats(rows=50, distinct=9)
    await box.order(5, wanted(B, "B", "r5"))
    await box.until(Phase.COMMITTED)
    assert await box.settled() == {"demo": ("B", None)}


async def test_person_on_the_site_returns_to_the_version_before(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    assert not (await box.runner.roll_back("demo", "admin")).accepted
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    assert (await box.runner.roll_back("demo", "admin")).accepted
    state = await box.until(Phase.ROLLED_BACK)
    assert state.cause == "local_rollback"
    assert await box.settled() == {"demo": ("A", None)}
    await box.order(3, wanted(B, "B", "r2"))
    assert await box.settled() == {"demo": ("A", None)}
    audits = [fact.body for fact in await box.facts() if isinstance(fact.body, Audit)]
    assert [audit.decision for audit in audits] == ["nothing_to_return_to", "allowed"]


async def test_hub_orders_the_return_to_an_older_release(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.COMMITTED)
    await box.order(3, wanted(A, "A", "r3", action="rollback"))
    state = await box.until(Phase.COMMITTED)
    assert (state.cause, await box.settled()) == ("ordered_back", {"demo": ("A", None)})


async def test_worker_that_keeps_dying_ends_the_probation(box: Box) -> None:
    box.hub.stats[B.digest] = WAITING
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.PROBATION)
    for _ in range(5):
        await box.runner.worker_restarted("signal SIGSEGV")
    assert (await box.until(Phase.ROLLED_BACK)).cause == "worker_crashed"
    assert await box.settled() == {"demo": ("A", None)}


async def test_start_without_any_network_serves_what_served(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    await box.kill()
    box.desired = document(0)
    box.hub.reachable.clear()
    await box.start()
    await asyncio.sleep(0)
    assert await box.settled_after_start() == {"demo": ("A", None)}


async def test_box_serves_on_when_its_store_is_lost(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    await box.kill()
    for path in box.root.glob("agent.db*"):
        path.unlink()
    box.desired = document(0)
    await box.start()
    assert await box.settled_after_start() == {"demo": ("A", None)}


async def test_damaged_version_is_replaced_by_the_one_before(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    await box.kill()
    (box.root / "models" / "demo" / B.digest[:12] / "model.onnx").write_bytes(b"rust")
    await box.start()
    assert await box.settled_after_start() == {"demo": ("A", None)}


async def test_files_of_releases_nobody_needs_are_removed_and_the_first_one_stays(box: Box) -> None:
    for generation, (packed, version) in enumerate(((A, "A"), (B, "B"), (C, "C"), (D, "D")), start=1):
        await box.order(generation, wanted(packed, version, f"r{generation}"))
        await box.until(Phase.COMMITTED)
        await box.settled()
    folders = {path.name for path in (box.root / "models" / "demo").iterdir() if path.is_dir()}
    assert folders == {A.digest[:12], C.digest[:12], D.digest[:12]}


STORY = ((A, "A", "r1"), (B, "B", "r2"), (C, "C", "r3"), (D, "D", "r4"))
ENDS = (Phase.COMMITTED, Phase.ROLLED_BACK, Phase.COMMITTED, Phase.REJECTED)


class Killer:
    """Chooses each step of each phase once, two of a phase in one round: attempts are bounded, rightly."""

    def __init__(self, round_: int) -> None:
        self.round = round_
        self.box: Box | None = None
        self.seen: Counter[tuple[str, str]] = Counter()
        self.done: set[tuple[str, str, str, int]] = set()
        self.kills = 0

    def __call__(self, step: str) -> bool:
        state = self.box.state if self.box is not None else None
        phase = state.phase.value if state is not None else "start"
        rollout = state.order.rollout if state is not None and state.order is not None else ""
        number = self.seen[(rollout, phase)]
        key = (rollout, phase, step, number)
        self.seen[(rollout, phase)] += 1
        if number // 2 != self.round or key in self.done:
            return False
        self.done.add(key)
        self.kills += 1
        return True


@pytest.mark.parametrize("round_", range(5))
async def test_power_cut_at_any_step_ends_in_the_same_place(tmp_path: Path, round_: int) -> None:
    killer = Killer(round_)
    box = Box(tmp_path, killer)
    killer.box = box
    box.hub.stats[B.digest] = WORSE
    box.hub.preflight_fails[D.digest] = "golden_mismatch"
    await box.start()
    for generation, ((packed, version, rollout), end) in enumerate(zip(STORY, ENDS, strict=True), start=1):
        box.desired = document(generation, wanted(packed, version, rollout))
        await survive(box, generation, end)
    assert killer.kills >= 1
    assert await box.settled() == {"demo": ("C", None)}
    assert read_pointers(tmp_path / "models")["demo"].version == "C"
    ends = [(r, phase) for r, phase, _ in await box.transitions() if Phase(phase) in TERMINAL]
    assert ends == [("r1", "COMMITTED"), ("r2", "ROLLED_BACK"), ("r3", "COMMITTED"), ("r4", "REJECTED")]
    await assert_reports_tell_the_transitions(box)
    await box.kill()


async def survive(box: Box, generation: int, end: Phase) -> None:
    """Boots the box again after every kill until that order has come to that end."""
    await box.kill()
    async with asyncio.timeout(60):
        while True:
            await box.start()
            state = await until_dead_or(box, generation, end)
            if state:
                return
            assert box.worker.routes or generation == 1 or not box.worker.history
            await box.kill()


async def until_dead_or(box: Box, generation: int, end: Phase) -> bool:
    while not box.reaper.killed.is_set():
        state = box.state
        if state is not None and state.generation == generation and state.phase is end:
            return True
        await asyncio.sleep(0.001)
    return False


async def assert_reports_tell_the_transitions(box: Box) -> None:
    facts = await box.facts()
    assert [fact.seq for fact in facts] == list(range(1, len(facts) + 1))
    reports = [fact.body for fact in facts if isinstance(fact.body, UpdateReport)]
    assert [(r.rollout, r.state, r.cause) for r in reports] == await box.transitions()


@pytest.mark.parametrize("phase", [Phase.PREFLIGHT, Phase.ACTIVATING])
async def test_release_that_kills_the_box_every_time_is_given_up(tmp_path: Path, phase: Phase) -> None:
    box = Box(tmp_path)
    await box.start()
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    step = {Phase.PREFLIGHT: "preflight begins", Phase.ACTIVATING: "apply begins"}[phase]
    box.choose = lambda name: name == step and box.state is not None and box.state.phase is phase
    box.desired = document(2, wanted(B, "B", "r2"))
    starts = 0
    while True:
        await box.kill()
        await box.start()
        starts += 1
        end = Phase.REJECTED if phase is Phase.PREFLIGHT else Phase.ROLLED_BACK
        if await until_dead_or(box, 2, end):
            break
    assert starts == ATTEMPTS[phase] + 1
    assert box.state is not None
    assert box.state.cause == "attempts_exhausted"
    assert await box.settled() == {"demo": ("A", None)}
    await box.kill()


def plan_reports(facts: list[Fact]) -> list[PlanReport]:
    return [fact.body for fact in facts if isinstance(fact.body, PlanReport)]


async def test_plan_of_a_proven_release_is_told_once_and_kept_here(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    (told,) = plan_reports(await box.facts())
    assert (told.model, told.release, told.version, told.box_class) == ("demo", A.digest, "A", "box")
    kept = await box.database.read(lambda db: db.conn.execute("SELECT release, report FROM plans").fetchall())
    assert [(release, msgspec.json.decode(report, type=PlanReport)) for release, report in kept] == [(A.digest, told)]


async def test_failed_preflight_tells_no_plan(box: Box) -> None:
    box.hub.preflight_fails[A.digest] = "golden_mismatch"
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.REJECTED)
    assert plan_reports(await box.facts()) == []


async def test_hints_reach_preflight_and_a_hostile_one_is_named_and_left_out(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    good = RunPlan(backend="openvino", device="cpu", precision="int8")
    hostile = RunPlan(backend="/bin/sh", device="cpu", precision="int8", recipe="../../x")
    await box.order(1, wanted(A, "A", "r1", hints=(hostile, good)))
    await box.until(Phase.COMMITTED)
    assert [[plan.backend for plan in hints] for hints in box.preflight.hints] == [["openvino"]]
    assert "backend '/bin/sh' is unknown" in caplog.text
    (told,) = plan_reports(await box.facts())
    assert (told.hints, told.hinted) == (1, False)


async def test_order_that_arrives_while_the_agent_recovers_is_not_forgotten(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.kill()
    await box.start()
    restoring, go_on = asyncio.Event(), asyncio.Event()
    apply = box.worker.apply

    async def slow_apply(routes: tuple[Any, ...]) -> None:
        restoring.set()
        await go_on.wait()
        await apply(routes)

    box.worker.apply = slow_apply  # type: ignore[method-assign]
    await restoring.wait()
    other = release("X", "base")
    box.hub.add(other)
    base = msgspec.structs.replace(wanted(other, "X", "r2"), model="base")
    order = asyncio.create_task(box.order(2, wanted(A, "A", "r1"), base))
    await box.database.read(lambda _db: None)  # whatever an order does before it waits, it has done
    await asyncio.sleep(0.05)
    go_on.set()
    await order
    async with asyncio.timeout(60):
        while "base" not in box.worker.serves:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_hints_survive_a_kill_before_preflight(tmp_path: Path) -> None:
    box = Box(tmp_path, choose=lambda step: step == "preflight begins")
    await box.start()
    hint = RunPlan(backend="openvino", device="cpu", precision="bf16")
    await box.order(1, wanted(A, "A", "r1", hints=(hint,)))
    await box.reaper.killed.wait()
    await box.kill()
    box.choose = lambda _step: False
    await box.start()
    await box.until(Phase.COMMITTED)
    assert [plan.precision for plan in box.preflight.hints[0]] == ["bf16"]
    assert len(plan_reports(await box.facts())) == 1
    await box.kill()


@pytest.mark.parametrize(
    ("strategy", "seen"),
    [
        (Strategy(kind="shadow"), [("A", "B", ()), ("B", "A", ()), ("B", None, ())]),
        (
            Strategy(kind="canary", shares=(0.1, 0.5)),
            [("A", None, (("B", 0.1),)), ("A", None, (("B", 0.5),)), ("B", None, ())],
        ),
        (Strategy(kind="blue_green"), [("A", None, (("B", 0.0),)), ("B", "A", ()), ("B", None, ())]),
    ],
    ids=["shadow", "canary", "blue-green"],
)
async def test_new_version_takes_over_stage_by_stage_and_each_is_reported(
    box: Box, strategy: Strategy, seen: list[Any]
) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    before = len(box.worker.history)
    await box.order(2, wanted(B, "B", "r2", strategy=strategy))
    await box.until(Phase.COMMITTED)
    await box.settled()
    routes = [route for (route,) in box.worker.history[before:]]
    told = [
        (
            r.active.version,
            r.shadow.version if r.shadow else None,
            tuple((s.version.version, s.share) for s in r.shares),
        )
        for r in routes
    ]
    assert told == seen
    steps = [cause for rollout, _, cause in await box.transitions() if rollout == "r2" and cause == "step"]
    assert len(steps) == len(seen) - 2


async def test_fault_in_a_canary_ends_it_with_everyone_back_at_the_good_version(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    box.hub.stats[B.digest] = WORSE
    await box.order(2, wanted(B, "B", "r2", strategy=Strategy(kind="canary", shares=(0.1, 0.5))))
    await box.until(Phase.ROLLED_BACK)
    await box.settled()
    assert box.worker.serves == {"demo": ("A", None)}
    assert box.worker.shares == {"demo": ()}


async def test_strategy_nobody_could_mean_is_refused_with_its_field(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1", strategy=Strategy(kind="ab")))
    state = await box.until(Phase.REJECTED)
    assert state.cause == "bad_strategy"
    assert "shares" in state.sentence


async def test_site_is_not_disturbed_outside_its_windows_but_may_always_go_back(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    later = Schedule(zone="Asia/Dubai", activate=(DayWindow(start="22:00", end="04:00"),))  # NOW is 10:00 there
    await box.order(2, wanted(B, "B", "r2", schedule=later))
    state = await box.until(Phase.ACTIVATING)
    async with asyncio.timeout(10):
        while not box.runner.views["demo"].waiting:  # noqa: ASYNC110 - nobody is told of words
            await asyncio.sleep(0.002)
    assert "22:00" in box.runner.views["demo"].waiting
    assert "Asia/Dubai" in box.runner.views["demo"].waiting
    assert state.attempt == 0
    assert box.worker.serves == {"demo": ("A", None)}
    await box.order(3, wanted(A, "A", "r3", action="rollback", schedule=later))
    await box.until(Phase.COMMITTED)


async def test_component_waits_for_the_one_that_comes_first_and_is_not_activated_without_it(box: Box) -> None:
    """Order between components of one document: here two models, of which the second is the other's condition."""
    first, second = release("X", "base"), release("Y", "demo")
    box.hub.add(first, WAITING)
    box.hub.add(second)
    base = msgspec.structs.replace(wanted(first, "X", "r1"), model="base")
    # Each component has a rollout of its own at the hub.
    await box.order(1, base, wanted(second, "Y", "r2", after=("base",)))
    async with asyncio.timeout(20):
        while "base" not in getattr(box.runner.views.get("demo"), "waiting", ""):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert "demo" not in box.worker.serves
    box.hub.stats[first.digest] = WORSE
    state = await box.until(Phase.ROLLED_BACK)
    assert state.cause == "not_in_order"
    box.hub.stats[first.digest] = ProbationStats(rows=100, distinct=50)
    await box.order(2, base, wanted(second, "Y", "r3", after=("base",)))
    assert (await box.until(Phase.ROLLED_BACK, generation=2)).cause == "not_in_order"
    await box.order(3, wanted(second, "Y", "r4", after=("base",)))  # nothing is asked of the other any more
    await box.until(Phase.COMMITTED)


async def test_components_that_wait_for_each_other_do_not_wait_for_ever(box: Box) -> None:
    first, second = release("X", "base"), release("Y", "demo")
    box.hub.add(first)
    box.hub.add(second)
    base = msgspec.structs.replace(wanted(first, "X", "r1", after=("demo",)), model="base")
    await box.order(1, base, wanted(second, "Y", "r2", after=("base",)))
    async with asyncio.timeout(20):
        while any(box.runner.views[name].state.phase not in TERMINAL for name in ("base", "demo")):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    causes = {box.runner.views[name].state.cause for name in ("base", "demo")}
    assert "bad_order" in causes
    assert causes <= {"bad_order", "not_in_order"}
    assert box.worker.serves == {}


async def test_schedule_that_nobody_can_keep_is_refused_and_not_tried_for_ever(box: Box) -> None:
    night = (DayWindow(start="22:00", end="04:00"),)
    await box.order(1, wanted(A, "A", "r1", schedule=Schedule(zone="Mars/Base", download=night)))
    state = await box.until(Phase.REJECTED)
    assert state.cause == "bad_schedule"
    assert "Mars/Base" in state.sentence


async def test_pointer_that_cannot_be_written_does_not_speak_against_the_release(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    pointer = box.root / "models" / "demo" / "active.json"
    pointer.unlink()
    pointer.mkdir()  # what a full disk does: the file cannot be replaced
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.ROLLING_BACK)
    pointer.rmdir()
    state = await box.until(Phase.ROLLED_BACK)
    assert state.cause == "disk_failed"
    assert await box.database.read(lambda db: journal.quarantined(db, B.digest)) is None
    assert await box.settled() == {"demo": ("A", None)}
