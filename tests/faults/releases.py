"""Releases of a small model, each another."""

import itertools
import os
from pathlib import Path

from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig
from landreeve_models.definition import load_definition

from tests.agent.onnx_models import write_release

MODEL = "delay"
_numbers = itertools.count(1)


def release(folder: Path, *, worse: bool = False, card_bytes: int = 0) -> Packed:
    """A release whose answers nearly are those of every other; ``worse`` ones lie elsewhere."""
    number = next(_numbers)
    made = write_release(folder / f"release-{number}", 50.0 + number if worse else 0.002 * number)
    config = ReleaseConfig(
        model=MODEL,
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
    if card_bytes:
        files["card.md"] = os.urandom(card_bytes // 2).hex().encode()
    return pack(files, config)
