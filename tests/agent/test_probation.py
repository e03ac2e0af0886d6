"""Judging a probation: what fails it, what ends it, and how often chance alone would."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.wire.messages import Probation
from landreeve_agent.update.bounded import evidence_below, spread
from landreeve_agent.update.probation import (
    Fail,
    Moments,
    Pass,
    ProbationStats,
    Wait,
    error_evidence,
    judge,
    log_loss,
    moments,
    radius,
)
from landreeve_agent.update.shift import distance, surely_apart

POLICY = Probation()
ENOUGH = ProbationStats(rows=600, distinct=300, distinct_before=300, difference=Moments(400, 0.0, 400 * 0.02**2))


def losses(mean: float, deviation: float, n: int) -> Moments:
    return Moments(n, mean, (n - 1) * deviation**2)


UNLABELLED = Probation(min_labelled=0)
UNDECIDED_LATE = replace(ENOUGH, rows=1000, difference=losses(0.004, 0.4, 500), elapsed_s=90_000)


def test_harmless_version_passes_as_soon_as_that_is_sure() -> None:
    verdict = judge(ENOUGH, POLICY)
    assert isinstance(verdict, Pass)
    assert "surely" in verdict.sentence


def test_too_little_traffic_waits_and_says_for_what() -> None:
    verdict = judge(replace(ENOUGH, rows=120, difference=Moments(7)), POLICY)
    assert verdict == Wait("On probation: 120 of 500 rows answered, 7 of 300 labels known.")


def test_clearly_worse_version_fails_before_the_end() -> None:
    verdict = judge(replace(ENOUGH, difference=losses(0.08, 0.3, 1500)), POLICY)
    assert isinstance(verdict, Fail)
    assert verdict.cause == "log_loss"
    assert "+0.0800 against the last good version on the same 1500 labelled rows" in verdict.sentence


def test_undecided_version_waits_until_the_end() -> None:
    unsure = replace(ENOUGH, rows=3999, difference=losses(0.004, 0.4, 500))
    assert isinstance(judge(unsure, POLICY), Wait)


@pytest.mark.parametrize(("mean", "kind"), [(0.004, Pass), (0.006, Fail)])
def test_undecided_version_is_decided_by_the_estimate_at_the_end(mean: float, kind: type) -> None:
    assert isinstance(judge(replace(ENOUGH, rows=4000, difference=losses(mean, 0.4, 500)), POLICY), kind)


def test_silent_site_proves_nothing_and_the_version_goes() -> None:
    verdict = judge(ProbationStats(rows=3, distinct=3, elapsed_s=90_000), POLICY)
    assert isinstance(verdict, Fail)
    assert verdict.cause == "not_proven"
    assert "25.0 h only 3 of 500 rows" in verdict.sentence


@pytest.mark.parametrize(
    ("rows", "errors", "kind"), [(20, 0, Pass), (19, 0, Fail), (400, 1, Fail)], ids=["enough", "too few", "one failed"]
)
def test_quiet_site_keeps_a_version_by_absolute_counts_where_the_plan_asks(rows: int, errors: int, kind: type) -> None:
    policy = Probation(on_too_little="keep")
    verdict = judge(ProbationStats(rows=rows, errors=errors, distinct=9, elapsed_s=90_000), policy)
    assert isinstance(verdict, kind)


def test_nothing_passes_before_the_least_time() -> None:
    verdict = judge(replace(ENOUGH, elapsed_s=600), Probation(min_s=1800))
    assert isinstance(verdict, Wait)
    assert "20 of 30 minutes" in verdict.sentence
    assert isinstance(judge(replace(ENOUGH, elapsed_s=1800), Probation(min_s=1800)), Pass)


def test_faulty_version_is_not_kept_for_the_least_time() -> None:
    assert isinstance(judge(replace(ENOUGH, errors=60), Probation(min_s=1800)), Fail)


def test_labels_that_never_come_prove_nothing_where_they_are_asked_for() -> None:
    unlabelled = replace(ENOUGH, rows=9000, difference=Moments())
    assert isinstance(judge(unlabelled, POLICY), Wait)
    assert isinstance(judge(replace(unlabelled, elapsed_s=90_000), POLICY), Fail)
    assert isinstance(judge(unlabelled, Probation(min_labelled=0)), Pass)


@pytest.mark.parametrize(
    ("stats", "cause"),
    [
        (replace(ENOUGH, invalid=1), "invalid_output"),
        (replace(ENOUGH, distinct=1), "constant_output"),
        (replace(ENOUGH, errors=60), "error_rate"),
        (replace(ENOUGH, p95_ms=80.0, p95_ratio=6.0), "latency"),
        (replace(ENOUGH, memory_growth_mb=1100.0), "memory"),
        (replace(ENOUGH, device_lost="It was proven on the NPU and now runs on CPU."), "accelerator_lost"),
        (replace(ENOUGH, shift=0.9, compared=600), "prediction_shift"),
        (replace(ENOUGH, confidence=spread([-0.6, -0.4] * 300)), "confidence_drop"),
    ],
)
def test_technical_faults_fail_whatever_the_quality(stats: ProbationStats, cause: str) -> None:
    verdict = judge(stats, POLICY)
    assert isinstance(verdict, Fail)
    assert verdict.cause == cause


FIRST = replace(ENOUGH, reference="base_rate", claimed_loss=0.1)


@pytest.mark.parametrize(
    ("stats", "policy", "kind"),
    [
        pytest.param(ProbationStats(rows=99, distinct=1, distinct_before=9), POLICY, Wait, id="few equal answers"),
        pytest.param(ProbationStats(rows=100, distinct=1, distinct_before=9), POLICY, Fail, id="many equal answers"),
        pytest.param(ProbationStats(rows=95, errors=7, distinct=9), POLICY, Wait, id="errors chance may bring"),
        pytest.param(ProbationStats(rows=97, errors=12, distinct=9), POLICY, Fail, id="errors chance does not bring"),
        pytest.param(replace(ENOUGH, rows=499, p95_ms=80.0, p95_ratio=6.0), POLICY, Wait, id="few service times"),
        pytest.param(replace(ENOUGH, p95_ms=80.0, p95_ratio=5.0), POLICY, Pass, id="long, as before"),
        pytest.param(replace(ENOUGH, memory_growth_mb=1024.0), POLICY, Pass, id="memory within the limit"),
        pytest.param(replace(ENOUGH, confidence=spread([-0.6, -0.1] * 6)), POLICY, Pass, id="unsure about confidence"),
        pytest.param(replace(ENOUGH, shift=0.9, compared=20), POLICY, Pass, id="answers apart on a few rows"),
        pytest.param(replace(ENOUGH, claimed_loss=0.1, loss=losses(0.5, 0.3, 500)), POLICY, Pass, id="claim, no first"),
        pytest.param(replace(FIRST, loss=losses(0.5, 0.01, 299)), POLICY, Pass, id="claim with few labels"),
        pytest.param(replace(FIRST, loss=losses(0.21, 0.5, 400)), POLICY, Pass, id="claim missed by chance"),
        pytest.param(replace(ENOUGH, difference=losses(0.3, 0.01, 299)), POLICY, Wait, id="worse on few labels"),
        pytest.param(replace(ENOUGH, difference=losses(0.3, 0.01, 300)), POLICY, Fail, id="worse on enough labels"),
        pytest.param(replace(ENOUGH, difference=losses(0.02, 0.4, 500)), POLICY, Wait, id="worse, perhaps by chance"),
        pytest.param(replace(ENOUGH, rows=499), POLICY, Wait, id="enough labels on few rows"),
        pytest.param(replace(ENOUGH, difference=losses(0.3, 0.01, 300)), UNLABELLED, Pass, id="labels not asked for"),
        pytest.param(replace(ENOUGH, difference=Moments()), UNLABELLED, Pass, id="none, and not asked for"),
        pytest.param(UNDECIDED_LATE, POLICY, Pass, id="time over before the rows"),
    ],
)
def test_each_limit_lies_where_it_is_said(stats: ProbationStats, policy: Probation, kind: type) -> None:
    assert isinstance(judge(stats, policy), kind)


def ever_less_sure(rng: random.Random, seldom: float, rows: int) -> bool:
    """Whether a confidence that fell by exactly the limit is ever found to have fallen by more: nearly always by a
    little more, ``seldom`` by much less."""
    limit, values = -POLICY.max_confidence_drop, []
    low = limit - seldom * 0.5
    for n in range(1, rows + 1):
        values.append(low + 0.5 if rng.random() < seldom else low)
        if n % 10 == 0 and evidence_below(spread(values), limit) >= 1 / POLICY.alpha:
            return True
    return False


def test_rare_values_do_not_pass_for_lost_confidence() -> None:
    rng = random.Random(5)
    for seldom in (0.02, 0.1):
        assert sum(ever_less_sure(rng, seldom, 500) for _ in range(60)) / 60 <= POLICY.alpha + 0.03
    two = ProbationStats(rows=2, distinct=1, distinct_before=1, compared=2, confidence=spread([-0.36] * 2))
    assert isinstance(judge(two, POLICY), Wait)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(-0.9, 0.9))
def test_bets_do_not_depend_on_the_order_and_never_win_on_what_is_not_below(values: list[float], limit: float) -> None:
    assert evidence_below(spread(values), limit) == pytest.approx(evidence_below(spread(values[::-1]), limit))
    assert evidence_below(spread(max(value, limit) for value in values), limit) <= 1.0 + 1e-9
    assert spread(values).mean == pytest.approx(sum(values) / len(values), abs=0.011)


def test_a_loss_that_was_always_the_same_is_not_taken_for_certain() -> None:
    """Three hundred labels of the frequent kind say little of what the rare kind will cost."""
    alike = replace(ENOUGH, difference=moments([POLICY.max_log_loss_increase + 0.005] * 300))
    assert isinstance(judge(alike, POLICY), Wait)
    assert radius(moments([0.1] * 29), 0.05, 2000) == math.inf


def test_failures_on_a_device_that_went_away_do_not_speak_against_the_release() -> None:
    failing = replace(ENOUGH, errors=60)
    assert not isinstance(judge(replace(failing, device_doubted=True), POLICY), Fail)
    lost = judge(replace(failing, device_lost="It was proven on the NPU and now runs on CPU."), POLICY)
    assert isinstance(lost, Fail)
    assert lost.cause == "accelerator_lost"
    assert isinstance(judge(failing, POLICY), Fail)


def test_constant_traffic_is_no_fault_of_the_new_version() -> None:
    assert isinstance(judge(replace(ENOUGH, distinct=1, distinct_before=1), POLICY), Pass)


def test_slower_version_that_nobody_notices_is_kept() -> None:
    assert isinstance(judge(replace(ENOUGH, p95_ms=2.0, p95_ratio=9.0), POLICY), Pass)


def test_first_model_must_beat_the_base_rate() -> None:
    first = replace(ENOUGH, reference="base_rate", distinct_before=0)
    assert isinstance(judge(replace(first, difference=losses(-0.05, 0.3, 2000)), POLICY), Pass)
    verdict = judge(replace(first, difference=losses(0.2, 0.3, 500)), POLICY)
    assert isinstance(verdict, Fail)
    assert "always forecasting the base rate" in verdict.sentence


def test_first_model_far_from_its_claim_fails() -> None:
    first = replace(ENOUGH, reference="base_rate", claimed_loss=0.1, loss=losses(0.5, 0.3, 500))
    verdict = judge(first, POLICY)
    assert isinstance(verdict, Fail)
    assert verdict.cause == "claim_missed"


def test_one_early_error_is_not_the_end() -> None:
    assert isinstance(judge(ProbationStats(rows=5, errors=1, distinct=5), POLICY), Wait)


def run_of_errors(rate: float, rng: random.Random, rows: int) -> bool:
    """Whether a version with that error rate is refused at any of its looks."""
    errors = 0
    for n in range(1, rows + 1):
        errors += rng.random() < rate
        if error_evidence(errors, n, POLICY.max_error_rate) >= 1 / POLICY.alpha:
            return True
    return False


def test_error_rate_at_the_limit_is_rarely_refused_and_thrice_the_limit_is() -> None:
    rng = random.Random(7)
    false_alarms = sum(run_of_errors(POLICY.max_error_rate, rng, 1000) for _ in range(120))
    found = sum(run_of_errors(3 * POLICY.max_error_rate, rng, 1000) for _ in range(20))
    assert false_alarms / 120 <= POLICY.alpha + 0.02
    assert found == 20


def ever_outside(rng: random.Random, rows: int) -> bool:
    """Whether the true mean 0 leaves the confidence sequence at any look from row 300 on."""
    mean, m2 = 0.0, 0.0
    for n in range(1, rows + 1):
        value = rng.gauss(0.0, 1.0) * (3.0 if rng.random() < 0.1 else 1.0)
        delta = value - mean
        mean += delta / n
        m2 += delta * (value - mean)
        if n >= 300 and n % 20 == 0 and abs(mean) > radius(Moments(n, mean, m2), 0.05, 2000):
            return True
    return False


def test_confidence_sequence_keeps_its_promise_at_every_look() -> None:
    rng = random.Random(11)
    assert sum(ever_outside(rng, 4000) for _ in range(150)) / 150 <= 0.05 + 0.02


def test_figures_are_those_of_the_papers() -> None:
    """By hand: rho^2 = (-2 ln .05 + ln(1 - 2 ln .05)) / 2000 = .003968; at n = 1000 the half width is .0975."""
    assert radius(losses(0.0, 1.0, 1000), 0.05, 2000) == pytest.approx(0.0975, abs=1e-4)
    # .85 sqrt((ln ln(1000 e) + .8 ln(1612 / .025)) / 1000) = .0891, once for each of the two distributions
    assert surely_apart(0.5, 1000, 0.05) == pytest.approx(0.5 - 2 * 0.0891, abs=1e-3)
    assert (error_evidence(1, 10, 0.0), error_evidence(0, 10, 0.0)) == (math.inf, 0.0)


def test_radius_shrinks_and_is_infinite_without_rows() -> None:
    assert radius(Moments(1, 0.0, 0.0), 0.05, 2000) == math.inf
    assert radius(losses(0, 1, 4000), 0.05, 2000) < radius(losses(0, 1, 400), 0.05, 2000)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=50))
def test_moments_are_those_of_the_textbook(values: list[float]) -> None:
    found = moments(values)
    mean = sum(values) / len(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.m2 == pytest.approx(sum((v - mean) ** 2 for v in values), abs=1e-6)


@given(
    st.builds(
        ProbationStats,
        rows=st.integers(0, 10_000),
        errors=st.integers(0, 10_000),
        invalid=st.integers(0, 3),
        distinct=st.integers(0, 100),
        difference=st.builds(losses, st.floats(-7, 7), st.floats(0, 7), st.integers(2, 10_000)),
        elapsed_s=st.floats(0, 200_000),
        p95_ms=st.none() | st.floats(0, 1e4),
        p95_ratio=st.none() | st.floats(0, 1e4),
    )
)
def test_evidence_always_leads_to_a_verdict_in_words(stats: ProbationStats) -> None:
    verdict = judge(stats, POLICY)
    assert verdict.sentence.endswith(".")
    if isinstance(verdict, Wait):
        assert stats.elapsed_s < POLICY.max_s


@given(st.floats(0, 1), st.sampled_from([0.0, 1.0]))
def test_one_row_costs_a_bounded_amount(p: float, label: float) -> None:
    assert 0.0 <= log_loss(p, label) <= 6.91


def run_of_answers(ours: float, theirs: float, rng: random.Random, limit: float) -> bool:
    """Whether answers drawn around those two rates are ever called further apart than the limit."""
    a: list[float] = []
    b: list[float] = []
    for n in range(1, 401):
        a.append(rng.betavariate(8 * ours, 8 * (1 - ours)))
        b.append(rng.betavariate(8 * theirs, 8 * (1 - theirs)))
        if n % 20 == 0 and surely_apart(distance(a, b), n, 0.05) > limit:
            return True
    return False


def test_looking_often_finds_no_shift_that_is_not_there() -> None:
    rng = random.Random(11)
    assert sum(run_of_answers(0.3, 0.3, rng, 0.0) for _ in range(60)) <= 3


def test_answers_that_lie_elsewhere_are_found_without_a_label() -> None:
    rng = random.Random(12)
    assert all(run_of_answers(0.2, 0.8, rng, 0.3) for _ in range(20))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_distance_is_symmetric_bounded_and_zero_of_itself(a: list[float], b: list[float]) -> None:
    assert 0 <= distance(a, b) <= 1
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(a, a) == 0
