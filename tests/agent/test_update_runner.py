"""The runner carries out orders: forward, back, in order, within windows; worker, network and judgement are fakes."""

import asyncio
from typing import Any

import msgspec
import pytest
from landreeve.wire.messages import Audit, Event, PlanReport, UpdateReport
from landreeve.wire.plans import RunPlan
from landreeve.wire.schedule import DayWindow, Schedule
from landreeve.wire.strategy import Strategy, TrialStage
from landreeve_agent.serving.ending import Ending, Running
from landreeve_agent.update import journal
from landreeve_agent.update.pointer import read_pointers
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.standing import TERMINAL, Phase

from tests.fakes.update_box import WAITING, WORSE, A, B, Box, C, D, plan_reports
from tests.fakes.update_ports import (
    release,
    wanted,
)


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
        await box.runner.worker_restarted(Ending("signal SIGSEGV", 1))
    assert (await box.until(Phase.ROLLED_BACK)).cause == "worker_crashed"
    assert await box.settled() == {"demo": ("A", None)}


async def test_death_of_another_version_s_own_process_speaks_against_nobody_else(box: Box) -> None:
    box.hub.stats[B.digest] = WAITING
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.PROBATION)
    for whose in (Running("other", "B"), Running("demo", "A"), Running("demo", "A", A.digest)):
        for _ in range(5):
            await box.runner.worker_restarted(Ending("signal SIGSEGV", 1, (whose,), (whose,)))
    assert box.runner.views["demo"].state.crashes == 0
    for _ in range(5):
        await box.runner.worker_restarted(Ending("signal SIGSEGV", 1, suspects=(Running("demo", "B", B.digest),)))
    assert (await box.until(Phase.ROLLED_BACK)).cause == "worker_crashed"


async def test_files_of_releases_nobody_needs_are_removed_and_the_first_one_stays(box: Box) -> None:
    for generation, (packed, version) in enumerate(((A, "A"), (B, "B"), (C, "C"), (D, "D")), start=1):
        await box.order(generation, wanted(packed, version, f"r{generation}"))
        await box.until(Phase.COMMITTED)
        await box.settled()
    folders = {path.name for path in (box.root / "models" / "demo").iterdir() if path.is_dir()}
    assert folders == {A.digest[:12], C.digest[:12], D.digest[:12]}


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


@pytest.mark.parametrize(
    ("strategy", "seen", "stages"),
    [
        (
            Strategy(kind="shadow"),
            [("A", "B", ()), ("B", "A", ()), ("B", None, ())],
            [TrialStage(role="listens"), TrialStage(role="answers", share=1.0)],
        ),
        (
            Strategy(kind="canary", shares=(0.1, 0.5)),
            [("A", None, (("B", 0.1),)), ("A", None, (("B", 0.5),)), ("B", None, ())],
            [TrialStage(role="shares", share=0.1), TrialStage(role="shares", share=0.5)],
        ),
        (
            Strategy(kind="blue_green"),
            [("A", None, (("B", 0.0),)), ("B", "A", ()), ("B", None, ())],
            [TrialStage(role="stands_by"), TrialStage(role="answers", share=1.0)],
        ),
    ],
    ids=["shadow", "canary", "blue-green"],
)
async def test_new_version_takes_over_stage_by_stage_and_each_is_reported(
    box: Box, strategy: Strategy, seen: list[Any], stages: list[TrialStage]
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
    said = [fact.body for fact in await box.facts() if isinstance(fact.body, UpdateReport)]
    assert [report.stage for report in said if report.rollout == "r2" and report.state == "PROBATION"] == stages
    assert {report.stage for report in said if report.state != "PROBATION"} == {msgspec.UNSET}


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
