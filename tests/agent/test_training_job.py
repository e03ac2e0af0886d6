"""A job's split keeps time in order and the holdout untouched; bad data is an outcome and not a crash."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.layout import Packed, write_folder
from landreeve.release.manifest import Column
from landreeve_agent.training.fitting import gather, train
from landreeve_agent.training.job import (
    Job,
    LabelledRow,
    Outcome,
    TrainRequest,
    canonical,
    dataset_digest,
    split,
)
from landreeve_models import onnx_policy
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition, check_definition, parse_definition
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.inference import predict_graph
from safetensors.numpy import load

from tests.models.tensor_releases import image_definition

DEFINITION = Definition(
    name="toy",
    purpose="Whether a is positive, mostly",
    label="y",
    columns=(Column(name="a", kind="number"), Column(name="c", kind="category")),
    window_days=1,
    recipes={"mlp": {"hidden": [4], "epochs": 6, "batch": 128}},
)


def lines(n: int, seed: int = 0, strength: float = 3.0) -> list[LabelledRow]:
    random = np.random.default_rng(seed)
    a = random.normal(size=n)
    y = random.random(n) < 1 / (1 + np.exp(-strength * a))
    return [
        LabelledRow(
            at=f"2026-01-{1 + i * 20 // n:02d}T00:00:00Z", row={"a": float(a[i]), "c": "xy"[i % 2]}, label=float(y[i])
        )
        for i in range(n)
    ]


def job(**changes: Any) -> Job:
    request = TrainRequest(model="toy", first="2026-01-01T00:00:00Z", last="2026-02-01T00:00:00Z", reason="test")
    made = Job(run="r", site="s", request=request, definition=DEFINITION, code="c", created="2026-02-01T00:00:00Z")
    return msgspec.structs.replace(made, **changes)


def run(rows: list[LabelledRow], folder: Path, **changes: Any) -> tuple[Outcome, Packed | None]:
    folder.mkdir(exist_ok=True)
    return train(job(**changes), gather(rows), folder, lambda share, words: None)


@given(st.integers(200, 500_000))
def test_split_is_ordered_disjoint_and_golden_is_never_trained_on(rows: int) -> None:
    parts = split(rows)
    whole = [*parts.fit, *parts.validation, *parts.holdout]
    assert whole == list(range(rows))
    assert set(parts.golden()) <= set(parts.holdout)
    assert len(parts.golden()) <= 2049
    assert parts.golden().stop <= rows


def test_dataset_digest_changes_with_any_value_and_only_then() -> None:
    rows = lines(50)
    digest = dataset_digest([canonical(row) for row in rows])
    reordered = [msgspec.structs.replace(row, row=dict(reversed(row.row.items()))) for row in rows]
    assert dataset_digest([canonical(row) for row in reordered]) == digest
    changed = [*rows[:-1], msgspec.structs.replace(rows[-1], label=1 - rows[-1].label)]
    assert dataset_digest([canonical(row) for row in changed]) != digest


def test_candidate_is_a_release_whose_every_claim_can_be_checked(tmp_path: Path) -> None:
    outcome, packed = run(lines(2000), tmp_path / "a", champion_release="ab" * 32)
    assert packed is not None
    assert outcome.manifest == packed.digest
    onnx_policy.check(packed.file("model.onnx"), width=2)
    golden = load(packed.file("golden.safetensors"))
    np.testing.assert_array_equal(predict_graph(packed.file("model.onnx"), golden["x"]), golden["expected"])
    assert parse_definition(packed.file("definition.json")) == DEFINITION
    assert Pipeline.from_bytes(packed.file("features.json")).width == 2
    baseline = Baseline.from_bytes(packed.file("baseline.json"))
    assert set(baseline.columns) == {"a", "c", "prediction"}
    config = packed.config
    assert config.signature.width == 2
    assert 0 < config.gates.metrics["log_loss"] < 0.69
    assert config.lineage.parent == "ab" * 32
    assert config.lineage.dataset == gather(lines(2000)).digest
    assert len(load(packed.file("calibration.safetensors"))["x"]) == 512


def test_bill_of_materials_names_model_data_and_libraries(tmp_path: Path) -> None:
    _, packed = run(lines(2000), tmp_path / "a")
    assert packed is not None
    bom = msgspec.json.decode(packed.file("bom.json"))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.7")
    assert bom["metadata"]["component"]["type"] == "machine-learning-model"
    assert {"numpy", "onnx", "torch"} <= {c["name"] for c in bom["components"]}
    references = {c["bom-ref"] for c in bom["components"]} | {"model"}
    assert all(set(d["dependsOn"]) <= references for d in bom["dependencies"])


def test_same_job_gives_the_same_candidate_bit_for_bit(tmp_path: Path) -> None:
    one, two = (run(lines(2000), tmp_path / name)[1] for name in "ab")
    assert one is not None
    assert one == two


def test_champion_that_cannot_run_does_not_stop_its_replacement(tmp_path: Path) -> None:
    _, packed = run(lines(2000), tmp_path / "a")
    assert packed is not None
    write_folder(packed, tmp_path / "champion")
    (tmp_path / "champion" / "model.onnx").write_bytes(b"damaged")
    outcome, again = run(lines(2000, seed=5), tmp_path / "b", champion=str(tmp_path / "champion"))
    assert again is not None
    assert outcome.metrics["rival"] == "the base rate"


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (lines(50), "too_few_rows"),
        ([msgspec.structs.replace(row, label=1.0) for row in lines(500)], "one_label"),
        (lines(1000, strength=0.0), "not_better"),
    ],
)
def test_data_without_a_lesson_is_an_outcome_with_its_cause(
    rows: list[LabelledRow], cause: str, tmp_path: Path
) -> None:
    outcome, packed = run(rows, tmp_path / "a")
    assert packed is None
    assert not outcome.passed
    assert outcome.cause in {cause, "within_noise"}
    assert outcome.sentence


def test_unknown_recipe_is_an_outcome_that_names_it(tmp_path: Path) -> None:
    definition = msgspec.structs.replace(DEFINITION, recipes={"forest": {}})
    outcome, _ = run(lines(500), tmp_path / "a", definition=definition)
    assert outcome.cause == "bad_configuration"
    assert "forest" in outcome.sentence


def test_tensor_model_is_not_trained_on_the_numbers_derived_from_it(tmp_path: Path) -> None:
    outcome, packed = run(lines(500), tmp_path / "work", definition=check_definition(image_definition()))
    assert (outcome.passed, outcome.cause, packed) == (False, "not_trainable", None)
