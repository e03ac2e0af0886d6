"""Which inference runtimes are installed and what devices they list, each asked in a child of its own.

A broken driver makes a runtime hang or crash while it merely lists its devices. In a child it costs a line in the
inventory; in the supervisor it would cost the site. One child for each, so one bad runtime hides no other.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import msgspec

from landreeve_agent.hardware.child import Stop, never, run_child
from landreeve_agent.hardware.inventory import Runtime

DEADLINE_S = 30.0
NAMES = ("onnxruntime", "openvino", "torch")
AskRuntimes = Callable[[], tuple[Runtime, ...]]


class AskNamed(Protocol):
    """Asks the named runtimes; see `ask_runtimes`."""

    def __call__(self, names: Sequence[str], *, stop: Stop) -> tuple[Runtime, ...]: ...


_PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "OpenVINOExecutionProvider": "cpu",
    "XnnpackExecutionProvider": "cpu",
    "CUDAExecutionProvider": "gpu",
    "TensorrtExecutionProvider": "gpu",
    "NvTensorRTRTXExecutionProvider": "gpu",
    "MIGraphXExecutionProvider": "gpu",
    "ROCMExecutionProvider": "gpu",
    "DmlExecutionProvider": "gpu",
    "WebGpuExecutionProvider": "gpu",
    "QNNExecutionProvider": "npu",
    "VitisAIExecutionProvider": "npu",
    "CoreMLExecutionProvider": "npu",
}
_TORCH = {"cpu": "cpu", "cuda": "gpu", "xpu": "gpu", "mps": "gpu"}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a child prints: the runtime's devices in its own words, or why it has none."""

    providers: tuple[str, ...] = ()
    problem: str = ""


def device_of(runtime: str, target: str) -> str:
    """``cpu``, ``gpu`` or ``npu`` for a device in a runtime's own words; empty for what is no device of this box.

    >>> device_of("openvino", "GPU.1"), device_of("torch", "cuda:0"), device_of("onnxruntime", "AzureExecutionProvider")
    ('gpu', 'gpu', '')
    """
    match runtime:
        case "onnxruntime":
            return _PROVIDERS.get(target, "")
        case "torch":
            return _TORCH.get(target.partition(":")[0], "")
        case _:
            name = target.partition(".")[0].lower()
            return name if name in {"cpu", "gpu", "npu"} else ""


def installed(name: str) -> str:
    """The installed version of a runtime; empty when it is not. Nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def ask_runtimes(
    names: Sequence[str] = NAMES, deadline_s: float = DEADLINE_S, stop: Stop = never
) -> tuple[Runtime, ...]:
    """These runtimes; one that is not installed says so in ``problem``."""
    if not names:
        return ()
    with ThreadPoolExecutor(len(names)) as threads:
        return tuple(threads.map(lambda name: ask(name, _command(name), deadline_s, stop), names))


def _command(name: str) -> list[str]:
    return [sys.executable, "-m", "landreeve_agent.hardware.runtimes_child", name, str(os.getpid())]


def ask(name: str, command: Sequence[str], deadline_s: float, stop: Stop = never) -> Runtime:
    """One runtime, asked by a command that prints an `Answer`."""
    found = installed(name)
    if not found:
        return Runtime(name=name, problem="not installed")
    ended = run_child(command, deadline_s, stop)
    if ended.cause:
        return Runtime(name=name, version=found, problem=f"listing its devices {ended.sentence}")
    try:
        told = msgspec.json.decode(ended.output, type=Answer)
    except msgspec.DecodeError as error:
        return Runtime(name=name, version=found, problem=f"its devices cannot be read: {error}")
    devices = sorted({device for target in told.providers if (device := device_of(name, target))})
    return Runtime(name=name, version=found, devices=tuple(devices), providers=told.providers, problem=told.problem)
