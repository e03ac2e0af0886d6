"""When a window means something: calibrated against noise, natural variation and the model's own promise."""

import math

import numpy as np
import pytest
from landreeve.release.manifest import Column
from landreeve.sketch.divergence import psi
from landreeve.sketch.histogram import Histogram
from landreeve_agent.drift.monitor import Measured, judge, score
from landreeve_agent.drift.psi import chi2_quantile, threshold
from landreeve_agent.drift.quality import Quality, auc_fell, measure
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition, DriftPolicy
from scipy.stats import chi2

POLICY = DriftPolicy(min_excess=0.02, quality_alpha=0.01, min_rows=100, min_labelled=100)
CLAIMED = {"auc": 0.75, "rows": 4000.0, "label_mean": 0.3}


def quality(excess: float = 0.0, error: float = 0.005, auc: float = 0.75, labelled: int = 2000) -> Quality:
    return Quality(labelled, 0.5 + excess, 0.5, excess, error, auc, 0.3, 0.3)


def window(q: Quality | None = None, rows: int = 2000, **scores: float) -> Measured:
    return Measured(rows, scores, dict.fromkeys(scores, 0.2), q)


def verdict(*windows: Measured) -> str:
    return judge(POLICY, windows[-1], windows[:-1], CLAIMED).verdict


@pytest.mark.parametrize("freedom", [1, 3, 10, 31, 60])
@pytest.mark.parametrize("level", [0.95, 0.99, 0.9993])
def test_chi2_quantile_is_close_to_the_exact_one(freedom: int, level: float) -> None:
    assert chi2_quantile(level, freedom) == pytest.approx(chi2.ppf(level, freedom), rel=0.04 if freedom <= 3 else 0.01)


@pytest.mark.parametrize("rows", [150, 500, 2000])
def test_false_alarm_rate_of_one_window_keeps_alpha_at_every_size(rows: int) -> None:
    random = np.random.default_rng(rows)
    reference = Histogram.fit(random.normal(size=8000), 32)
    policy = DriftPolicy(alpha=0.05, min_psi=0.0)
    limit = threshold(policy, reference_rows=8000, rows=rows, freedom=31, columns=1)
    alarms = sum(psi(reference, reference.empty().add(random.normal(size=rows))) > limit for _ in range(300))
    assert alarms / 300 < 0.09


def test_shift_of_half_a_deviation_is_seen_in_a_week_of_rows() -> None:
    random = np.random.default_rng(1)
    reference = Histogram.fit(random.normal(size=8000), 32)
    shifted = reference.empty().add(random.normal(0.5, 1, size=2000))
    assert psi(reference, shifted) > threshold(POLICY, reference_rows=8000, rows=2000, freedom=31, columns=14)


def test_what_weeks_naturally_differ_by_is_no_alarm() -> None:
    limit = threshold(POLICY, reference_rows=8000, rows=2000, freedom=31, columns=14, natural=(0.4, 2.0, 1.1))
    assert limit == 3.0


def test_one_window_alone_says_nothing() -> None:
    assert verdict(window(temp=0.9)) == "stable"
    assert verdict(window(temp=0.0), window(temp=0.9)) == "stable"
    assert verdict(window(quality(0.3))) == "stable"


def test_two_windows_over_in_the_same_column_are_drift() -> None:
    judged = judge(POLICY, window(a=0.9, b=0.3), [window(a=0.5, b=0.1)], CLAIMED)
    assert (judged.verdict, judged.drifted) == ("drifted", ("a",))
    assert "a changed" in judged.sentence


def test_two_windows_over_in_different_columns_are_not_drift() -> None:
    assert verdict(window(a=0.9, b=0.0), window(a=0.0, b=0.9)) == "stable"


def test_excess_loss_in_two_windows_is_lost_quality_and_outranks_drift() -> None:
    assert verdict(window(quality(0.05), a=0.9), window(quality(0.06), a=0.9)) == "quality_lost"


def test_significant_but_tiny_excess_is_not_lost_quality() -> None:
    assert verdict(*[window(quality(0.01, 0.0005))] * 4) == "stable"


