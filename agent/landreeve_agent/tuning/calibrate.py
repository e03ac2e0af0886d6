"""The range of every tensor a static quantiser asks for, over the release's calibration sample.

The graph itself computes each tensor's smallest and largest value as further outputs, so the tensors never leave the
runtime: a sample of images costs kilobytes here and not the gigabytes that keeping every activation would.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.session import OnnxRuntime
from landreeve_agent.tuning.graph import QUANTISED_OPS

Array = NDArray[Any]
_FLOAT = 1


def ranges_of(model: Any, sample: Sequence[Array], threads: int) -> dict[str, tuple[Array, Array]]:
    """Lowest and highest value, float32 (), of each float tensor that a quantisable node reads or writes.

    ``sample`` has one array for each input of the graph, rows first; each row is run alone.
    """
    import onnx

    watched = _watched(model)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in watched:
        for suffix, kind in (("lowest", "ReduceMin"), ("highest", "ReduceMax")):
            end = f"{name}.{suffix}"
            probe.graph.node.append(onnx.helper.make_node(kind, [name], [end], keepdims=0))
            probe.graph.output.append(onnx.helper.make_tensor_value_info(end, _FLOAT, []))
    session = OnnxRuntime(Plan(threads=threads), probe.SerializeToString())
    lows, highs = np.full(len(watched), np.inf), np.full(len(watched), -np.inf)
    first = len(model.graph.output)
    for row in range(len(sample[0])):
        values = session.run([array[row : row + 1] for array in sample])[first:]
        lows, highs = np.minimum(lows, values[0::2]), np.maximum(highs, values[1::2])
    return {name: (np.float32(lows[i]), np.float32(highs[i])) for i, name in enumerate(watched)}  # type: ignore[misc]


def _watched(model: Any) -> list[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {output for node in model.graph.node if node.op_type == "Constant" for output in node.output}
    names = (
        name
        for node in model.graph.node
        if node.op_type in QUANTISED_OPS
        for name in (*node.input, *node.output)
        if name and name not in stored
    )
    return list(dict.fromkeys(names))
