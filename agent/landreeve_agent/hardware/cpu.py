"""The processor, from ``/proc/cpuinfo``, ``/proc/self/status`` and sysfs topology.

Sources: Linux ``Documentation/arch/x86/cpuinfo.rst``, ``Documentation/admin-guide/cputopology.rst``, arm64 HWCAPs in
``Documentation/arch/arm64/elf_hwcaps.rst``; hybrid cores: perf's ``cpu_core`` and ``cpu_atom`` devices on Intel,
``cpu_capacity`` (``Documentation/devicetree/bindings/cpu/cpu-capacity.txt``) on ARM.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from landreeve_agent.hardware.files import as_list, children, fields, numbers, read_number, read_strings, read_text
from landreeve_agent.hardware.inventory import Cpu, NumaNode

_ISA = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "neon", "asimd", "asimdhp", "asimddp", "i8mm",
    "bf16", "sve", "sve2", "sme", "sme2",
)  # fmt: skip
# Cores of one kind differ a little in capacity (one may boost higher); half of the best or less is another kind.
_FAST_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Logical cores by kind; both empty when all are alike."""

    performance: tuple[int, ...] = ()
    efficiency: tuple[int, ...] = ()


def read_cpu(root: Path, cpuset: str = "") -> Cpu:
    """The processor of the tree under ``root``; ``cpuset`` narrows what may be used, as a kernel list."""
    blocks = list(_blocks(read_text(root / "proc/cpuinfo")))
    first = blocks[0] if blocks else {}
    flags = tuple((first.get("flags") or first.get("Features") or "").split())
    online = numbers(read_text(root / "sys/devices/system/cpu/online")) or tuple(range(_listed(blocks)))
    allowed = _allowed(root, online, numbers(cpuset))
    cores, kinds, nodes = _cores(root, blocks), _kinds(root, online), _numa(root)
    return Cpu(
        model=_model(first, root),
        architecture=read_text(root / "proc/sys/kernel/arch") or platform.machine(),
        flags=flags,
        isa=tuple(name for name in _ISA if name in flags),
        sockets=_sockets(root, blocks),
        physical_cores=len(set(cores.values())) or len(online),
        logical_cores=len(online),
        affinity=len(allowed),
        allowed_cores=_count(allowed, cores),
        allowed_performance_cores=_count(tuple(c for c in allowed if c not in kinds.efficiency) or allowed, cores),
        performance_cores=len(kinds.performance),
        efficiency_cores=len(kinds.efficiency),
        performance_cpus=as_list(kinds.performance),
        efficiency_cpus=as_list(kinds.efficiency),
        numa_nodes=max(1, len(nodes)),
        numa=nodes,
    )


def _blocks(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        found = fields(block)
        if "processor" in found or "flags" in found:
            yield found


def _listed(blocks: list[dict[str, str]]) -> int:
    return sum("processor" in block for block in blocks) or 1


def _model(first: dict[str, str], root: Path) -> str:
    """The model's name; ARM boards tell it in the device tree instead."""
    tree = "".join(read_strings(root / "proc/device-tree/model")[:1])
    return first.get("model name") or tree or first.get("Model") or "unknown processor"


def _folders(root: Path) -> Iterator[tuple[int, Path]]:
    for folder in children(root / "sys/devices/system/cpu", "cpu[0-9]*"):
        yield int(folder.name.removeprefix("cpu")), folder


def _cores(root: Path, blocks: list[dict[str, str]]) -> dict[int, str]:
    """Each logical core's physical one, so that hardware threads are not counted twice."""
    found = {n: read_text(folder / "topology/thread_siblings_list") for n, folder in _folders(root)}
    known = {n: text for n, text in found.items() if text}
    if known:
        return known
    told = [b for b in blocks if b.get("processor", "").isdigit() and "core id" in b]
    return {int(b["processor"]): f"{b.get('physical id', '0')}/{b['core id']}" for b in told}


def _count(allowed: tuple[int, ...], cores: dict[int, str]) -> int:
    return max(1, len({cores.get(cpu, f"alone {cpu}") for cpu in allowed}))


def _sockets(root: Path, blocks: list[dict[str, str]]) -> int:
    packages = {read_text(folder / "topology/physical_package_id") for _, folder in _folders(root)} - {"", "-1"}
    return max(1, len(packages or {b["physical id"] for b in blocks if "physical id" in b}))


def _kinds(root: Path, online: tuple[int, ...]) -> _Kinds:
    fast = numbers(read_text(root / "sys/devices/cpu_core/cpus"))
    slow = numbers(read_text(root / "sys/devices/cpu_atom/cpus"))
    if fast and slow:
        return _Kinds(fast, slow)
    capacity = {n: read_number(folder / "cpu_capacity") for n, folder in _folders(root) if n in online}
    best = max(capacity.values(), default=0)
    slow = tuple(sorted(n for n, value in capacity.items() if 0 < value < best * _FAST_SHARE))
    return _Kinds(tuple(sorted(set(capacity) - set(slow))), slow) if slow else _Kinds()


def _allowed(root: Path, online: tuple[int, ...], cpuset: tuple[int, ...]) -> tuple[int, ...]:
    status = fields(read_text(root / "proc/self/status"))
    allowed = numbers(status.get("Cpus_allowed_list", "")) or online
    # The mask is already within the cpuset, except for a moment after the cpuset was changed.
    return tuple(cpu for cpu in allowed if cpu in cpuset) or allowed


def _numa(root: Path) -> tuple[NumaNode, ...]:
    return tuple(_node(folder) for folder in children(root / "sys/devices/system/node", "node[0-9]*"))


def _node(folder: Path) -> NumaNode:
    number = int(folder.name.removeprefix("node"))
    told = fields(read_text(folder / "meminfo")).get(f"Node {number} MemTotal", "")
    kib = told.split()[0] if told else ""
    return NumaNode(
        number=number, cpus=read_text(folder / "cpulist"), memory_bytes=int(kib) * 1024 if kib.isdigit() else 0
    )
