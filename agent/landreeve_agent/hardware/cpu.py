"""The processor, from ``/proc/cpuinfo``, ``/proc/self/status`` and sysfs topology.

Sources: Linux ``Documentation/arch/x86/cpuinfo.rst``, ``Documentation/admin-guide/cputopology.rst``, arm64 HWCAPs in
``Documentation/arch/arm64/elf_hwcaps.rst``.
"""

import platform
from collections.abc import Iterator
from pathlib import Path

from landreeve_agent.hardware.files import children, count_list, read_text
from landreeve_agent.hardware.inventory import Cpu

_ISA = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


def read_cpu(root: Path) -> Cpu:
    """The processor of the tree under ``root``."""
    blocks = list(_blocks(read_text(root / "proc/cpuinfo")))
    first = blocks[0] if blocks else {}
    flags = tuple((first.get("flags") or first.get("Features") or "").split())
    online = count_list(read_text(root / "sys/devices/system/cpu/online"))
    logical = online or sum("processor" in block for block in blocks) or 1
    return Cpu(
        model=_model(first, root),
        architecture=platform.machine(),
        flags=flags,
        isa=tuple(name for name in _ISA if name in flags),
        physical_cores=_physical_cores(root, blocks) or logical,
        logical_cores=logical,
        affinity=_affinity(root) or logical,
        performance_cores=count_list(read_text(root / "sys/devices/cpu_core/cpus")),
        numa_nodes=max(1, len(children(root / "sys/devices/system/node", "node[0-9]*"))),
    )


def _blocks(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {name.strip(): value.strip() for name, separator, value in pairs if separator}
        if "processor" in fields or "flags" in fields:
            yield fields


def _model(first: dict[str, str], root: Path) -> str:
    """The model's name; ARM boards tell it in the device tree instead."""
    tree = read_text(root / "proc/device-tree/model").rstrip("\0")
    return first.get("model name") or tree or first.get("Model") or "unknown processor"


def _physical_cores(root: Path, blocks: list[dict[str, str]]) -> int:
    """Cores without counting hardware threads twice."""
    siblings = {
        text
        for folder in children(root / "sys/devices/system/cpu", "cpu[0-9]*")
        if (text := read_text(folder / "topology/thread_siblings_list"))
    }
    if siblings:
        return len(siblings)
    return len({(b["physical id"], b["core id"]) for b in blocks if "physical id" in b and "core id" in b})


def _affinity(root: Path) -> int:
    for line in read_text(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return count_list(value.strip())
    return 0
