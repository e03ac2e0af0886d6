"""An ONNX graph on torch, as well as torch can: traced, frozen, fused for inference. A measuring child of
bench_tuning.py: prints torch's time a row by that of onnxruntime at fp32 with one thread, measured in turns.

``python torch_graph.py RELEASE_FOLDER THREADS fp32|bf16``
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Plan  # noqa: E402 - needs the path above
from landreeve_agent.serving.session import open_session  # noqa: E402
from landreeve_agent.tuning.inputs import read_release  # noqa: E402

ROUNDS = 15
Tensor = torch.Tensor


def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, **a: Any) -> Tensor:
    top, left = a.get("pads", [0, 0, 0, 0])[:2]
    return F.conv2d(x, w, b, a.get("strides", 1), (top, left), a.get("dilations", 1), a.get("group", 1))


def _slice(x: Tensor, first: Tensor, last: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    for at, axis in enumerate((axes if axes is not None else torch.arange(len(first))).tolist()):
        x = x.narrow(axis, int(first[at]), min(int(last[at]), x.shape[axis]) - int(first[at]))
    return x


def _reshape(x: Tensor, shape: Tensor, **_: Any) -> Tensor:
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())])


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _norm(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float = 1e-5, **_: Any) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), scale, shift, epsilon)


def _batch_norm(x: Tensor, *stored: Tensor, epsilon: float = 1e-5, **_: Any) -> Tensor:
    scale, shift, mean, variance = stored
    return F.batch_norm(x, mean, variance, scale, shift, eps=epsilon)


OPERATORS: dict[str, Any] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Max": torch.maximum, "Erf": torch.erf,
    "IsNaN": torch.isnan, "Where": torch.where, "Sigmoid": torch.sigmoid,
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes.tolist())),
    "Relu": torch.relu, "HardSwish": F.hardswish, "HardSigmoid": lambda x, **_: F.hardsigmoid(x),
    "Identity": lambda x: x, "MatMul": torch.matmul, "Conv": _conv, "LayerNormalization": _norm,
    "BatchNormalization": _batch_norm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Transpose": lambda x, perm: x.permute(perm),
    "Reshape": _reshape, "Unsqueeze": _unsqueeze, "Slice": _slice,
    "Concat": lambda *xs, axis: torch.cat([x.to(torch.int64) for x in xs], axis),
    "Shape": lambda x, start=0, end=None: torch.tensor(x.shape[start:end]),
    "Gather": lambda x, i, axis=0: F.embedding(i, x),
    "Cast": lambda x, to: x.to(torch.float32),
    "ReduceSum": lambda x, axes, keepdims=1: x.sum(axes.tolist(), keepdim=bool(keepdims)),
    "ReduceL2": lambda x, axes, keepdims=1: x.norm(2, axes, keepdim=bool(keepdims)),
}  # fmt: skip


class Graph(torch.nn.Module):
    """The graph, node by node; tracing makes torch's own graph of it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._nodes = [
            (n.op_type, list(n.input), n.output[0], {a.name: helper.get_attribute_value(a) for a in n.attribute})
            for n in model.graph.node
        ]
        self._stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
        self._given = [value.name for value in model.graph.input]
        self._answer = model.graph.output[0].name

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output."""
        values = self._stored | dict(zip(self._given, inputs, strict=True))
        for kind, names, output, attributes in self._nodes:
            values[output] = OPERATORS[kind](*[values[name] if name else None for name in names], **attributes)
        return values[self._answer]


def main(folder: Path, threads: int, precision: str) -> None:
    warnings.simplefilter("ignore")  # tracing warns of every shape it fixes; one row's shapes are what is measured
    torch.set_num_threads(threads)
    _, _, golden = read_release(folder)
    data = (folder / "model.onnx").read_bytes()
    row = [np.ascontiguousarray(x[:1]) for x in golden.inputs]
    tensors = [torch.from_numpy(x) for x in row]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    with torch.inference_mode(), autocast:
        traced = torch.jit.trace(Graph(onnx.load_model_from_string(data)).eval(), tensors, check_trace=False)
        fused = torch.jit.freeze(traced.eval())
        apart = float(np.abs(fused(*tensors).float().numpy() - golden.expected[0][:1]).max())
        base = open_session(Plan(), data).session
        ratios = [_time(lambda: fused(*tensors)) / _time(lambda: base.run(row)) for _ in range(ROUNDS)]
    print(json.dumps({"ratio": float(np.median(ratios)), "difference": apart}))


def _time(call: Any) -> float:
    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
