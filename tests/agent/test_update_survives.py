"""The runner under power cuts, restarts, a lost store and damaged files: it ends where it would have ended."""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.wire.messages import UpdateReport
from landreeve.wire.plans import RunPlan
from landreeve_agent.update import journal
from landreeve_agent.update.machine import ATTEMPTS
from landreeve_agent.update.pointer import read_pointers
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.standing import TERMINAL, Phase, State

from tests.fakes.update_box import WAITING, WORSE, A, B, Box, C, D, plan_reports
from tests.fakes.update_ports import (
    document,
    release,
    wanted,
)


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


async def test_healthy_version_is_kept_by_a_box_that_hears_nothing_of_the_hub_any_more(box: Box) -> None:
    """The hub goes when the new version has just taken over; the box is started twice more without it."""
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    box.hub.stats[B.digest] = WAITING
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.PROBATION)
    box.hub.reachable.clear()  # nothing can be fetched, no document comes, nothing is acknowledged
    for _ in range(2):
        await box.kill()
        box.desired = document(0)
        await box.start()
        await box.until(Phase.PROBATION)
        async with asyncio.timeout(20):
            while box.worker.serves != {"demo": ("B", "A")}:  # noqa: ASYNC110 - restored before it is looked at
                await asyncio.sleep(0.002)
    box.hub.stats[B.digest] = ProbationStats(rows=100, distinct=50)
    state = await box.until(Phase.COMMITTED)
    assert state.cause == "probation_passed"
    assert await box.settled() == {"demo": ("B", None)}


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


@pytest.mark.parametrize("phase", [Phase.PROBATION, Phase.ROLLING_BACK])
async def test_bad_version_is_left_at_once_on_a_full_disk_and_it_is_told_when_there_is_room(
    box: Box, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full when the verdict falls, or when the return begins: neither can be written down."""
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.settled()
    full = asyncio.Event()
    save = journal.save

    def save_or_not(db: Any, outbox: Any, before: State, after: State, *more: Any, **data: Any) -> None:
        if after.phase is Phase.ROLLING_BACK and after != before and before.phase is phase:
            full.set()
        if full.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        save(db, outbox, before, after, *more, **data)

    monkeypatch.setattr(journal, "save", save_or_not)
    box.hub.stats[B.digest] = WORSE
    await box.order(2, wanted(B, "B", "r2"))
    async with asyncio.timeout(20):
        await full.wait()
        while box.worker.serves != {"demo": ("A", None)}:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        while read_pointers(box.root / "models")["demo"].version != "A":  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    monkeypatch.setattr(journal, "save", save)
    await box.until(Phase.ROLLED_BACK)
    assert await box.settled() == {"demo": ("A", None)}
