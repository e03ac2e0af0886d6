"""What the tuning bench calls refused was tried and refused; what could not be measured says so."""

from pathlib import Path

import pytest
from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.report import PreflightReport, Trial

from tests.bench import bench_tuning
from tests.bench.bench_tuning import Case

IMAGE = Case("image", Path("nowhere"))
STOCK = Plan(precision="int8", recipe="stock-dynamic", graph="model.stock-dynamic.onnx")


def report(*trials: Trial) -> PreflightReport:
    return PreflightReport(
        plan=Plan(), trials=trials, metric="accuracy", metric_value=0.975, golden_rows=200, max_difference=0.0,
        rss_mb=60.0, seconds=9.0, fingerprint="", sentence="",
    )  # fmt: skip


def trial(stage: str, *, accepted: bool, metric: float | None = 0.945) -> Trial:
    return Trial(what=STOCK.name, plan=STOCK, accepted=accepted, why="accuracy worsens", metric=metric, stage=stage)


@pytest.mark.parametrize(
    ("trials", "holds"),
    [
        ((trial("golden set", accepted=False),), True),
        ((trial("golden set", accepted=False), trial("round 2", accepted=True)), False),
        ((trial("won", accepted=True),), False),
        ((trial("made", accepted=False, metric=None),), False),
        ((), False),
    ],
)
def test_a_spoiling_recipe_counts_as_refused_only_when_it_was_tried_and_never_accepted(
    trials: tuple[Trial, ...], holds: bool
) -> None:
    (row,) = bench_tuning.refused(IMAGE, report(*trials))
    assert (row["bar"], row["holds"]) == ("refused", holds)


def test_a_bar_that_could_not_be_measured_is_in_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_tuning, "GROUP", tmp_path / "no" / "cgroup")
    (row,) = bench_tuning.under_quota(IMAGE, 1.0, 1.0)
    assert (row["value"], row["bar"], row["holds"]) == (None, "≥ 2", None)
