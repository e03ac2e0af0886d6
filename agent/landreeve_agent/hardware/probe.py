"""The whole box, probed: files first, then libraries and runtimes in child processes."""

from pathlib import Path

import msgspec

from landreeve_agent.hardware.accelerators import read_accelerators
from landreeve_agent.hardware.cgroup import read_limits
from landreeve_agent.hardware.cpu import read_cpu
from landreeve_agent.hardware.files import read_text
from landreeve_agent.hardware.heat import read_heat
from landreeve_agent.hardware.inventory import Inventory, thread_budget
from landreeve_agent.hardware.memory import read_memory
from landreeve_agent.hardware.names import named
from landreeve_agent.hardware.nvml import AskNvml, ask_nvml, merge, wants_nvml
from landreeve_agent.hardware.runtimes import AskRuntimes, ask_runtimes


def probe(root: Path = Path("/"), ask: AskRuntimes = ask_runtimes, ask_gpus: AskNvml = ask_nvml) -> Inventory:
    """What is in this box and may be used. Blocks for a second or two while the runtimes are asked, at most for
    their deadline: call it in a thread. ``root`` is a tree with ``proc``, ``sys``, ``dev``, ``etc`` and ``usr``."""
    return msgspec.structs.replace(read_devices(root, ask_gpus), runtimes=ask())


def read_devices(root: Path, ask_gpus: AskNvml) -> Inventory:
    """The box with everything but its runtimes: products named, and NVIDIA's GPUs as NVML knows them."""
    found = read_box(root)
    accelerators = named(root, found.accelerators)
    if wants_nvml(accelerators):
        accelerators = merge(accelerators, ask_gpus())
    return msgspec.structs.replace(found, accelerators=accelerators)


def read_box(root: Path = Path("/")) -> Inventory:
    """What the kernel's files alone say: some milliseconds, no child process, no runtimes."""
    limits = read_limits(root)
    cpu = read_cpu(root, limits.cpuset)
    return Inventory(
        cpu=cpu,
        limits=limits,
        memory=read_memory(root, limits),
        threads=thread_budget(cpu.affinity, limits.cpus),
        heat=read_heat(root),
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        accelerators=read_accelerators(root),
    )
