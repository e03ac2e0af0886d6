"""Memory and swap, from ``/proc/meminfo`` and the cgroups' limit (proc_meminfo(5))."""

from pathlib import Path

from landreeve_agent.hardware.files import fields, read_text
from landreeve_agent.hardware.inventory import Limits, Memory


def read_memory(root: Path, limits: Limits) -> Memory:
    """The memory of the tree under ``root``, narrowed by ``limits``."""
    told = fields(read_text(root / "proc/meminfo"))
    total = _bytes(told, "MemTotal")
    return Memory(
        total_bytes=total,
        available_bytes=_bytes(told, "MemAvailable"),
        usable_bytes=total if limits.memory_bytes is None else min(total, limits.memory_bytes),
        swap_bytes=_bytes(told, "SwapTotal"),
        swap_free_bytes=_bytes(told, "SwapFree"),
    )


def _bytes(told: dict[str, str], name: str) -> int:
    words = told.get(name, "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else 0
