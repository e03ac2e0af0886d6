"""The inventory of seventeen kinds of boxes, from recorded and written kernel files (see tests/vectors/boxes)."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve_agent.hardware.inventory import Runtime
from landreeve_agent.hardware.nvml import NvmlAnswer
from landreeve_agent.hardware.probe import probe

from tests.fakes.box_tree import NAMES, expand, load


def answers() -> tuple[Runtime, ...]:
    return (Runtime(name="onnxruntime", version="1", devices=("cpu",), providers=("CPUExecutionProvider",)),)


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """What is not as wanted; of tables only the wanted keys count, except that facts are compared whole."""
    if isinstance(wanted, dict) and not where.endswith((".facts", ".celsius")):
        return [line for key in wanted for line in differences(wanted[key], found.get(key), f"{where}.{key}")]
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
        if len(wanted) != len(found):
            return [f"{where}: wanted {len(wanted)}, found {found}"]
        pairs = zip(wanted, found, strict=True)
        return [line for n, (w, f) in enumerate(pairs) for line in differences(w, f, f"{where}[{n}]")]
    return [] if wanted == found else [f"{where}: wanted {wanted!r}, found {found!r}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_box_is_told_as_it_is(name: str, tmp_path: Path) -> None:
    box = load(name)
    expand(box, tmp_path)
    nvml = msgspec.convert(box.get("nvml", {}), NvmlAnswer)
    found = probe(tmp_path, answers, lambda: nvml)
    told = msgspec.to_builtins(found) | {"text": found.text, "thread_counts": list(found.thread_counts)}
    assert differences(box["expected"], msgspec.json.decode(msgspec.json.encode(told))) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_unusable_device_says_what_to_do(name: str, tmp_path: Path) -> None:
    box = load(name)
    expand(box, tmp_path)
    for device in probe(tmp_path, answers, NvmlAnswer).accelerators:
        assert device.id
        assert device.usable == (not device.problem)
        assert bool(device.fix) == bool(device.problem)


def test_every_box_says_which_of_its_facts_are_recorded() -> None:
    assert len(NAMES) >= 12
    assert [name for name in NAMES if not {"about", "recorded", "written"} <= load(name).keys()] == []
