"""The figures and the gate: against scikit-learn's, and against noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve_models import evaluate
from sklearn.metrics import log_loss, roc_auc_score


@given(st.integers(0, 10_000), st.integers(2, 200), st.integers(1, 20))
@settings(max_examples=50)
def test_log_loss_and_auc_are_those_of_scikit_learn(seed: int, n: int, steps: int) -> None:
    random = np.random.default_rng(seed)
    p = random.integers(1, steps + 1, n) / (steps + 1)
    y = np.r_[0, 1, random.integers(0, 2, n - 2)]
    assert evaluate.log_loss(p, y) == pytest.approx(log_loss(y, p))
    assert evaluate.auc(p, y) == pytest.approx(roc_auc_score(y, p))


def test_auc_of_one_label_is_unknown_and_left_out() -> None:
    assert np.isnan(evaluate.auc([0.1, 0.2], [0, 0]))
    assert "auc" not in evaluate.summary([0.1, 0.2], [0, 0])


def test_certain_and_wrong_is_expensive_but_finite() -> None:
    assert evaluate.log_loss([0.0], [1]) == pytest.approx(-np.log(evaluate.CLIP))


def test_loss_of_a_calibrated_model_is_its_own_entropy() -> None:
    random = np.random.default_rng(4)
    p = random.uniform(0.02, 0.98, 40_000)
    y = random.random(40_000) < p
    excess = evaluate.paired(evaluate.losses(p, y) - evaluate.entropy(p))
    assert abs(excess.z) < 4
    assert evaluate.ece(p, y) < 0.02


def scenario(gain: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a champion that knows part, a challenger that knows ``gain`` more of it."""
    random = np.random.default_rng(5)
    a, b = random.normal(size=n), random.normal(size=n)
    truth = 1 / (1 + np.exp(-(a + gain * b)))
    return (random.random(n) < truth).astype(float), 1 / (1 + np.exp(-a)), truth


def test_clearly_better_challenger_passes_and_says_by_how_much() -> None:
    y, champion, challenger = scenario(1.0)
    verdict = evaluate.gate(y, challenger, champion, 0.5)
    assert verdict.passed
    assert verdict.cause == "better"
    assert verdict.figures["gain"] > 0
    assert "held-out rows" in verdict.sentence


def test_same_model_again_does_not_pass() -> None:
    y, champion, _ = scenario(1.0)
    assert evaluate.gate(y, champion, champion, 0.5).cause == "not_better"


def test_worse_challenger_does_not_pass() -> None:
    y, champion, challenger = scenario(1.0)
    assert evaluate.gate(y, champion, challenger, 0.5).cause == "not_better"


def test_gain_within_noise_does_not_pass() -> None:
    y, champion, challenger = scenario(0.05, 400)
    assert not evaluate.gate(y, challenger, champion, 0.5).passed


def test_first_model_must_beat_the_base_rate() -> None:
    y, champion, _ = scenario(0.0)
    assert evaluate.gate(y, champion, None, float(y.mean())).passed
    shuffled = np.random.default_rng(6).permutation(champion)
    assert not evaluate.gate(y, shuffled, None, float(y.mean())).passed


@pytest.mark.parametrize("output", [np.full(100, 0.3), np.full(100, np.nan), np.r_[np.full(99, 0.3), np.inf]])
def test_constant_and_broken_outputs_never_pass(output: np.ndarray) -> None:
    y = np.r_[np.zeros(50), np.ones(50)]
    assert evaluate.gate(y, output, None, 0.9).cause == "degenerate_output"


def test_dependent_neighbours_widen_the_error() -> None:
    random = np.random.default_rng(7)
    storms = np.repeat(random.normal(size=100), 50)
    naive = storms.std(ddof=1) / np.sqrt(len(storms))
    assert evaluate.paired(storms).standard_error > 3 * naive
