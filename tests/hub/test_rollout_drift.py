"""Drift of merged sketches: what a pool of devices may say, and what waves and the watch make of it."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from landreeve.sketch.histogram import Histogram
from landreeve_hub.access.roles import Role
from landreeve_hub.rollout.drifting import Pool, index_of
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import BadPlanError, parse_plan
from landreeve_hub.rollout.state import Around, Begin, Quality, Quarantine, RaiseIncident, State
from landreeve_hub.rollout.waiting import words
from landreeve_hub.store import tables
from landreeve_models.baseline import Baseline
from sqlalchemy import insert, select

from tests.hub.hub_without_broker import Hub
from tests.hub.test_rollout_gates import NEW, T0, ended, installs, made
from tests.hub.test_rollout_succession import begun, state_of

CELLS = 10
EDGES = tuple(float(edge) for edge in range(1, CELLS))
REFERENCE = Histogram(EDGES, (1000,) * CELLS)
BASELINE = Baseline(10_000, 10, {"wind": REFERENCE, "prediction": REFERENCE}, {"wind": (0.01,)}, {})
Random = np.random.Generator


def sketch(random: Random, rows: int = 400, slope: float = 0.0, edges: tuple[float, ...] = EDGES) -> dict[str, Any]:
    """A window's sketch as a site withholds it; ``slope`` tilts the shares of the cells."""
    share = np.exp(slope * np.linspace(-1, 1, CELLS))
    counts = tuple(random.multinomial(rows, share / share.sum()).tolist())
    return Histogram(edges, counts).withhold(10).to_document()


def pool_of(count: int, slope: float = 0.0, seed: int = 1, number: int = 5) -> Pool:
    random, pool = np.random.default_rng(seed), Pool.of(BASELINE)
    told = {"wind": slope, "prediction": 0.0}
    return pool.put({
        f"d-{n:03d}": pool.read(number, 5, {name: sketch(random, slope=tilt) for name, tilt in told.items()})
        for n in range(count)
    })  # fmt: skip


def devices(count: int) -> list[str]:
    return [f"d-{n:03d}" for n in range(count)]


# --- the measure ---


@pytest.mark.parametrize("between", [0.0, 0.02])
@pytest.mark.parametrize("slope", [0.0, 0.6])
def test_lower_bound_is_above_the_truth_no_more_often_than_it_says(between: float, slope: float) -> None:
    random, reference = np.random.default_rng(7), np.full(CELLS, 1000.0)
    p = np.full(CELLS, 1 / CELLS)
    q = np.exp(slope * np.linspace(-1, 1, CELLS))
    q /= q.sum()
    truth, wrong, rounds = float(((q - p) * np.log(q / p)).sum()), 0, 300
    for _ in range(rounds):
        shares = [random.dirichlet(q / between) if between else q for _ in range(12)]
        counts = np.stack([random.multinomial(int(random.integers(200, 600)), share) for share in shares])
        own = random.multinomial(10_000, p).astype(float) if slope else reference
        wrong += index_of(own, counts.astype(float), 0.95, 12).low > truth
    assert wrong <= 0.05 * rounds + 2.5 * np.sqrt(0.05 * 0.95 * rounds)


def test_many_small_windows_say_together_what_none_says_alone() -> None:
    alone = pool_of(40, slope=0.6).judge(["d-003"], 0.05)
    together = pool_of(40, slope=0.6).judge(devices(40), 0.05)
    assert next(one for one in alone if one.column == "wind").bounds.low < 0.1
    assert together[0].column == "wind"
    assert together[0].bounds.low > 0.1
    assert together[1].bounds.high < 0.1  # the predictions stayed


def test_one_device_that_counts_wildly_moves_the_pool_little() -> None:
    pool = pool_of(40)
    wild = Histogram(EDGES, (10**11,) + (0,) * (CELLS - 1)).to_document()
    spoilt = pool.put({"d-000": pool.read(5, 5, {"wind": wild})})
    (wind,) = [one for one in spoilt.judge(devices(40), 0.05) if one.column == "wind"]
    assert wind.bounds.low < 0.1
    beyond = {"wind": Histogram(EDGES, (10**15,) * CELLS).to_document()}
    assert "wind" not in pool.read(5, 5, beyond).cells


@pytest.mark.parametrize(
    "document",
    [
        None, 7, {}, {"kind": "moments"}, sketch(np.random.default_rng(1), edges=(0.5, *EDGES[1:])),
        sketch(np.random.default_rng(1), rows=60), {"kind": "histogram", "edges": list(EDGES), "counts": [-1] * CELLS,
        "missing": 0}, {"kind": "categories", "values": [], "counts": [], "other": 4, "missing": 0},
    ],
    ids=["none", "number", "empty", "moments", "other cells", "withheld", "negative", "categories"],
)  # fmt: skip
def test_sketch_that_cannot_be_read_or_compared_is_not_told(document: Any) -> None:
    assert "wind" not in Pool.of(BASELINE).read(1, 1, {"wind": document}).cells


