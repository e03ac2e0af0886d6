"""Hints in and reports out: nothing the hub says is believed, nothing the box found is lost."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from landreeve.wire.messages import PlanReport
from landreeve.wire.plans import MOST_HINTS, BoxFacts, RunPlan, class_of
from landreeve_agent.hardware.inventory import Accelerator, Cpu, Inventory, Limits, Memory, Runtime
from landreeve_agent.serving.control import Plan
from landreeve_agent.store.database import Database
from landreeve_agent.tuning.report import PreflightReport, Trial
from landreeve_agent.update import plans
from landreeve_agent.update.plans import Hints, facts_of, report_of, taken
from landreeve_agent.update.standing import Order

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)
HINT = RunPlan(backend="openvino", device="cpu", precision="int8", threads=2, batch=32, recipe="nncf")
WON = Plan("openvino", "cpu", "int8", 2, graph="model.nncf.onnx", recipe="nncf")
DEFAULT = Plan()
ORDER = Order("m", "ab" * 32, "3", 700, "r-1", 4, 700)
BOX = BoxFacts(cpu="Intel N100", isa=("avx2",), threads=2, runtimes={"onnxruntime": "1.31.1"})


def verdict(*more: Trial, seconds: float = 9.0) -> PreflightReport:
    first = Trial(what=DEFAULT.name, plan=DEFAULT, accepted=True, why="", metric=0.97, p50_us=800.0, cpu_us=1000.0)
    best = Trial(what=WON.name, plan=WON, accepted=True, why="", metric=0.98, p50_us=200.0, cpu_us=300.0)
    return PreflightReport(
        plan=WON, trials=(first, best, *more), metric="accuracy", metric_value=0.97, golden_rows=200,
        max_difference=0.1, rss_mb=90.0, seconds=seconds, fingerprint="f", sentence="It is fast.",
    )  # fmt: skip


def inventory(**more: object) -> Inventory:
    box = Inventory(
        cpu=Cpu(
            model="Intel N100", architecture="x86_64", isa=("avx2",), physical_cores=4, logical_cores=4, affinity=4
        ),
        limits=Limits(),
        memory=Memory(total_bytes=8 << 30, available_bytes=4 << 30, usable_bytes=8 << 30),
        threads=4,
        runtimes=(
            Runtime(name="onnxruntime", version="1.31.1", devices=("cpu",)),
            Runtime(name="openvino", problem="x"),
        ),
    )
    return msgspec.structs.replace(box, **more)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "/bin/sh"}, "backend"),
        ({"precision": "fp8"}, "precision"),
        ({"threads": 64}, "gives 2 to inference"),
        ({"threads": 2, "streams": 2}, "gives 2 to inference"),
        ({"threads": -3}, "threads"),
        ({"recipe": "../../../etc/shadow"}, "recipe"),
        ({"recipe": "a b"}, "recipe"),
    ],
)
def test_hostile_hint_is_refused_by_name_and_the_others_are_tried(change: dict[str, object], words: str) -> None:
    found = taken((msgspec.structs.replace(HINT, **change), HINT), threads=2)
    assert [plan.backend for plan in found.plans] == ["openvino"]
    assert words in found.refused[0]


def test_plan_has_one_name_on_both_sides() -> None:
    streams = msgspec.structs.replace(HINT, threads=1, streams=2)
    plans = taken((HINT, streams), threads=2).plans
    assert [plan.name for plan in plans] == [HINT.name, streams.name]


def test_hint_never_names_a_file_or_a_device_that_is_wanted() -> None:
    (plan,) = taken((HINT,), threads=2).plans
    assert (plan.graph, plan.wanted, plan.reason) == (DEFAULT.graph, DEFAULT.wanted, "")


def test_flood_of_hints_is_cut_and_repeats_are_tried_once() -> None:
    flood = tuple(msgspec.structs.replace(HINT, batch=n) for n in range(1, 50))
    found = taken((HINT, HINT, *flood), threads=2)
    assert len(found.plans) == MOST_HINTS - 1
    assert len(found.refused) == len(flood) + 2 - MOST_HINTS


def test_report_tells_the_winner_against_the_default() -> None:
    fell = Trial(what="openvino cpu bf16", plan=Plan("openvino", precision="bf16"), accepted=False, why="accuracy fell")
    told = report_of(ORDER, verdict(fell), BOX, Hints())
    assert (told.plan.name, told.ratio, told.cpu_ratio, told.metric_value) == (HINT.name, 0.25, 0.3, 0.98)
    assert (told.box_class, told.release, told.hints, told.hinted) == (class_of(BOX), ORDER.release, 0, False)
    assert [(trial.what, trial.accepted, trial.why) for trial in told.trials][-1] == (fell.what, False, "accuracy fell")


def test_report_says_that_a_hint_named_the_winner_whatever_rows_are_joined() -> None:
    told = report_of(ORDER, verdict(), BOX, taken((HINT,), threads=2))
    assert (told.hints, told.hinted) == (1, True)


def test_figure_nobody_measured_is_none_on_the_wire() -> None:
    nan = Trial(what="x", plan=DEFAULT, accepted=False, why="it crashed", metric=float("nan"))
    told = report_of(ORDER, verdict(nan), BOX, Hints())
    assert msgspec.json.decode(msgspec.json.encode(told), type=PlanReport).trials[-1].metric is None


def test_equal_boxes_share_their_class_and_what_decides_splits_it() -> None:
    one = class_of(facts_of(inventory(), 4, {}))
    busy = Memory(total_bytes=1, available_bytes=1, usable_bytes=1)
    gpu = Accelerator(kind="gpu", vendor="8086", name="Arc A380", driver="i915", usable=True)
    assert one == class_of(facts_of(inventory(memory=busy), 4, {}))
    others = (
        facts_of(inventory(), 2, {}),
        facts_of(inventory(accelerators=(gpu,)), 4, {}),
        facts_of(inventory(runtimes=(Runtime(name="onnxruntime", version="1.32.0"),)), 4, {}),
    )
    capped = facts_of(inventory(), 4, {"ONEDNN_MAX_CPU_ISA": "SSE41"})
    assert (capped.isa, capped.caps) == ((), {"ONEDNN_MAX_CPU_ISA": "SSE41"})
    assert one != class_of(capped)
    assert one not in {class_of(facts) for facts in others}


def test_unknown_box_has_no_class() -> None:
    assert class_of(BoxFacts()) == ""


async def test_site_keeps_the_newest_report_of_each_release_and_forgets_old_ones(tmp_path: Path) -> None:
    database = Database(tmp_path / "agent.db")
    told = report_of(ORDER, verdict(), BOX, Hints())
    for n in range(plans.KEPT_RELEASES + 5):
        report = msgspec.structs.replace(told, release=f"{n:064x}")
        for seconds in (0, 1):
            at = NOW + timedelta(minutes=n, seconds=seconds)
            await database.write(lambda db, report=report, at=at: plans.keep(db, report, at))
    rows = await database.read(lambda db: list(db.conn.execute("SELECT release FROM plans ORDER BY at")))
    database.close()
    assert [int(row[0], 16) for row in rows] == list(range(5, plans.KEPT_RELEASES + 5))
