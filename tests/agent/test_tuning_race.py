"""Recipes, rankings, rounds and the words of a report: what tuning computes without a runtime."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.wire.plans import RunPlan, fault_of
from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.boxclass import effective_isa
from landreeve_agent.tuning.candidates import Box, plain
from landreeve_agent.tuning.exclude import fewest, rank
from landreeve_agent.tuning.quantise import MOST_UNITS
from landreeve_agent.tuning.race import Samples, fallen, ratio_of
from landreeve_agent.tuning.recipes import KINDS, BadRecipeError, Recipe, parse_recipe
from landreeve_agent.tuning.report import PreflightReport, Trial
from landreeve_agent.tuning.weights import blocks_of


@given(st.sampled_from(sorted(KINDS)), st.frozensets(st.integers(0, MOST_UNITS - 1)))
def test_every_recipe_survives_its_word_and_the_wire(kind: str, keep: frozenset[int]) -> None:
    recipe = Recipe(kind, keep)
    assert parse_recipe(recipe.text) == recipe
    plan = RunPlan(backend="openvino", device="cpu", precision=recipe.precision, recipe=recipe.text)
    assert fault_of(plan) == ""


@pytest.mark.parametrize("text", ["", "qdq:keep=", "qdq:keep=xyz", "../qdq", "melted", "qdq "])
def test_a_word_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(BadRecipeError, match="known are qdq"):
        parse_recipe(text)


@given(st.lists(st.floats(0.1, 10), min_size=5, max_size=25))
def test_the_bound_of_a_ratio_is_one_of_its_rounds_and_not_below_the_median(rounds: list[float]) -> None:
    ratio = ratio_of(rounds, [1.0] * len(rounds))
    assert ratio.high in rounds
    assert ratio.high >= ratio.median


def test_few_rounds_prove_nothing() -> None:
    assert ratio_of([0.1] * 4, [1.0] * 4).high == math.inf


def test_one_lucky_round_proves_nothing_either() -> None:
    noisy = [0.5, 0.6, 1.4, 0.7, 1.5, 0.6, 1.3]
    assert ratio_of(noisy, [1.0] * 7).median < 0.95
    assert ratio_of(noisy, [1.0] * 7).high > 1


def samples(*medians: float) -> Samples:
    return Samples(medians=list(medians))


def test_a_stage_drops_the_slow_and_keeps_the_default() -> None:
    pool = {
        "default": samples(10, 10, 10),
        "fast": samples(4, 4, 4),
        "near": samples(4.4, 4.4, 4.4),
        "slow": samples(6, 6, 6),
    }
    dropped = fallen(pool, "default", most=3)
    assert dropped == {"slow": "1.50 times the time of the best"}
    assert fallen(pool, "default", most=1)["near"] == "1.10 times the time of the best; only 1 go on"
    assert fallen({"default": samples(1, 1, 1)}, "default", most=1) == {}


@given(st.sets(st.integers(0, 19), max_size=8), st.integers(0, 3))
def test_no_more_layers_are_left_out_than_the_gate_needs(guilty: set[int], seed: int) -> None:
    noise = np.random.default_rng(seed).random(20)
    ranked = rank(20, 20, lambda unit: float(noise[min(unit)] + 10 * (min(unit) in guilty)))
    kept = fewest(ranked, 10, lambda out: guilty <= out)
    assert kept == (frozenset(guilty) if guilty else frozenset(ranked.groups[0]))


def test_a_graph_that_half_its_layers_cannot_save_is_given_up() -> None:
    ranked = rank(8, 8, lambda unit: float(sum(unit)))
    assert fewest(ranked, 4, lambda _: False) is None


def test_packed_weights_come_back_within_half_a_step() -> None:
    weight = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    values, scales = blocks_of(weight, bits=8, block=32)
    back = (values.astype(np.float32) - 128) * scales.reshape(3, 2)[..., None]
    step = np.abs(scales).max()
    assert np.abs(back.reshape(3, -1)[:, :50].T - weight).max() <= step * 1.01


def test_a_cap_on_instruction_sets_takes_bf16_from_the_candidates() -> None:
    flags = ["sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"]
    free = Box(2, effective_isa(flags, {}), ("cpu",))
    capped = Box(2, effective_isa(flags, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}), ("cpu",))
    assert any(plan.precision == "bf16" for plan in plain(free, "auto"))
    assert not any(plan.precision == "bf16" for plan in plain(capped, "auto"))


def trial(what: str, plan: Plan, **changes: object) -> Trial:
    return msgspec.structs.replace(Trial(what=what, plan=plan, accepted=True, why=""), **changes)


def test_a_report_says_what_won_by_how_much_and_why_others_fell() -> None:
    won, default = Plan("openvino", precision="int8", recipe="nncf", threads=2), Plan()
    report = PreflightReport(
        plan=won,
        trials=(
            trial(default.name, default, p50_us=4000.0, cpu_us=4100.0, ratio=1.0, stage="round 3", metric=0.975),
            trial(won.name, won, p50_us=1000.0, cpu_us=2050.0, ratio=0.25, stage="won", metric=0.97, memory_mb=128.0),
            trial("dynamic", Plan(recipe="dynamic"), accepted=False, stage="golden set", why="it worsens | by .4"),
        ),
        metric="accuracy", metric_value=0.975, golden_rows=240, max_difference=0.0, rss_mb=128.0, seconds=40.0,
        fingerprint="f", sentence="240 golden rows reproduced", box_class="b",
    )  # fmt: skip
    text = report.text()
    assert text.startswith("# openvino cpu int8 nncf 2 threads\n\n240 golden rows reproduced.")
    assert "4.0 times as fast as the default plan, 2.0 times less CPU: 1,000 against 4,000 µs a row." in text
    assert "accuracy on 240 golden rows: 0.975 at fp32, 0.97 with this plan." in text
    assert "| ✕ dynamic | golden set |" in text
    assert "it worsens / by .4" in text
    assert msgspec.json.decode(msgspec.json.encode(report), type=PreflightReport) == report
