"""Releases of a small model, each another."""

import itertools
import os
from pathlib import Path

import numpy as np
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig
from landreeve_models.baseline import Baseline
from landreeve_models.definition import load_definition

from tests.agent.onnx_models import CARRIERS, answers, definition, write_release
from tests.faults.prober import asked_rows

MODEL = "delay"
_numbers = itertools.count(1)


def release(
    folder: Path, *, worse: bool = False, card_bytes: int = 0, baseline: bool = False, model: str = MODEL
) -> Packed:
    """A release whose answers nearly are those of every other; ``worse`` ones lie elsewhere. With ``baseline`` it says
    what data it is for: those of the prober."""
    number = next(_numbers)
    made = write_release(folder / f"release-{number}", 30.0 + 0.01 * number if worse else 0.002 * number)
    config = ReleaseConfig(
        model=model,
        family="mlp",
        created="2026-11-28T00:00:00Z",
        signature=load_definition(made).signature(),
        gates=Gates(),
        lineage=Lineage(run=f"run-{number}"),
    )
    kept = {".onnx", ".json", ".safetensors"}
    files = {path.name: path.read_bytes() for path in made.iterdir() if path.suffix in kept}
    for name in ("config.json", "manifest.json"):
        files.pop(name, None)
    if baseline:
        files["baseline.json"] = _baseline(files["model.onnx"])
    if card_bytes:
        files["card.md"] = os.urandom(card_bytes // 2).hex().encode()
    return pack(files, config)


def _baseline(graph: bytes) -> bytes:
    x = np.column_stack([*asked_rows(np.arange(4000)), np.full(4000, np.nan), np.full(4000, CARRIERS.index("UA"))])
    rows = [{"hour": float(hour), "wind": float(wind), "rain": None, "carrier": "UA"} for hour, wind, *_ in x]
    said = answers(graph, x.astype(np.float32))
    return Baseline.fit(definition(), rows, said, np.arange(4000) // 1000, {}).to_bytes()
