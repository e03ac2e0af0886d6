"""Graphs of reduced precision, really made of small real releases: they run, they keep what they are told to keep, and
what spoils a model is found."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from landreeve.release.manifest import Gates
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.policy import require_accepted
from landreeve_agent.serving.session import open_session
from landreeve_agent.tuning.attempts import Attempts, Clock, outputs_of
from landreeve_agent.tuning.exclude import Exclusion, relative_error
from landreeve_agent.tuning.gate import judge
from landreeve_agent.tuning.inputs import read_release
from landreeve_agent.tuning.measure import Stopwatch
from landreeve_agent.tuning.quantise import Kitchen, NotQuantisedError
from landreeve_agent.tuning.recipes import Recipe, parse_recipe
from landreeve_models.definition import load_definition
from landreeve_models.samples import read_calibration

from tests.agent.onnx_models import write_release
from tests.models.tensor_releases import image_release, text_release


def kitchen(folder: Path) -> Kitchen:
    definition = load_definition(folder)
    sample = read_calibration(folder, definition)
    source, signature = folder / "model.onnx", definition.signature()
    return Kitchen(source, folder, sample, isa=frozenset({"avx512_vnni"}), threads=1, signature=signature)


def error_of(folder: Path, graph: Path) -> float:
    """The relative error of a graph's first output on the golden set."""
    _, _, golden = read_release(folder)
    session = open_session(Plan(), graph.read_bytes()).session
    return relative_error(outputs_of(session, golden), golden.expected)


@pytest.mark.parametrize("recipe", ["qdq", "dynamic", "weights8", "weights4"])
def test_every_graph_made_of_a_text_encoder_is_one_the_worker_loads(tmp_path: Path, recipe: str) -> None:
    folder = text_release(tmp_path / "text")
    made = kitchen(folder).make(parse_recipe(recipe))
    require_accepted(made)
    assert 0 < error_of(folder, made) < 0.5


def test_int8_of_pictures_keeps_their_scores_near(tmp_path: Path) -> None:
    folder = image_release(tmp_path / "image")
    made = kitchen(folder).make(Recipe("qdq"))
    require_accepted(made)
    assert 0 < error_of(folder, made) < 0.1
    kinds = {node.op_type for node in onnx.load(made).graph.node}
    assert "QuantizeLinear" in kinds


@pytest.mark.parametrize("kind", ["qdq", "dynamic", "weights4"])
def test_a_graph_that_keeps_every_layer_is_the_release_again(tmp_path: Path, kind: str) -> None:
    folder = text_release(tmp_path / "text")
    stove = kitchen(folder)
    units = len(stove.units(kind))
    half = error_of(folder, stove.make(Recipe(kind, frozenset(range(units // 2)))))
    assert half < error_of(folder, stove.make(Recipe(kind)))
    if kind == "weights4":
        with pytest.raises(NotQuantisedError, match="no matrix product"):
            stove.make(Recipe(kind, frozenset(range(units))))
    else:
        assert error_of(folder, stove.make(Recipe(kind, frozenset(range(units))))) < 1e-5


def test_nncf_makes_a_graph_and_its_layers_can_be_given_back(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    folder = text_release(tmp_path / "text")
    stove = kitchen(folder)
    whole = error_of(folder, stove.make(Recipe("nncf")))
    units = len(stove.units("nncf"))
    restored = stove.make(Recipe("nncf", frozenset(range(units))))
    require_accepted(restored)
    assert error_of(folder, restored) < whole / 2  # the embedding table, which is no layer of ours, stays int8


def test_a_recipe_for_another_graph_is_refused(tmp_path: Path) -> None:
    folder = image_release(tmp_path / "image")
    with pytest.raises(NotQuantisedError, match="keeps unit 60, the graph has 3: another graph's"):
        kitchen(folder).make(Recipe("qdq", frozenset({60})))


def test_a_tabular_release_has_its_int8_graph_too(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "table")
    require_accepted(kitchen(folder).make(Recipe("qdq")))


# --- the two stock recipes that spoil models without any error


def verdict_of(folder: Path, recipe: str) -> tuple[bool, str]:
    _, gates, golden = read_release(folder)
    made = kitchen(folder).make(parse_recipe(recipe))
    found = judge(outputs_of(open_session(Plan(), made.read_bytes()).session, golden), golden, gates, exact=False)
    return found.accepted, found.why


def test_stock_static_int8_of_a_text_encoder_is_refused(tmp_path: Path) -> None:
    gates = Gates(metric="cosine", max_metric_loss=0.005)
    accepted, why = verdict_of(text_release(tmp_path / "text", gates=gates), "stock-qdq")
    assert not accepted
    assert "cosine worsens by" in why


def test_layers_are_left_out_until_the_gate_holds(tmp_path: Path) -> None:
    """A gate that the whole int4 graph breaks, and that it keeps with its worst layers at fp32."""
    gates = Gates(metric="cosine", max_metric_loss=0.002, max_output_difference=1e-3)
    folder = text_release(tmp_path / "text", gates=gates)
    _, gates, golden = read_release(folder)
    stove = kitchen(folder)
    watch = Stopwatch(golden.inputs, "latency")
    attempts = Attempts(folder, folder, golden=golden, gates=gates, watch=watch, skip={}, tell=lambda _: None)
    default = attempts.open(Plan())
    attempts.prove(default)
    recipe = Recipe("weights4")
    stove.make(recipe)
    plan = Plan(precision="int4", recipe=recipe.text, graph=recipe.graph)
    failed = attempts.consider(plan, patient=True)
    assert not failed.accepted
    rescued = Exclusion(attempts, stove, Clock(60.0)).rescue(failed, until=0.9)
    assert rescued is not None
    assert rescued.accepted
    kept = parse_recipe(rescued.plan.recipe).keep
    assert 0 < len(kept) <= len(stove.units("weights4")) // 2
    assert f"it holds with {len(kept)} of {len(stove.units('weights4'))} layers left at fp32" in failed.why
    assert np.isfinite(rescued.look_us)
