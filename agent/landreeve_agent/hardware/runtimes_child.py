"""Asks one runtime for its devices: ``python -m landreeve_agent.hardware.runtimes_child NAME PARENT`` prints them.

It imports a runtime, so it never runs inside the supervisor.
"""

import sys

from landreeve_agent.hardware.confined import answer, begin
from landreeve_agent.hardware.runtimes import Answer


def onnxruntime() -> Answer:
    """onnxruntime's providers; which of them really work, only a session can prove."""
    import onnxruntime as ort

    ort.disable_telemetry_events()
    return Answer(providers=tuple(ort.get_available_providers()))


def openvino() -> Answer:
    """OpenVINO's devices; its plugins load the drivers while they list them."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # see serving.session.import_openvino
    from openvino import Core

    return Answer(providers=tuple(Core().available_devices))


def torch() -> Answer:
    """torch's backends: the CPU, and each accelerator that answers (CUDA is also ROCm's name here)."""
    import torch as library

    found = ["cpu"]
    found += [f"cuda:{n}" for n in range(library.cuda.device_count())] if library.cuda.is_available() else []
    found += [f"xpu:{n}" for n in range(library.xpu.device_count())] if library.xpu.is_available() else []
    found += ["mps"] if library.backends.mps.is_available() else []
    return Answer(providers=tuple(found))


def main(name: str, parent: int) -> None:
    """Print the answer as JSON."""
    out = begin(parent)
    answer(out, {"onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}[name]())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
