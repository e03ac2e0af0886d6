"""Asks NVML: ``python -m landreeve_agent.hardware.nvml_child PARENT`` prints its answer."""

import sys
from collections.abc import Callable
from typing import Any

from landreeve_agent.hardware.confined import answer, begin
from landreeve_agent.hardware.nvml import NvmlAnswer, NvmlGpu


def ask() -> NvmlAnswer:
    """All GPUs; a figure that one of them does not support is left out."""
    try:
        import pynvml
    except ImportError:
        return NvmlAnswer(problem="NVML cannot be asked: the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
        gpus = [_gpu(pynvml, n) for n in range(pynvml.nvmlDeviceGetCount())]
        return NvmlAnswer(driver=_text(pynvml.nvmlSystemGetDriverVersion()), gpus=tuple(gpus))
    except pynvml.NVMLError as error:
        return NvmlAnswer(problem=f"NVML: {error}")


def _gpu(pynvml: Any, number: int) -> NvmlGpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)

    def tell(read: Callable[[], Any]) -> str:
        try:
            return _text(read())
        except pynvml.NVMLError:
            return ""  # not supported by this GPU or this driver

    def capability() -> str:
        return "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle))

    facts = {
        "compute_capability": tell(capability),
        "celsius": tell(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "busy_percent": tell(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "slowed_by": tell(lambda: _slowdowns(pynvml, handle)),
        "mig": tell(lambda: "on" if pynvml.nvmlDeviceGetMigMode(handle)[0] else ""),
    }
    return NvmlGpu(
        pci=kernel_slot(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
        name=tell(lambda: pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(tell(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total) or 0),
        firmware=tell(lambda: pynvml.nvmlDeviceGetVbiosVersion(handle)),
        facts={name: value for name, value in facts.items() if value},
    )


def _slowdowns(pynvml: Any, handle: Any) -> str:
    """Why the clocks are low now, as far as it matters: heat and power, not idleness."""
    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    hot = pynvml.nvmlClocksThrottleReasonSwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    weak = pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
    return ", ".join(name for name, bits in (("heat", hot), ("power", weak)) if reasons & bits)


def kernel_slot(bus: str) -> str:
    """NVML's bus id in the kernel's form.

    >>> kernel_slot("00000000:01:00.0")
    '0000:01:00.0'
    """
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    answer(begin(int(sys.argv[1])), ask())
