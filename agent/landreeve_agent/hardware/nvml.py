"""NVIDIA's own view of its GPUs through NVML, asked in a child with a deadline, never in the supervisor.

NVML loads the driver's library, which hangs when a GPU has fallen off the bus and fails when driver and library
differ. Source: NVML API reference; the binding is NVIDIA's ``nvidia-ml-py``.
"""

import os
import sys
from collections.abc import Callable, Sequence

import msgspec

from landreeve_agent.hardware.child import Stop, never, run_child
from landreeve_agent.hardware.inventory import Accelerator

DEADLINE_S = 20.0


class NvmlGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as NVML tells it; ``pci`` in the kernel's form."""

    pci: str
    name: str
    memory_bytes: int = 0
    firmware: str = ""
    facts: dict[str, str] = {}


class NvmlAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the child prints: the GPUs, or NVML's own words why not."""

    driver: str = ""
    gpus: tuple[NvmlGpu, ...] = ()
    problem: str = ""


AskNvml = Callable[[], NvmlAnswer]


def ask_nvml(command: Sequence[str] = (), deadline_s: float = DEADLINE_S, stop: Stop = never) -> NvmlAnswer:
    """NVML's answer; ``command`` replaces the child."""
    own = (sys.executable, "-m", "landreeve_agent.hardware.nvml_child", str(os.getpid()))
    ended = run_child(command or own, deadline_s, stop)
    if ended.cause:
        return NvmlAnswer(problem=f"NVML {ended.sentence}")
    try:
        return msgspec.json.decode(ended.output, type=NvmlAnswer)
    except msgspec.DecodeError as error:
        return NvmlAnswer(problem=f"NVML's answer cannot be read: {error}")


def wants_nvml(accelerators: Sequence[Accelerator]) -> bool:
    """Whether there is anything to ask: a GPU with NVIDIA's driver bound to it."""
    return any(a.vendor == "NVIDIA" and a.pci and a.driver == "nvidia" for a in accelerators)


def merge(accelerators: Sequence[Accelerator], told: NvmlAnswer) -> tuple[Accelerator, ...]:
    """The inventory's GPUs with what NVML knows of them; pure.

    A GPU that NVML does not answer for is not usable, whatever the files say.
    """
    gpus = {gpu.pci: gpu for gpu in told.gpus}
    return tuple(
        _merged(a, gpus.get(a.pci), told) if a.vendor == "NVIDIA" and a.pci and a.driver == "nvidia" else a
        for a in accelerators
    )


def _merged(found: Accelerator, gpu: NvmlGpu | None, told: NvmlAnswer) -> Accelerator:
    if gpu is None:
        if not found.usable:
            return found  # the files say it better
        problem = told.problem or "NVML does not list it: it may have fallen off the bus"
        fix = "see the kernel's log for NVRM and Xid; restart the box, or install NVIDIA's driver again"
        return msgspec.structs.replace(found, usable=False, problem=problem, fix=fix)
    return msgspec.structs.replace(
        found,
        name=gpu.name or found.name,
        memory_bytes=gpu.memory_bytes,
        driver_version=told.driver or found.driver_version,
        firmware=gpu.firmware or found.firmware,
        facts={**found.facts, **gpu.facts},
    )
