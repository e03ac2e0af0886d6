"""Which plans are tried, which pass, and which wins: the pure part of tuning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.manifest import Gates
from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.candidates import Box, candidates, default_plan, thread_counts
from landreeve_agent.tuning.choose import MARGIN, Timed, choose, joined_rows
from landreeve_agent.tuning.gate import judge
from landreeve_models.samples import Golden

AVX2 = frozenset({"avx2", "fma"})
BF16 = frozenset({"avx512_bf16"})


def names(box: Box, wanted: str = "auto") -> list[str]:
    return [plan.name for plan in candidates(box, wanted)]


def test_the_default_plan_comes_first_and_no_plan_twice() -> None:
    box = Box(6, BF16, ("cpu", "gpu", "npu"), ("cpu", "gpu"), int8=True)
    found = names(box)
    assert found[0] == default_plan().name == "onnxruntime cpu fp32 1 thread"
    assert len(set(found)) == len(found)
    assert {"openvino npu fp16 1 thread", "onnxruntime gpu fp32 1 thread"} <= set(found)


def test_threads_never_exceed_the_budget() -> None:
    assert thread_counts(1) == (1,)
    assert thread_counts(8) == (1, 2, 4, 8)
    assert all(plan.threads <= 6 for plan in candidates(Box(6, BF16, ("cpu",), int8=True), "auto"))


def test_bf16_is_tried_only_where_it_is_native() -> None:
    assert not any("bf16" in name for name in names(Box(2, AVX2, ("cpu",))))
    assert any("bf16" in name for name in names(Box(2, BF16, ("cpu",))))


def test_without_openvino_and_quantiser_only_onnxruntime_fp32_is_tried() -> None:
    assert names(Box(2, BF16)) == ["onnxruntime cpu fp32 1 thread", "onnxruntime cpu fp32 2 threads"]


def timed(plan: Plan, ratio: float, cpu_us: float = 10.0) -> Timed:
    return Timed(plan, 10 * ratio, 12 * ratio, cpu_us, ratio)


DEFAULT = timed(default_plan(), 1.0)
TWO = Plan(threads=2)
OPENVINO = Plan("openvino", "cpu", "bf16", 1)


def test_the_fastest_wins_when_it_is_clearly_faster() -> None:
    assert choose([DEFAULT, timed(TWO, 0.8), timed(OPENVINO, 0.4)], "auto").plan == OPENVINO


def test_a_gain_within_the_noise_keeps_the_default() -> None:
    assert choose([DEFAULT, timed(TWO, 0.97)], "auto").plan == default_plan()


def test_among_near_equals_the_one_that_costs_less_cpu_wins() -> None:
    assert choose([DEFAULT, timed(TWO, 0.50, 30), timed(OPENVINO, 0.52, 12)], "auto").plan == OPENVINO


def test_a_wanted_device_is_used_where_a_plan_for_it_passed_even_when_slower() -> None:
    gpu = Plan("openvino", "gpu", "fp16")
    assert choose([DEFAULT, timed(gpu, 1.7)], "gpu").plan.device == "gpu"


def test_a_wanted_device_without_a_plan_leaves_its_reason_on_the_winner() -> None:
    winner = choose([DEFAULT, timed(OPENVINO, 0.4)], "npu").plan
    assert (winner.device, winner.reason) == ("cpu", "no plan for NPU works on this box")


@given(st.lists(st.tuples(st.floats(0.05, 20), st.floats(0.1, 1e4)), max_size=8))
def test_the_winner_is_never_slower_than_the_default(others: list[tuple[float, float]]) -> None:
    pool = [DEFAULT, *(timed(Plan(threads=i + 2), ratio, cpu) for i, (ratio, cpu) in enumerate(others))]
    winner = choose(pool, "auto")
    assert winner.ratio <= 1.0
    assert winner.plan == default_plan() or winner.ratio <= 1 - MARGIN


def test_joining_is_on_only_where_it_pays() -> None:
    assert joined_rows(10.0, 20.0, 32) == 32
    assert joined_rows(1000.0, 31_000.0, 32) == 1


def golden(n: int = 200) -> Golden:
    rng = np.random.default_rng(1)
    expected = rng.uniform(0.05, 0.95, n).astype(np.float32)
    return Golden((np.zeros((n, 2), np.float32),), (expected,), (rng.random(n) < expected).astype(np.float32))


def test_fp32_must_reproduce_the_golden_outputs_themselves() -> None:
    g = golden()
    off = g.expected[0].copy()
    off[17] += 0.01
    verdict = judge([off], g, Gates(), exact=True)
    assert not verdict.accepted
    assert verdict.why.startswith("golden row 17: expected ")
    assert judge([g.expected[0] + np.float32(5e-4)], g, Gates(), exact=True).accepted


def test_a_reduced_precision_may_cost_only_the_stated_loss() -> None:
    g = golden()
    slightly = np.clip(g.expected[0] + 0.004, 0, 1).astype(np.float32)
    assert judge([slightly], g, Gates(), exact=False).accepted
    wrong = (1 - g.expected[0]).astype(np.float32)
    verdict = judge([wrong], g, Gates(), exact=False)
    assert not verdict.accepted
    assert "log_loss worsens by" in verdict.why


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("exact", [True, False])
def test_one_output_that_is_no_number_fails(bad: float, exact: bool) -> None:
    g = golden()
    off = g.expected[0].copy()
    off[3] = bad
    verdict = judge([off], g, Gates(), exact=exact)
    assert (verdict.accepted, verdict.why) == (False, "1 of 200 golden outputs are NaN or infinite")


def test_auc_is_a_gain_and_an_unknown_metric_an_error() -> None:
    g = golden()
    assert not judge([(1 - g.expected[0]).astype(np.float32)], g, Gates(metric="auc"), exact=False).accepted
    with pytest.raises(ValueError, match="known are log_loss, auc"):
        judge(g.expected, g, Gates(metric="f7"), exact=True)
