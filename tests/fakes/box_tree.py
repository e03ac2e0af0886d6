"""A tree of kernel files, made from one of the boxes in ``tests/vectors/boxes``."""

import tomllib
from pathlib import Path
from typing import Any

from landreeve_agent.hardware.files import as_list, numbers

BOXES = Path(__file__).resolve().parents[1] / "vectors" / "boxes"
NAMES = tuple(sorted(path.stem for path in BOXES.glob("*.toml")))


def load(name: str) -> dict[str, Any]:
    """The box's file."""
    return tomllib.loads((BOXES / f"{name}.toml").read_text())


def expand(box: dict[str, Any], root: Path) -> None:
    """Write the tree."""
    for path, text in {**_processor(box["cpu"]), **box["files"]}.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for path, target_text in box.get("links", {}).items():
        at = root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(target_text)


def _processor(cpu: dict[str, Any]) -> dict[str, str]:
    files: dict[str, str] = {}
    cores: list[int] = []
    for group in cpu["groups"]:
        found = numbers(group["cpus"])
        cores += found
        for number in found:
            folder = f"sys/devices/system/cpu/cpu{number}"
            files[f"{folder}/topology/thread_siblings_list"] = _siblings(number, found, group)
            files[f"{folder}/topology/physical_package_id"] = str(group["package"])
            if "capacity" in group:
                files[f"{folder}/cpu_capacity"] = str(group["capacity"])
        if "node" in group:
            node = f"sys/devices/system/node/node{group['node']}/cpulist"
            files[node] = as_list(tuple(sorted({*numbers(files.get(node, "")), *found})))
    online = cpu.get("online") or as_list(tuple(cores))
    files["sys/devices/system/cpu/online"] = online
    files["proc/self/status"] = f"Name:\tlandreeve\nCpus_allowed_list:\t{cpu.get('allowed', online)}\n"
    blocks = [f"processor\t: {number}\n{cpu['cpuinfo'].strip()}\n" for number in numbers(online)]
    files["proc/cpuinfo"] = "\n".join([*blocks, cpu.get("tail", "").lstrip()])
    return files


def _siblings(number: int, group: tuple[int, ...], shape: dict[str, Any]) -> str:
    if shape.get("pairs"):
        first = number - (number - group[0]) % 2
        return f"{first}-{first + 1}"
    apart = shape.get("threads_apart", 0)
    if apart:
        first = group[0] + (number - group[0]) % apart
        return f"{first},{first + apart}"
    return str(number)
