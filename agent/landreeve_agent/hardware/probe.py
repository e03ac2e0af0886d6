"""The whole box, probed: files first, then the runtimes in child processes."""

from pathlib import Path

from landreeve_agent.hardware.accelerators import read_accelerators
from landreeve_agent.hardware.cgroup import read_limits
from landreeve_agent.hardware.cpu import read_cpu
from landreeve_agent.hardware.files import read_text
from landreeve_agent.hardware.inventory import Inventory, Limits, Memory, thread_budget
from landreeve_agent.hardware.runtimes import AskRuntimes, ask_runtimes


def probe(root: Path = Path("/"), ask: AskRuntimes = ask_runtimes) -> Inventory:
    """What is in this box and may be used. Blocks for a second or two while the runtimes are asked, at most for
    their deadline: call it in a thread. ``root`` is a tree with ``proc``, ``sys`` and ``dev``."""
    cpu, limits = read_cpu(root), read_limits(root)
    return Inventory(
        cpu=cpu,
        limits=limits,
        memory=_memory(root, limits),
        threads=thread_budget(cpu.affinity, limits.cpus),
        accelerators=read_accelerators(root),
        runtimes=ask(),
    )


def _memory(root: Path, limits: Limits) -> Memory:
    kib: dict[str, int] = {}
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        if number.isdigit():
            kib[name] = int(number)
    total = kib.get("MemTotal", 0) * 1024
    usable = total if limits.memory_bytes is None else min(total, limits.memory_bytes)
    return Memory(total_bytes=total, available_bytes=kib.get("MemAvailable", 0) * 1024, usable_bytes=usable)