def test_rows_that_were_withheld_are_no_drift() -> None:
    random, pool = np.random.default_rng(3), Pool.of(BASELINE)
    rare = Baseline(10_000, 10, {"wind": Histogram(EDGES, (50,) * 5 + (1950,) * 5)}, {}, {})
    pool = Pool.of(rare)
    share = np.array([50.0] * 5 + [1950.0] * 5) / 10_000
    windows = {}
    for device in devices(30):  # each site has one or two rows in each rare cell, and tells only their sum
        counts = tuple(random.multinomial(300, share).tolist())
        windows[device] = pool.read(1, 1, {"wind": Histogram(EDGES, counts).withhold(10).to_document()})
    (wind,) = pool.put(windows).judge(devices(30), 0.05)
    assert wind.bounds.high < 0.05


def test_pool_half_told_says_less() -> None:
    whole, half = pool_of(20, slope=0.8), pool_of(10, slope=0.8)
    by_half = {one.column: one.bounds for one in half.judge(devices(20), 0.05)}["wind"]
    by_ten = {one.column: one.bounds for one in half.judge(devices(10), 0.05)}["wind"]
    assert by_half.devices == 10
    assert by_half.high - by_half.low > by_ten.high - by_ten.low
    assert {one.column: one.bounds for one in whole.judge(devices(20), 0.05)}["wind"].devices == 20


# --- waves ---


def wave(slope: float | None, count: int = 12, **figures: Any) -> Any:
    """The decision about a first wave, all committed, whose windows tilt by ``slope``; None: none was told."""
    asked = {"max_psi": 0.1, "min_window_rows": 1000, **figures}
    plan = {"waves": [{"count": count}, {"rest": True}], "gate": {"figures": asked, "deadline_s": 600}}
    rollout, facts = made(count + 5, plan)
    first = decide(rollout, facts, T0)
    ended(facts, devices(count))
    drift = None if slope is None else pool_of(count, slope)
    return decide(first.rollout, facts, T0, Around(drift=drift)), facts


def test_wave_goes_on_when_the_merged_windows_are_as_in_training() -> None:
    decision, _ = wave(0.0)
    assert decision.rollout.wave == 1
    assert len(installs(decision.orders)) == 5


def test_wave_is_held_by_drift_of_the_merged_windows() -> None:
    decision, _ = wave(0.9)
    assert (decision.rollout.state, decision.rollout.cause) == (State.PAUSED, "drift")
    assert "drift of wind (PSI)" in decision.rollout.sentence
    assert "over 12 devices, at most 0.1" in decision.rollout.sentence
    assert installs(decision.orders) == []


@pytest.mark.parametrize(
    ("slope", "figures", "said"),
    [
        (None, {}, "drift (PSI) was told by 0 of 1 devices"),
        (0.0, {"min_devices": 13}, ""),
        (0.0, {"min_window_rows": 100_000}, "of 100000 rows lie in closed windows"),
        (0.48, {"strict": True}, "is not decided"),
    ],
)
def test_what_was_not_told_or_decided_passes_nothing(slope: float | None, figures: dict[str, Any], said: str) -> None:
    decision, facts = wave(slope, **figures)
    if not said:  # asked of more devices than there are: all of them count
        assert decision.rollout.wave == 1
        return
    assert decision.rollout.wave == 0
    assert said in words(decision.waiting[0])
    late = decide(decision.rollout, facts, T0 + timedelta(seconds=601), Around(drift=None))
    assert (late.rollout.state, late.rollout.cause) == (State.PAUSED, "no_figures")


def test_what_windows_of_the_training_range_came_to_is_not_held_against_a_column() -> None:
    usual = replace(BASELINE, natural={"wind": (0.4,)})
    random, pool = np.random.default_rng(1), Pool.of(usual)
    told = {d: pool.read(1, 1, {"wind": sketch(random, slope=0.9)}) for d in devices(12)}
    (wind,) = [one for one in pool.put(told).judge(devices(12), 0.05) if one.column == "wind"]
    assert wind.bounds.low > 0.1
    assert wind.usual == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({"gate": {"figures": {"max_psi": 0}}}, "plan.gate.figures.max_psi"),
        ({"gate": {"figures": {"max_psi": 0.1, "min_window_rows": 0}}}, "plan.gate.figures.min_window_rows"),
        ({"watch": {"max_psi": 0.1}}, "plan.watch.for_s"),
        ({"watch": {"max_psi": float("nan"), "for_s": 5}}, "plan.watch.max_psi"),
        ({"watch": {"max_psi": 0.1, "for_s": 5, "confidence": 1.0}}, "plan.watch.confidence"),
    ],
)
def test_plan_that_could_not_be_judged_is_refused(plan: dict[str, Any], field: str) -> None:
    with pytest.raises(BadPlanError, match=field):
        parse_plan(plan)


