"""Asks one runtime for its devices: ``python -m landreeve_agent.hardware.runtimes_child NAME`` prints the answer.

The only module of this room that imports a runtime; it never runs inside the supervisor.
"""

import os
import sys

import msgspec

from landreeve_agent.hardware.runtimes import Answer

_PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "gpu",
    "MIGraphXExecutionProvider": "gpu",
    "ROCMExecutionProvider": "gpu",
    "DmlExecutionProvider": "gpu",
    "OpenVINOExecutionProvider": "cpu",
    "QNNExecutionProvider": "npu",
    "VitisAIExecutionProvider": "npu",
}


def onnxruntime() -> Answer:
    """onnxruntime's providers; which of them really work, only a session can prove."""
    import onnxruntime as ort

    ort.disable_telemetry_events()
    providers = tuple(ort.get_available_providers())
    devices = sorted({_PROVIDERS[name] for name in providers if name in _PROVIDERS})
    return Answer(devices=tuple(devices), providers=providers)


def openvino() -> Answer:
    """OpenVINO's devices; its plugins load the drivers while they list them."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # see serving.session.import_openvino
    from openvino import Core

    providers = tuple(Core().available_devices)
    devices = sorted({name.split(".")[0].lower() for name in providers})
    return Answer(devices=tuple(devices), providers=providers)


def main(name: str) -> None:
    """Print the answer as JSON."""
    out = os.dup(1)
    os.dup2(2, 1)  # libraries greet on stdout
    answer = {"onnxruntime": onnxruntime, "openvino": openvino}[name]()
    os.write(out, msgspec.json.encode(answer))


if __name__ == "__main__":
    main(sys.argv[1])
