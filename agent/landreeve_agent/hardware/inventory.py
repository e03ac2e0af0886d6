"""What is in a box, as values: for the hub's device page, ``landreeve hw list`` and the tuner. Pure.

Three states are kept apart: *present* (the kernel sees the device), *usable* (driver and device node are there and
may be opened), and *proven* (the worker runs on it), which only the worker can say.
"""

from typing import Literal

import msgspec


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processor. ``flags`` are all the kernel names, ``isa`` those that matter to inference; ``affinity`` is
    how many logical cores this process may use."""

    model: str
    architecture: str
    flags: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    physical_cores: int
    logical_cores: int
    affinity: int
    performance_cores: int = 0
    numa_nodes: int = 1


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the cgroups allow: CPUs (None = no quota), memory in bytes (None = no limit), and where it was read."""

    cpus: float | None = None
    memory_bytes: int | None = None
    version: Literal["none", "v1", "v2", "v1+v2"] = "none"
    source: str = ""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of memory: of the box, free now, and what this process may take of it."""

    total_bytes: int
    available_bytes: int
    usable_bytes: int


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU or NPU. ``driver`` is the bound kernel driver, empty when none is; ``problem`` says why it is not
    usable and what to do."""

    kind: Literal["gpu", "npu"]
    vendor: str
    name: str
    pci: str = ""
    driver: str = ""
    driver_version: str = ""
    node: str = ""
    memory_bytes: int = 0
    usable: bool = False
    problem: str = ""


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """An inference runtime as its own child process found it. ``devices`` are lower case (``cpu``, ``gpu``,
    ``npu``), ``providers`` its own words."""

    name: str
    version: str = ""
    devices: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    problem: str = ""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. ``threads`` is the budget for inference: what affinity and quota leave, at least 1."""

    cpu: Cpu
    limits: Limits
    memory: Memory
    threads: int
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[Runtime, ...] = ()

    @property
    def kind(self) -> str:
        """``NPU``, ``GPU`` or ``CPU``: the best a runtime of this box can use."""
        return choose_device("auto", self).used.upper()

    @property
    def text(self) -> str:
        """One line for people.

        Example: ``AMD EPYC, 2 cores, 2 threads for inference, 24.6 GB``.
        """
        cores = f"{self.cpu.physical_cores} core" + ("" if self.cpu.physical_cores == 1 else "s")
        threads = f"{self.threads} thread" + ("" if self.threads == 1 else "s")
        parts = [self.cpu.model, cores, f"{threads} for inference", f"{self.memory.usable_bytes / 1e9:.1f} GB"]
        return ", ".join([*parts, *(a.name for a in self.accelerators)])


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which device was wanted, which is used, and why they differ (empty when they do not)."""

    wanted: str
    used: str
    reason: str


def thread_budget(affinity: int, quota_cpus: float | None) -> int:
    """Threads for inference: the runtimes see neither affinity masks nor quotas, so we count for them.

    >>> thread_budget(8, 2.5), thread_budget(8, 0.5), thread_budget(2, None)
    (2, 1, 2)
    """
    allowed = affinity if quota_cpus is None else min(affinity, int(quota_cpus))
    return max(1, allowed)


def choose_device(wanted: str, inventory: Inventory) -> Choice:
    """The device for a wanted one of ``auto``, ``npu``, ``gpu``, ``cpu``.

    ``auto`` takes a device that is usable *and* known to an installed runtime; it never complains. Any other
    wanted device that cannot be used gives way to the CPU, with the reason.
    """
    if wanted == "auto":
        for device in ("gpu", "npu"):
            if not _obstacle(device, inventory):
                return Choice(wanted=wanted, used=device, reason="")
        return Choice(wanted=wanted, used="cpu", reason="")
    if wanted == "cpu":
        return Choice(wanted=wanted, used="cpu", reason="")
    obstacle = _obstacle(wanted, inventory)
    return Choice(wanted=wanted, used="cpu" if obstacle else wanted, reason=obstacle)


def _obstacle(device: str, inventory: Inventory) -> str:
    """Why the device cannot be used, or the empty text."""
    found = [a for a in inventory.accelerators if a.kind == device]
    if not found:
        return f"no {device.upper()} found in this box"
    usable = [a for a in found if a.usable]
    if not usable:
        return f"{found[0].name}: {found[0].problem}"
    if any(device in runtime.devices for runtime in inventory.runtimes):
        return ""
    problems = [f"{r.name}: {r.problem}" for r in inventory.runtimes if r.problem]
    because = f" ({'; '.join(problems)})" if problems else ""
    return f"{usable[0].name} is usable, but no installed runtime can drive it{because}"