# --- the watch ---


def watched(action: str = "rollback", count: int = 12) -> Any:
    """A finished rollout under watch, whose devices run the release."""
    plan = {"watch": {"for_s": 86_400, "max_psi": 0.1}, "actions": {"drift": action}}
    rollout, facts = made(count, plan)
    first = decide(rollout, facts, T0)
    ended(facts, devices(count))
    done = decide(first.rollout, facts, T0)
    assert done.rollout.state is State.FINISHED
    return done.rollout, facts


def test_drift_after_the_end_takes_the_fleet_back() -> None:
    rollout, facts = watched()
    assert decide(rollout, facts, T0, Around(drift=pool_of(12))).orders == ()
    decision = decide(rollout, facts, T0, Around(drift=pool_of(12, slope=0.9)))
    assert decision.rollout.state is State.ROLLING_BACK
    assert {Begin, Quarantine} <= {type(order) for order in decision.orders}


def test_later_windows_need_more_evidence_than_the_first() -> None:
    pool = pool_of(12, slope=0.62)
    assert pool.looks(devices(12)) == 1
    later = replace(pool, told={d: replace(one, number=one.number + 40) for d, one in pool.told.items()})
    assert later.looks(devices(12)) == 41
    rollout, facts = watched()
    assert decide(rollout, facts, T0, Around(drift=pool)).rollout.state is State.ROLLING_BACK
    assert decide(rollout, facts, T0, Around(drift=later)).rollout.state is State.FINISHED


@pytest.mark.parametrize("drift", [None, pool_of(12, slope=0.51)], ids=["nothing told", "undecided"])
def test_watch_that_ends_without_proof_asks_a_person_once(drift: Pool | None) -> None:
    rollout, facts = watched()
    end = T0 + timedelta(days=1)
    decision = decide(rollout, facts, end, Around(drift=drift))
    (raised,) = [order for order in decision.orders if isinstance(order, RaiseIncident)]
    assert (raised.cause, decision.rollout.state) == ("unproven", State.FINISHED)
    assert decide(decision.rollout, facts, end, Around(drift=drift)).orders == ()
    proven = decide(rollout, facts, end, Around(drift=pool_of(12)))
    assert proven.orders == ()


# --- from the tables ---


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path, baselines=lambda _: BASELINE)
    yield made
    made.store.close()


async def closes(hub: Hub, device: str, release: str, number: int, slope: float) -> None:
    random = np.random.default_rng(number)
    sketches = {name: sketch(random, 2000, tilt) for name, tilt in (("wind", slope), ("prediction", 0.0))}
    report = {"verdict": "stable", "sketches": sketches}
    row = {"device": device, "model": "delay", "window": number, "release": release, "rows": 2000, "report": report}
    await hub.store.write(lambda c: c.execute(insert(tables.windows).values(row)) and None)
    await hub.runner.tick(hub.now)


async def test_windows_that_sites_report_are_merged_and_hold_the_rollout(hub: Hub) -> None:
    await hub.enrol()
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        figures = {"max_psi": 0.1, "min_devices": 2, "min_window_rows": 1000}
        plan = {"waves": [{"count": 2}, {"rest": True}], "gate": {"figures": figures}, "actions": {"drift": "pause"}}
        row = await begun((ann, bob), "first", plan)
        for device in ("d-1", "d-2"):
            await hub.report(device, "COMMITTED", row["release"], row["id"])
        await closes(hub, "d-1", row["release"], 8, 1.2)
        shown = (await ann.get(f"/api/v1/rollouts/{row['id']}")).json()
        assert "was told by 1 of 2 devices" in shown["waiting"][0]
        await closes(hub, "d-1", "9" * 64, 9, 0.0)  # another release says nothing of this one
        assert await state_of(hub, row["id"]) is State.RUNNING
        await closes(hub, "d-2", row["release"], 8, 1.2)
        assert await state_of(hub, row["id"]) is State.PAUSED
        gates = {gate["name"]: gate for gate in (await ann.get(f"/api/v1/rollouts/{row['id']}")).json()["gates"]}
        assert gates["drift of wind (PSI)"]["devices"] == 2
        assert not gates["drift of wind (PSI)"]["holds"]
    sentences = await hub.store.read(lambda c: list(c.execute(select(tables.incidents.c.sentence)).scalars()))
    assert any("drift of wind (PSI)" in sentence for sentence in sentences)


async def test_release_without_a_baseline_cannot_be_judged_by_one(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    await hub.enrol()
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        with pytest.raises(AssertionError, match=r"plan\.watch\.max_psi: release .* has no baseline"):
            await begun((ann, bob), "first", {"watch": {"for_s": 60, "max_psi": 0.1}})
    hub.store.close()


def test_quality_of_another_window_is_news() -> None:
    assert Quality(NEW, "stable", "", 5, 5, 10) != Quality(NEW, "stable", "", 6, 5, 10)
