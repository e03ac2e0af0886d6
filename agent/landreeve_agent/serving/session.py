"""A graph, ready to run by its plan: onnxruntime or OpenVINO behind one small interface.

Both runtimes fall back silently: onnxruntime to its CPU provider with a warning, OpenVINO to bf16 by default.
So devices and precision are asked for explicitly and read back after the load; what differs becomes a reason.
Threads come from the plan, because neither runtime sees a cgroup quota, and their spinning is off: it costs
half the CPU of a small box. A plan's threads are those of one run; with several streams as many runs go on at once.
"""

import io
import queue
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError

Array = NDArray[Any]

_ORT_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "gpu": ("CUDAExecutionProvider", "MIGraphXExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider"),
    "npu": ("QNNExecutionProvider", "VitisAIExecutionProvider"),
}
# int8 and int4 are in the graph; what is left runs at f32.
_OV_PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32", "int4": "f32"}


class Session(Protocol):
    """Runs a graph: one array for each of ``inputs`` in that order, answered by one for each of ``outputs``.

    `run` raises `RunFailedError`. The arrays it answers belong to the caller. Any thread may call it; as many calls as
    the plan has streams go on at once, more wait.
    """

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, feeds: Sequence[Array]) -> list[Array]: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A session and the truth about it: the plan really used, its text, and why it is not the plan asked for."""

    session: Session
    plan: Plan
    reason: str

    @property
    def used(self) -> str:
        """Device first, then how.

        >>> Opened(None, Plan(), "").used
        'CPU · onnxruntime · fp32 · 1 thread'
        """
        threads = f"{self.plan.threads} thread" + ("" if self.plan.threads == 1 else "s")
        return f"{self.plan.device.upper()} · {self.plan.backend} · {self.plan.precision} · {threads}"


def open_session(plan: Plan, graph: bytes) -> Opened:
    """The graph opened by its plan; on a device that fails, by onnxruntime on the CPU, with the reason.

    Raises `LoadFailedError` when the graph cannot be loaded at all.
    """
    reason = plan.reason
    if plan.backend != "onnxruntime" or plan.device != "cpu":
        try:
            return Opened(_open(plan, graph), plan, reason)
        except Exception as error:  # noqa: BLE001 - a runtime or driver may raise anything; the CPU must still serve
            reason = f"{plan.device.upper()} with {plan.backend} failed: {_first_line(error)}"
    cpu = msgspec.structs.replace(plan, backend="onnxruntime", device="cpu")
    if cpu.precision == "bf16":
        cpu = msgspec.structs.replace(cpu, precision="fp32")
    try:
        return Opened(OnnxRuntime(cpu, graph), cpu, reason)
    except Exception as error:  # the runtime's own errors share no base besides Exception
        raise LoadFailedError("bad_graph", f"onnxruntime cannot load {plan.graph}: {_first_line(error)}") from error


def _open(plan: Plan, graph: bytes) -> Session:
    if plan.backend == "openvino":
        return OpenVino(plan, graph)
    return OnnxRuntime(plan, graph)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


class OnnxRuntime:
    """onnxruntime on the plan's device; raises when the device is not what the runtime really uses."""

    def __init__(self, plan: Plan, graph: bytes) -> None:
        import onnxruntime as ort

        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = _pool_threads(plan)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if plan.precision == "bf16":  # matrix products alone, and only ARM has kernels for it
            options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
        provider = _provider(ort.get_available_providers(), plan.device)
        self._session = ort.InferenceSession(graph, options, providers=[provider])
        _assert_used(self._session.get_providers(), provider)
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())
        self._run = _bound_run(self._session)
        _let_bytes_go(self._session)
        self._names = list(self.outputs)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The graph's outputs, in its order."""
        try:
            answer: list[Array] = self._run(self._names, dict(zip(self.inputs, feeds, strict=True)), None)
        except Exception as error:  # onnxruntime raises its own classes, which share no base
            raise RunFailedError(_first_line(error)) from error
        return answer


def _pool_threads(plan: Plan) -> int:
    """Threads of the session's pool: the thread that calls works too, and streams of one thread need no pool."""
    return plan.threads if plan.streams == 1 else (plan.threads - 1) * plan.streams + 1


def _bound_run(session: Any) -> Any:
    """The binding's own ``run``: the wrapper around it checks the names anew at every call, 2 µs of a small graph's 8.
    It is no public name, so a version without it is served through the wrapper."""
    return getattr(getattr(session, "_sess", None), "run", session.run)


def _let_bytes_go(session: Any) -> None:
    """The wrapper keeps the graph's bytes to open it again on other providers, which is never asked of it here: a large
    model would take its memory twice."""
    if getattr(session, "_sess", None) is not None and hasattr(session, "_model_bytes"):
        session._model_bytes = None


def _provider(available: list[str], device: str) -> str:
    for provider in _ORT_PROVIDERS.get(device, ()):
        if provider in available:
            return provider
    known = ", ".join(p.removesuffix("ExecutionProvider") for p in available)
    raise LoadFailedError("no_provider", f"this onnxruntime has no provider for {device} (it has {known})")


def _assert_used(providers: list[str], wanted: str) -> None:
    if not providers or providers[0] != wanted:
        raise LoadFailedError("silent_fallback", f"{wanted} was asked for and {providers} is used")


def import_openvino() -> Any:
    """The openvino module, its telemetry switched off for this process before it can start."""
    # The package reports usage unless a consent file says no. We cannot write into the user's home, so the
    # module is made unimportable: openvino then takes its own telemetry stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVino:
    """OpenVINO on the plan's device and precision; raises when it is another than asked for."""

    def __init__(self, plan: Plan, graph: bytes) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": _OV_PRECISIONS[plan.precision], "PERFORMANCE_HINT": "LATENCY"}
        if plan.device == "cpu":
            hints |= {"INFERENCE_NUM_THREADS": str(plan.threads * plan.streams), "NUM_STREAMS": str(plan.streams)}
        model = core.read_model(io.BytesIO(graph))
        compiled = core.compile_model(model, plan.device.upper(), hints)
        _assert_device(compiled.get_property("EXECUTION_DEVICES"), plan.device)
        _assert_precision(compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), plan.precision)
        self.inputs = tuple(port.get_any_name() for port in compiled.inputs)
        self.outputs = tuple(port.get_any_name() for port in compiled.outputs)
        # A request may serve one caller at a time, and it keeps the outputs until its next run.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(plan.streams):
            self._idle.put(compiled.create_infer_request())

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The graph's outputs, in its order."""
        request = self._idle.get()
        try:
            answer = request.infer(list(feeds), share_inputs=True)
            return [np.array(answer[i]) for i in range(len(self.outputs))]
        except Exception as error:  # the binding raises RuntimeError and its own classes
            raise RunFailedError(_first_line(error)) from error
        finally:
            self._idle.put(request)


def _assert_device(devices: list[str], wanted: str) -> None:
    if not all(device.upper().startswith(wanted.upper()) for device in devices):
        raise LoadFailedError("silent_fallback", f"{wanted} was asked for and {', '.join(devices)} is used")


def _assert_precision(got: str, wanted: str) -> None:
    if got not in {_OV_PRECISIONS[wanted], {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(got, got)}:
        raise LoadFailedError("silent_precision", f"{wanted} was asked for and {got} is used")
