"""Running our two graphs with a runtime on one of its devices, and reading back where they really ran.

Imported by child programs only. onnxruntime tells the provider of every node in its profile; OpenVINO has a property
for it; torch's tensors know their device. Nobody is believed by what was asked for.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from landreeve_agent.hardware import tiny
from landreeve_agent.hardware.graphs import MATMUL, PRODUCTS, TINY
from landreeve_agent.hardware.tiny import Array

Graph = Literal["tiny", "matmul"]
_FILES = {"tiny": TINY, "matmul": MATMUL}


class Runner(Protocol):
    """A graph on a device. ``run`` takes its inputs in order; ``where`` names every device that took part, in the
    runtime's words, and may end the runner."""

    def run(self, *inputs: Array) -> Array: ...

    def where(self) -> Sequence[str]: ...


def open_runner(runtime: str, target: str, graph: Graph, threads: int = 1, *, traced: bool = False) -> Runner:
    """The graph, ready to run. ``traced`` lets `Runner.where` tell of every node; it slows a run down."""
    match runtime:
        case "onnxruntime":
            return OnnxRuntime(target, graph, threads, traced)
        case "openvino":
            return OpenVino(target, graph, threads)
        case "torch":
            return Torch(target, graph, threads)
        case _:
            raise ValueError(f"no runtime named {runtime!r}")


class OnnxRuntime:
    """An onnxruntime session on one provider."""

    def __init__(self, target: str, graph: Graph, threads: int, traced: bool) -> None:
        import onnxruntime as ort

        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._folder = tempfile.TemporaryDirectory() if traced else None
        if self._folder:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / "nodes")
        self._session = ort.InferenceSession(_FILES[graph].read_bytes(), options, providers=[target])
        self._names = [one.name for one in self._session.get_inputs()]

    def run(self, *inputs: Array) -> Array:
        """The first output."""
        return np.asarray(self._session.run(None, dict(zip(self._names, inputs, strict=True)))[0], np.float32)

    def where(self) -> Sequence[str]:
        """The providers of the nodes that ran; without a trace those of the session."""
        if self._folder is None:
            return [str(provider) for provider in self._session.get_providers()[:1]]
        events = json.loads(Path(self._session.end_profiling()).read_bytes())
        found = {str(event.get("args", {}).get("provider", "")) for event in events if event.get("cat") == "Node"}
        return sorted(found - {""})


class OpenVino:
    """An OpenVINO model compiled for one device."""

    def __init__(self, target: str, graph: Graph, threads: int) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # see serving.session
        from openvino import Core

        hints = {"PERFORMANCE_HINT": "LATENCY"}
        if target == "CPU":  # its default may be bf16, and its threads ignore quotas
            hints |= {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
        self._compiled = Core().compile_model(str(_FILES[graph]), target, hints)
        self._request = self._compiled.create_infer_request()

    def run(self, *inputs: Array) -> Array:
        """The first output."""
        return np.array(self._request.infer(list(inputs))[0], np.float32)

    def where(self) -> Sequence[str]:
        """The devices it executes on."""
        return [str(device) for device in self._compiled.get_property("EXECUTION_DEVICES")]


class Torch:
    """The same graphs in torch's own functions."""

    def __init__(self, target: str, graph: Graph, threads: int) -> None:
        os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "0"  # an operator Apple's backend lacks would run on the CPU
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch, self._device = torch, torch.device(target)
        self._graph = self._tiny if graph == "tiny" else self._matmul
        self._weights = [torch.from_numpy(w).to(self._device) for w in (tiny.kernels(), tiny.matrix())]
        self._ran: set[str] = set()

    def run(self, *inputs: Array) -> Array:
        """The output, copied back."""
        answer = self._graph(*(self._torch.from_numpy(x).to(self._device) for x in inputs))
        self._ran.add(str(answer.device))
        return np.asarray(answer.to("cpu").numpy(), np.float32)

    def where(self) -> Sequence[str]:
        """The devices the answers were on."""
        return sorted(self._ran)

    def _tiny(self, x: Any) -> Any:
        kernels, matrix = self._weights
        convolved = self._torch.nn.functional.conv2d(x, kernels, padding=1)
        return self._torch.relu(convolved).mean(dim=(2, 3)) @ matrix

    def _matmul(self, a: Any, b: Any) -> Any:
        for _ in range(PRODUCTS):
            a = a @ b
        return a.max(dim=1).values
