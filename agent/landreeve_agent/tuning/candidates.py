"""Which plans are worth trying on a box. Pure: facts in, plans out.

The ranking of plans changes with the instruction set, so nothing here prefers anything: it only leaves out what
cannot pay. bf16 is tried where it is native, because emulated it was measured 26 times slower.
"""

from dataclasses import dataclass

from landreeve_agent.serving.control import Plan

INT8_GRAPH = "model.int8.onnx"
_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, slots=True)
class Box:
    """What the child found: threads it may use, CPU flags, runtimes' devices (lower case), int8 graph or not."""

    threads: int
    isa: frozenset[str]
    openvino_devices: tuple[str, ...] = ()
    onnxruntime_devices: tuple[str, ...] = ("cpu",)
    int8: bool = False


def default_plan(wanted: str = "auto") -> Plan:
    """What every box can do: one thread of onnxruntime at fp32."""
    return Plan(wanted=wanted)


def thread_counts(budget: int) -> tuple[int, ...]:
    """1, 2, 4, … and the budget itself.

    >>> thread_counts(6)
    (1, 2, 4, 6)
    """
    budget = max(1, budget)
    powers = [1 << i for i in range(budget.bit_length()) if 1 << i <= budget]
    return tuple(sorted({*powers, budget}))


def candidates(box: Box, wanted: str) -> tuple[Plan, ...]:
    """The plans to try, the default first; every name occurs once."""
    plans = [default_plan(wanted)]
    for threads in thread_counts(box.threads):
        if threads > 1:
            plans.append(Plan(threads=threads, wanted=wanted))
        if box.int8:
            plans.append(Plan(precision="int8", threads=threads, graph=INT8_GRAPH, wanted=wanted))
    if "cpu" in box.openvino_devices:
        plans += _openvino_cpu(box, wanted)
    plans += [
        Plan("openvino", device, precision, wanted=wanted)
        for device in ("gpu", "npu")
        if device in box.openvino_devices
        for precision in ("fp32", "fp16")
    ]
    plans += [Plan(device=device, wanted=wanted) for device in ("gpu", "npu") if device in box.onnxruntime_devices]
    return tuple(plans)


def _openvino_cpu(box: Box, wanted: str) -> list[Plan]:
    precisions = ("fp32", "bf16") if box.isa & _NATIVE_BF16 else ("fp32",)
    return [
        Plan("openvino", "cpu", precision, threads, wanted=wanted)
        for precision in precisions
        for threads in thread_counts(box.threads)
    ]