def test_large_but_insignificant_excess_is_not_lost_quality() -> None:
    assert verdict(*[window(quality(0.05, 0.06))] * 2) == "stable"


def test_small_windows_are_judged_together() -> None:
    small = window(quality(0.05, 0.03, labelled=150))
    assert verdict(small, small, small) == "stable"
    assert verdict(small, small, small, small) == "quality_lost"


def test_improvement_never_alarms() -> None:
    assert verdict(*[window(quality(-0.2, 0.001, auc=0.95))] * 4) == "stable"


def test_clear_fall_of_auc_in_two_windows_is_lost_quality() -> None:
    assert verdict(*[window(quality(auc=0.55))] * 2) == "quality_lost"
    assert verdict(*[window(quality(auc=0.70))] * 2) == "stable"


def test_claim_from_few_rows_is_no_yardstick() -> None:
    low = quality(auc=0.62, labelled=150)
    assert not auc_fell(low, {"auc": 0.75, "rows": 40.0, "label_mean": 0.3}, POLICY)
    assert not auc_fell(low, {}, POLICY)


def test_windows_without_labels_leave_quality_open() -> None:
    assert verdict(window(quality(0.3)), window(quality(0.3)), window(None)) == "stable"
    assert verdict(window(quality(0.3)), window(quality(0.3, labelled=20))) == "stable"


def test_too_few_rows_are_said_to_be_too_few() -> None:
    judged = judge(POLICY, window(rows=99, a=5.0), [], CLAIMED)
    assert judged.verdict == "too_little_data"
    assert "99 rows" in judged.sentence


def test_calibrated_model_has_no_excess_in_an_easy_or_a_hard_season() -> None:
    random = np.random.default_rng(3)
    for low, high in ((0.02, 0.1), (0.2, 0.8)):
        p = random.uniform(low, high, 4000)
        measured = measure(p, (random.random(4000) < p).astype(float))
        assert measured is not None
        assert abs(measured.z) < 3


def test_flipped_relation_has_a_large_excess() -> None:
    random = np.random.default_rng(3)
    p = random.uniform(0.05, 0.95, 2000)
    measured = measure(p, (random.random(2000) < 1 - p).astype(float))
    assert measured is not None
    assert measured.z > 5
    assert measured.auc < 0.5


def test_quality_of_nothing_is_nothing() -> None:
    assert measure([], []) is None
    one_label = measure([0.2] * 200, [0.0] * 200)
    assert one_label is not None
    assert math.isnan(one_label.auc)


DEFINITION = Definition(
    name="m",
    purpose="p",
    label="y",
    columns=(Column(name="n", kind="number", required=False), Column(name="c", kind="category")),
)


def draw(n: int, seed: int, shift: float = 0.0) -> tuple[list[dict[str, object]], np.ndarray]:
    random = np.random.default_rng(seed)
    rows = [{"n": float(v) if i % 9 else None, "c": "ab"[i % 2]} for i, v in enumerate(random.normal(shift, 1, n))]
    return rows, random.uniform(0.1, 0.9, n)


def test_baseline_survives_its_document_and_scores_only_the_changed_column() -> None:
    rows, p = draw(6000, 1)
    made = Baseline.fit(DEFINITION, rows, p, np.arange(6000) // 1000, {"auc": 0.7})
    baseline = Baseline.from_bytes(made.to_bytes())
    assert baseline == made
    assert len(baseline.natural["n"]) == 6
    changed, q = draw(1500, 2, shift=1.0)
    measured = score(POLICY, baseline, baseline.sketch(DEFINITION, changed, q.tolist()), None, 1500)
    assert measured.over == {"n"}


def test_category_never_seen_before_is_drift() -> None:
    rows, p = draw(3000, 1)
    baseline = Baseline.fit(DEFINITION, rows, p, np.zeros(3000, dtype=np.int64), {})
    strange = [row | {"c": "z"} for row in rows[:1000]]
    measured = score(POLICY, baseline, baseline.sketch(DEFINITION, strange, p[:1000].tolist()), None, 1000)
    assert "c" in measured.over
