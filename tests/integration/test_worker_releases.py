"""What the recipes really make, on real departures: preflight proves it, the worker serves it, the numbers agree."""

import csv
import gzip
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig
from landreeve_agent.serving import oip
from landreeve_agent.serving.control import Version
from landreeve_agent.serving.model import load
from landreeve_agent.tuning.preflight import Preflight
from landreeve_agent.tuning.report import PreflightReport
from landreeve_models.definition import Definition, encode_definition, load_definition
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.recipes.catalogue import recipe
from landreeve_models.recipes.contract import Checkpoint, Data
from safetensors.numpy import save_file

CATALOG = Path(__file__).resolve().parents[2] / "models/catalog/flight-delay"
QUICK: dict[str, dict[str, Any]] = {"mlp": {"hidden": [16], "epochs": 2}, "boosting": {"max_iter": 10}}


def departures(definition: Definition, count: int) -> tuple[list[dict[str, Any]], np.ndarray[Any, Any]]:
    """The first departures of JFK's year as rows of the definition's columns, and whether they left late."""
    rows: list[dict[str, Any]] = []
    labels: list[float] = []
    with gzip.open(CATALOG / "data/JFK.csv.gz", "rt") as file:
        for line, _ in zip(csv.DictReader(file), range(count), strict=False):
            rows.append({c.name: _value(c.kind, line.get(c.name) or None) for c in definition.columns})
            labels.append(float(line["late"]))
    return rows, np.array(labels, np.float32)


def _value(kind: str, text: str | None) -> str | float | None:
    return text if text is None or kind == "category" else float(text)


def tensors(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row as OIP inputs; what is unknown is left out."""
    return [
        {"name": name, "datatype": "BYTES" if isinstance(value, str) else "FP64", "shape": [1], "data": [value]}
        for name, value in row.items()
        if value is not None
    ]


@pytest.mark.parametrize("name", ["mlp", "boosting"])
async def test_a_trained_model_is_proven_and_served_as_its_recipe_predicts(tmp_path: Path, name: str) -> None:
    definition = load_definition(CATALOG)
    rows, y = departures(definition, 2400)
    pipeline = Pipeline.fit(rows[:1600], y[:1600], definition)
    x = pipeline.encode(rows)
    data = Data(x[:1600], y[:1600], x[1600:2000], y[1600:2000])
    fitted = recipe(name)(data, QUICK[name], Checkpoint(tmp_path / "checkpoint"), lambda _share, _words: None)
    expected = fitted.predict(x[2000:]).astype(np.float32)

    folder = tmp_path / "release"
    folder.mkdir()
    config = ReleaseConfig(
        model=definition.name,
        family=name,
        created="2026-01-01T00:00:00Z",
        signature=definition.signature(),
        gates=Gates(),
        lineage=Lineage(),
    )
    (folder / "config.json").write_bytes(msgspec.json.encode({"landreeve": config}))
    (folder / "definition.json").write_bytes(encode_definition(definition))
    (folder / "features.json").write_bytes(pipeline.to_bytes())
    (folder / "model.onnx").write_bytes(fitted.export_onnx())
    save_file({"x": x[:256].copy()}, folder / "calibration.safetensors")
    save_file({"x": x[2000:].copy(), "expected": expected, "label": y[2000:].copy()}, folder / "golden.safetensors")

    report = await Preflight(budget_s=0.3).run(folder, threads=2, deadline_s=90)
    assert isinstance(report, PreflightReport), report
    model = load(Version(definition.name, "1.0.0", "0" * 64, str(folder), report.plan))
    for row, wanted in list(zip(rows[2000:], expected, strict=True))[:20]:
        request = oip.decode(msgspec.json.encode({"inputs": tensors(row)}), None, model.interface)
        assert model.run(model.feeds(request))[0][0] == pytest.approx(wanted, abs=1e-2)
