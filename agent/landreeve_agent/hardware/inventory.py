"""What is in a box, as values: for the hub's device page, ``landreeve hw list`` and the tuner. Pure.

Three states are kept apart: *present* (the kernel sees the device), *usable* (driver, firmware, libraries and device
node are there and may be opened), and *proven* (a runtime computed the right answer on it, and told so itself).
"""

from typing import Literal

import msgspec


class NumaNode(msgspec.Struct, frozen=True, kw_only=True):
    """A memory node: its logical cores as a kernel list, and its bytes of memory."""

    number: int
    cpus: str
    memory_bytes: int = 0


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processor. ``flags`` are all the kernel names, ``isa`` those that matter to inference; ``affinity`` is
    how many logical cores this process may use. ``performance_cpus`` and ``efficiency_cpus`` are kernel lists and
    empty unless the cores differ; ``allowed_cores`` counts physical cores this process may use, and
    ``allowed_performance_cores`` those of them that are fast (all of them when they do not differ)."""

    model: str
    architecture: str
    flags: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    sockets: int = 1
    physical_cores: int
    logical_cores: int
    affinity: int
    allowed_cores: int = 1
    allowed_performance_cores: int = 1
    performance_cores: int = 0
    efficiency_cores: int = 0
    performance_cpus: str = ""
    efficiency_cpus: str = ""
    numa_nodes: int = 1
    numa: tuple[NumaNode, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the cgroups allow: CPUs (None = no quota), memory in bytes (None = no limit), the cores of the cpuset as a
    kernel list (empty = none given), and where it was read."""

    cpus: float | None = None
    memory_bytes: int | None = None
    cpuset: str = ""
    version: Literal["none", "v1", "v2", "v1+v2"] = "none"
    source: str = ""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of memory: of the box, free now, what this process may take of it, and swap."""

    total_bytes: int
    available_bytes: int
    usable_bytes: int
    swap_bytes: int = 0
    swap_free_bytes: int = 0


class Heat(msgspec.Struct, frozen=True, kw_only=True):
    """How warm it is: degrees Celsius by zone, how often cores were throttled since boot, and what slows the box
    down right now (empty when nothing does)."""

    celsius: dict[str, float] = {}
    throttle_count: int = 0
    problem: str = ""


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU or NPU.

    ``id`` stays the same while the device is plugged in where it is (``pci:0000:01:00.0``, ``usb:2-1``, ``of:npu``).
    ``driver`` is the bound kernel driver, empty when none is; ``library`` the version of its user space.
    ``problem`` says why it is not usable and ``fix`` what to do; ``facts`` are figures the driver tells.
    """

    id: str = ""
    kind: Literal["gpu", "npu"]
    vendor: str
    name: str
    pci: str = ""
    driver: str = ""
    driver_version: str = ""
    firmware: str = ""
    library: str = ""
    node: str = ""
    memory_bytes: int = 0
    usable: bool = False
    problem: str = ""
    fix: str = ""
    facts: dict[str, str] = {}

    @property
    def trouble(self) -> str:
        """Problem and fix in a line; empty when it is usable."""
        return f"{self.problem}; {self.fix}" if self.problem and self.fix else self.problem


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """An inference runtime as its own child process found it. ``devices`` are lower case (``cpu``, ``gpu``,
    ``npu``), ``providers`` its own words."""

    name: str
    version: str = ""
    devices: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    problem: str = ""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What came of running a tiny model with a runtime on a device.

    ``target`` is the device in the runtime's own words (``CUDAExecutionProvider``, ``GPU.0``, ``cuda:0``). ``cause``
    is empty when it ran there and right, else one word (see `landreeve_agent.hardware.prove`); ``key`` names
    everything the answer depends on, so a proof holds as long as its key; ``at`` is when, RFC 3339;
    ``latency_us`` is the median of a run of the tiny model.
    """

    runtime: str
    device: str
    target: str
    ok: bool
    cause: str = ""
    sentence: str = ""
    key: str = ""
    at: str = ""
    attempts: int = 1
    latency_us: float | None = None


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. ``threads`` is the budget for inference: what affinity, cpuset and quota leave, at least 1.
    ``override`` names the file that replaced something, if any."""

    cpu: Cpu
    limits: Limits
    memory: Memory
    threads: int
    heat: Heat = Heat()
    kernel: str = ""
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[Runtime, ...] = ()
    proofs: tuple[Proof, ...] = ()
    override: str = ""

    @property
    def kind(self) -> str:
        """``NPU``, ``GPU`` or ``CPU``: the best that is proven to run."""
        return choose_device("auto", self).used.upper()

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """Counts worth trying: one, the fast cores, all cores, everything allowed; none above the budget.

        Two threads of one core share its vector units, and the slowest core gates a run that is split evenly.
        """
        counts = (1, self.cpu.allowed_performance_cores, self.cpu.allowed_cores, self.threads)
        return tuple(sorted({max(1, min(count, self.threads)) for count in counts}))

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

    ``auto`` takes a device on which a runtime is proven; it never complains. Any other wanted device that is not
    proven gives way to the CPU, with the reason.
    """
    if wanted == "auto":
        for device in ("gpu", "npu"):
            if not obstacle(device, inventory):
                return Choice(wanted=wanted, used=device, reason="")
        return Choice(wanted=wanted, used="cpu", reason="")
    if wanted == "cpu":
        return Choice(wanted=wanted, used="cpu", reason="")
    why = obstacle(wanted, inventory)
    return Choice(wanted=wanted, used="cpu" if why else wanted, reason=why)


def obstacle(device: str, inventory: Inventory) -> str:
    """Why no model can run on that kind of device, or the empty text."""
    proofs = [proof for proof in inventory.proofs if proof.device == device]
    if any(proof.ok for proof in proofs):
        return ""  # the one thing that counts, whatever the files say
    found = [a for a in inventory.accelerators if a.kind == device]
    if not found:
        return f"no {device.upper()} found in this box"
    usable = [a for a in found if a.usable]
    if not usable:
        return f"{found[0].name}: {found[0].trouble}"
    if proofs:
        return "; ".join(f"{proof.runtime}: {proof.sentence}" for proof in proofs)
    if any(device in runtime.devices for runtime in inventory.runtimes):
        return f"{usable[0].name} has not been proven yet"
    problems = [f"{r.name}: {r.problem}" for r in inventory.runtimes if r.problem]
    because = f" ({'; '.join(problems)})" if problems else ""
    return f"{usable[0].name} is usable, but no installed runtime can drive it{because}"
