"""Which plans are worth trying on a box. Pure: facts in, plans out.

The ranking of plans changes with the instruction set, so nothing here prefers anything: it only leaves out what
cannot pay, and says why. bf16 is tried where it is native, because emulated it was measured 26 times slower; dynamic
int8 where most of the work is matrix products, because it made convolutional networks 10 to 15 times slower.
"""

from dataclasses import dataclass

import msgspec

from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.graph import GraphFacts
from landreeve_agent.tuning.recipes import PRECISIONS, Recipe

_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_NATIVE_FP16 = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
_ARM_BF16 = frozenset({"bf16"})
MIN_PACKED_BYTES = 1 << 20  # weight-only formats save memory traffic: below this the weights are in the cache
WORTH_MAKING_US = 150.0  # a run this short is mostly overhead, which no precision makes smaller


@dataclass(frozen=True, slots=True)
class Box:
    """What the child found: threads it may use, instruction sets, runtimes' devices (lower case), and why NNCF
    cannot be used (empty when it can)."""

    threads: int
    isa: frozenset[str]
    openvino_devices: tuple[str, ...] = ()
    onnxruntime_devices: tuple[str, ...] = ("cpu",)
    no_nncf: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Plans to try in this order, and by name those that are not, with the reason."""

    plans: tuple[Plan, ...]
    left_out: dict[str, str]


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


def shapes(plan: Plan, budget: int, objective: str) -> tuple[Plan, ...]:
    """The plan with 1 thread and with all of them; for throughput also as many streams of one thread."""
    found = [msgspec.structs.replace(plan, threads=n) for n in sorted({1, max(1, budget)})]
    if objective == "throughput" and budget > 1:
        found.append(msgspec.structs.replace(plan, threads=1, streams=budget))
    return tuple(found)


def neighbours(plan: Plan, budget: int, objective: str) -> tuple[Plan, ...]:
    """The plan's other splits of the threads, tried once it leads."""
    found = [msgspec.structs.replace(plan, threads=n, streams=1) for n in thread_counts(budget)]
    if objective == "throughput":
        splits = [(n, budget // n) for n in thread_counts(budget) if budget // n > 1]
        found += [msgspec.structs.replace(plan, threads=n, streams=streams) for n, streams in splits]
    return tuple(p for p in found if p != plan)


def plain(box: Box, wanted: str) -> tuple[Plan, ...]:
    """One plan for each way to run the release's own graph, the default first; each has one thread."""
    plans = [default_plan(wanted)]
    if box.isa & _ARM_BF16:
        plans.append(Plan(precision="bf16", wanted=wanted))
    if "cpu" in box.openvino_devices:
        plans.append(Plan("openvino", wanted=wanted))
        if box.isa & _NATIVE_BF16:
            plans.append(Plan("openvino", "cpu", "bf16", wanted=wanted))
        if box.isa & _NATIVE_FP16:
            plans.append(Plan("openvino", "cpu", "fp16", wanted=wanted))
    plans += [
        Plan("openvino", device, precision, wanted=wanted)
        for device in ("gpu", "npu")
        if device in box.openvino_devices
        for precision in ("fp32", "fp16")
    ]
    plans += [Plan(device=device, wanted=wanted) for device in ("gpu", "npu") if device in box.onnxruntime_devices]
    return tuple(plans)


def made(box: Box, facts: GraphFacts, run_us: float, wanted: str, *, exhaustive: bool = False) -> Chosen:
    """One plan for each recipe and backend that might pay, cheapest to make first; each has one thread.

    ``run_us`` is how long one row takes by the default plan; ``exhaustive`` leaves nothing out that can be made.
    """
    plans: list[Plan] = []
    left_out: dict[str, str] = {}
    for kind, backends in _backends(box, exhaustive=exhaustive).items():
        why = _obstacle(kind, box, facts, run_us, exhaustive=exhaustive)
        if why:
            left_out[kind] = why
            continue
        recipe = Recipe(kind)
        plans += [
            Plan(backend, device, recipe.precision, graph=recipe.graph, recipe=recipe.text, wanted=wanted)
            for backend, device in backends
        ]
    return Chosen(tuple(plans), left_out)


def _backends(box: Box, *, exhaustive: bool) -> dict[str, list[tuple[str, str]]]:
    """Where each kind of graph has fast kernels: dynamic int8 in onnxruntime alone, NNCF's in OpenVINO."""
    ort = [("onnxruntime", "cpu")]
    devices = [device for device in ("cpu", "gpu", "npu") if device in box.openvino_devices]
    openvino: list[tuple[str, str]] = [("openvino", device) for device in devices]
    stock = {"stock-dynamic": ort, "stock-qdq": ort} if exhaustive else {}
    both = ort + openvino[:1] if "cpu" in box.openvino_devices else ort
    nncf = openvino or ort
    return {**stock, "dynamic": ort, "weights8": both, "weights4": both, "qdq": ort, "nncf": nncf}


def _obstacle(kind: str, box: Box, facts: GraphFacts, run_us: float, *, exhaustive: bool) -> str:
    """Why a recipe is not tried, or the empty text."""
    if not facts.quantisable:
        return "the graph has no matrix product or convolution: there is nothing to quantise"
    if kind == "nncf" and box.no_nncf:
        return box.no_nncf
    if exhaustive:
        return ""
    if kind == "dynamic" and facts.convolutions >= facts.products:
        return "the work is in convolutions, which no runtime computes fast with dynamic int8"
    if kind in ("weights8", "weights4") and facts.weight_bytes < MIN_PACKED_BYTES:
        return f"its matrix products store {facts.weight_bytes / 1e6:.1f} MB: smaller weights save nothing"
    if run_us < WORTH_MAKING_US and kind != "qdq":
        return f"a run takes {run_us:.0f} µs: a smaller precision cannot repay its making"
    return ""


def precision_of(kind: str) -> str:
    """The precision a kind of recipe computes in.

    >>> precision_of("weights4"), precision_of("qdq")
    ('int4', 'int8')
    """
    return PRECISIONS.get(kind, "int8")
