"""Which plans are tried, which pass, and which wins: the pure part of tuning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.manifest import Gates
from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.candidates import Box, default_plan, made, neighbours, plain, shapes, thread_counts
from landreeve_agent.tuning.choose import MARGIN, Timed, choose, joined_rows
from landreeve_agent.tuning.gate import DOUBT, judge, loss_of
from landreeve_agent.tuning.graph import GraphFacts
from landreeve_models.samples import Golden

AVX2 = frozenset({"avx2", "fma"})
BF16 = frozenset({"avx512_bf16"})
TWO = Plan(threads=2)
OPENVINO = Plan("openvino", "cpu", "bf16", 1)


CONVOLUTIONS = GraphFacts(nodes=100, products=1, weighted=1, weight_bytes=20_000, convolutions=32)
PRODUCTS = GraphFacts(nodes=500, products=48, weighted=36, weight_bytes=42_000_000)
TINY = GraphFacts(nodes=9, products=2, weighted=2, weight_bytes=5_000)


def names(box: Box, wanted: str = "auto") -> list[str]:
    return [plan.name for plan in plain(box, wanted)]


def kinds(box: Box, facts: GraphFacts, run_us: float = 10_000.0, *, exhaustive: bool = False) -> set[tuple[str, str]]:
    chosen = made(box, facts, run_us, "auto", exhaustive=exhaustive)
    return {(plan.backend, plan.recipe) for plan in chosen.plans}


def test_the_default_plan_comes_first_and_no_plan_twice() -> None:
    box = Box(6, BF16, ("cpu", "gpu", "npu"), ("cpu", "gpu"))
    found = names(box)
    assert found[0] == default_plan().name == "onnxruntime cpu fp32 1 thread"
    assert len(set(found)) == len(found)
    assert {"openvino npu fp16 1 thread", "onnxruntime gpu fp32 1 thread"} <= set(found)


@given(st.integers(1, 64), st.sampled_from(["latency", "throughput"]))
def test_threads_of_all_streams_never_exceed_the_budget(budget: int, objective: str) -> None:
    assert thread_counts(budget)[-1] == budget
    for plan in (*shapes(OPENVINO, budget, objective), *neighbours(OPENVINO, budget, objective)):
        assert plan.threads * plan.streams <= budget


def test_streams_are_tried_for_throughput_alone() -> None:
    assert {plan.streams for plan in shapes(TWO, 8, "latency")} == {1}
    assert {(plan.threads, plan.streams) for plan in shapes(TWO, 8, "throughput")} == {(1, 1), (8, 1), (1, 8)}


def test_bf16_is_tried_only_where_it_is_native() -> None:
    assert not any("bf16" in name for name in names(Box(2, AVX2, ("cpu",))))
    assert any("bf16" in name for name in names(Box(2, BF16, ("cpu",))))


def test_onnxruntime_has_bf16_kernels_on_arm_alone() -> None:
    assert "onnxruntime cpu bf16 1 thread" in names(Box(4, frozenset({"asimd", "bf16"})))
    assert names(Box(2, BF16)) == ["onnxruntime cpu fp32 1 thread"]


def test_dynamic_int8_is_not_tried_on_convolutions_nor_packed_weights_without_weights() -> None:
    box = Box(2, BF16, ("cpu",))
    assert kinds(box, CONVOLUTIONS) == {("onnxruntime", "qdq"), ("openvino", "nncf")}
    assert {("onnxruntime", "dynamic"), ("openvino", "weights8"), ("onnxruntime", "weights4")} <= kinds(box, PRODUCTS)


def test_a_tiny_graph_is_worth_no_quantiser_that_takes_seconds() -> None:
    assert kinds(Box(2, BF16, ("cpu",)), TINY, run_us=9.0) == {("onnxruntime", "qdq")}
    why = made(Box(2, BF16, ("cpu",)), TINY, 9.0, "auto").left_out["nncf"]
    assert why == "a run takes 9 µs: a smaller precision cannot repay its making"


def test_what_is_not_installed_is_told_and_not_tried() -> None:
    chosen = made(Box(2, BF16, no_nncf="nncf is not installed"), CONVOLUTIONS, 5000.0, "auto")
    assert chosen.left_out["nncf"] == "nncf is not installed"
    assert {plan.recipe for plan in chosen.plans} == {"qdq"}


def test_an_exhaustive_search_tries_the_stock_recipes_too() -> None:
    found = kinds(Box(2, AVX2, ("cpu",)), CONVOLUTIONS, exhaustive=True)
    assert {("onnxruntime", "stock-dynamic"), ("onnxruntime", "stock-qdq"), ("onnxruntime", "dynamic")} <= found


def test_trees_have_nothing_to_quantise() -> None:
    chosen = made(Box(2, AVX2, ("cpu",)), GraphFacts(nodes=3), 50.0, "auto", exhaustive=True)
    assert chosen.plans == ()


def timed(plan: Plan, ratio: float, cpu_us: float = 10.0, high: float | None = None) -> Timed:
    return Timed(plan, 10 * ratio, 12 * ratio, cpu_us, ratio, ratio if high is None else high)


DEFAULT = timed(default_plan(), 1.0)


def test_the_fastest_wins_when_it_is_clearly_faster() -> None:
    assert choose([DEFAULT, timed(TWO, 0.8), timed(OPENVINO, 0.4)], "auto").plan == OPENVINO


def test_a_gain_within_the_noise_keeps_the_default() -> None:
    assert choose([DEFAULT, timed(TWO, 0.97)], "auto").plan == default_plan()
    assert choose([DEFAULT, timed(TWO, 0.7, high=1.2)], "auto").plan == default_plan()


def test_among_near_equals_the_one_that_costs_less_cpu_wins() -> None:
    assert choose([DEFAULT, timed(TWO, 0.50, 30), timed(OPENVINO, 0.51, 12)], "auto").plan == OPENVINO


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


def classes(right: int, n: int = 200) -> Golden:
    """A classification of ``n`` rows whose expected scores are right for the first ``right``."""
    label = np.zeros(n, np.float32)
    scores = np.tile(np.array([[0.9, 0.1]], np.float32), (n, 1))
    scores[right:] = [0.1, 0.9]
    return Golden((np.zeros((n, 1), np.float32),), (scores,), label)


def flipped(g: Golden, rows: list[int]) -> list[np.ndarray]:
    scores = g.expected[0].copy()
    scores[rows] = scores[rows][:, ::-1]
    return [scores]


def test_rows_that_turn_both_ways_are_noise_a_small_golden_set_cannot_vouch_for() -> None:
    g = classes(190)
    gates = Gates(metric="accuracy", max_metric_loss=0.005)
    assert judge(flipped(g, [5, 195]), g, gates, exact=False).accepted
    many = judge(flipped(g, [*range(6), *range(192, 198)]), g, gates, exact=False)
    assert not many.accepted
    assert "cannot show that this is safe" in many.why


def test_the_error_of_a_loss_is_that_of_its_rows() -> None:
    g = classes(190, 2000)
    loss, error = loss_of("accuracy", flipped(g, [3]), g)
    assert (loss, error) == (pytest.approx(1 / 2000), pytest.approx(1 / 2000, rel=0.3))
    assert loss_of("accuracy", g.expected, g) == (0.0, 0.0)
    assert DOUBT > 1


def test_a_metric_that_cannot_be_computed_lets_no_reduced_precision_pass() -> None:
    g = golden()
    one_sided = Golden(g.inputs, g.expected, np.zeros_like(g.label))
    verdict = judge(g.expected, one_sided, Gates(metric="auc"), exact=False)
    assert (verdict.accepted, verdict.why) == (False, "auc cannot be computed on this golden set")
    assert judge(g.expected, one_sided, Gates(metric="auc"), exact=True).accepted
