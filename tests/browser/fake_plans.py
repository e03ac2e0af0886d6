"""Made-up plans and hardware for both consoles: what a tuned box tells."""

from typing import Any

WINNER = "openvino cpu int8 nncf 2 threads"


def trial(what: str, accepted: bool, why: str = "", p50: float | None = None, **more: float) -> dict[str, Any]:
    return {"what": what, "accepted": accepted, "why": why, "p50_us": p50, "cpu_us": None, "metric": None, **more}


def report(at: str, *, hinted: bool = False) -> dict[str, Any]:
    """A box's report on a release, as ``PlanReport`` with its moment and its plan's name."""
    return {
        "at": at,
        "name": WINNER,
        "model": "flight-delay",
        "version": "4",
        "box_class": "5f0c1d2e3a4b5c6d",
        "box": box(),
        "plan": {"backend": "openvino", "device": "cpu", "precision": "int8", "threads": 2, "recipe": "nncf"},
        "ratio": 0.31,
        "cpu_ratio": 0.28,
        "p50_us": 2260.0,
        "cpu_us": 2310.5,
        "metric": "accuracy",
        "metric_value": 0.98,
        "seconds": 4.1 if hinted else 23.6,
        "hints": int(hinted),
        "hinted": hinted,
        "trials": [
            trial("onnxruntime cpu fp32 1 thread", True, "the default", 7300.0, cpu_us=7310.0, metric=0.975),
            trial(WINNER, True, "", 2260.0, cpu_us=2310.5, metric=0.98),
            trial("openvino cpu bf16 1 thread", True, "slower than the winner", 2410.0, cpu_us=2400.0, metric=0.965),
            trial("onnxruntime cpu int8 dynamic 1 thread", False, "accuracy fell from 0.975 to 0.53", metric=0.53),
            trial("openvino gpu fp16 1 thread", False, "libOpenCL.so.1 is missing"),
            {**trial("onnxruntime cpu int4 weights4 1 thread", False, "no time was left"), "stage": "left out"},
        ],
        "left_out": 3,
        "sentence": f"{WINNER} is 3.2 times as fast as the default, and as good on 200 golden rows.",
    }


def box() -> dict[str, Any]:
    runtimes = {"onnxruntime": "1.31.1", "openvino": "2026.4.1"}
    return {"cpu": "Intel N100", "isa": ["avx2", "avx_vnni"], "threads": 4, "runtimes": runtimes, "drivers": {}}


def known(at: str, sites: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The hub's answer: two classes of boxes, (device, site) of the first one given; nothing from an empty fleet."""
    if not sites:
        return []
    reports = [{"device": device, "site": site, **report(at, hinted=n > 0)} for n, (device, site) in enumerate(sites)]
    standing = {"name": WINNER, "plan": reports[0]["plan"], "boxes": len(sites), "ratio": 0.31}
    first = {"model": "flight-delay", "version": "4", "release": "9f2c" * 16, "box_class": "5f0c1d2e3a4b5c6d"}
    other = {**standing, "name": "onnxruntime cpu fp32 1 thread", "boxes": 1, "ratio": 1.0}
    odd = {**reports[0], "name": other["name"], "ratio": 1.0, "trials": []}
    row = {**first, "box": box(), "boxes": len(sites), "winner": standing, "others": [], "at": at, "reports": reports}
    rpi = {**box(), "cpu": "Raspberry Pi 5", "runtimes": {"onnxruntime": "1.31.1"}}
    return [
        row,
        {**row, "box_class": "00d1", "box": rpi, "boxes": 2, "winner": other, "others": [standing], "reports": [odd]},
    ]


def hardware() -> dict[str, Any]:
    """A box with a GPU that is proven, an NPU that lacks its driver, and a runtime that is not installed."""
    npu = {
        "id": "pci:0000:00:0b.0", "kind": "npu", "vendor": "Intel", "name": "Intel NPU (Meteor Lake)", "usable": False,
        "problem": "no driver is bound to it", "fix": "load intel_vpu: modprobe intel_vpu",
    }  # fmt: skip
    gpu = {
        "id": "pci:0000:00:02.0", "kind": "gpu", "vendor": "Intel", "name": "Intel Arc A380", "usable": True,
        "driver": "i915", "driver_version": "6.8", "memory_bytes": 6_000_000_000, "library": "24.35",
    }  # fmt: skip
    coral = {"id": "usb:2-1", "kind": "npu", "vendor": "Google", "name": "Coral USB", "usable": True, "driver": "usb"}
    return {
        "kind": "GPU",
        "text": "Intel N100, 4 cores, 4 threads for inference, 8.3 GB, Intel Arc A380",
        "cpu": {"model": "Intel N100", "isa": ["avx2", "avx_vnni"], "physical_cores": 4},
        "threads": 4,
        "limits": {"cpus": None},
        "memory": {"usable_bytes": 8_300_000_000},
        "heat": {"celsius": {"package": 51.0}, "problem": ""},
        "accelerators": [gpu, npu, coral],
        "runtimes": [
            {"name": "onnxruntime", "version": "1.31.1", "devices": ["cpu"]},
            {"name": "openvino", "version": "2026.4.1", "devices": ["cpu", "gpu"]},
            {"name": "torch", "problem": "not installed"},
        ],
        "proofs": [
            {"runtime": "onnxruntime", "device": "cpu", "ok": True, "latency_us": 41.0},
            {"runtime": "openvino", "device": "gpu", "ok": True, "latency_us": 312.0},
            {"runtime": "openvino", "device": "npu", "ok": False, "cause": "missing", "sentence": "It names no NPU."},
        ],
    }


def stages() -> dict[str, Any]:
    """What the worker's histograms tell of the requests of a model."""
    told = (("decode", 14, 0.04), ("queue", 31, 0.09), ("features", 22, 0.06), ("run", 240, 0.78), ("encode", 9, 0.03))
    rows = [
        {"stage": name, "count": 8731, "p50_us": us, "p95_us": us * 2.6, "share": share} for name, us, share in told
    ]
    return {"items": rows}
