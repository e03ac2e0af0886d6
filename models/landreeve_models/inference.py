"""Running a graph plainly: onnxruntime, fp32, one thread. The reference that every optimised plan must reproduce."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class GraphFailedError(ValueError):
    """onnxruntime could not load or run a graph; the text is its own, shortened."""


def predict_graph(graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The graph's float32 output (n,) for x (n, width)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        output: Any = session.run(None, {session.get_inputs()[0].name: x})[0]
    except Exception as error:  # onnxruntime raises its own classes without a public base
        raise GraphFailedError(f"onnxruntime: {str(error)[:300]}") from error
    result: NDArray[np.float32] = np.asarray(output, dtype=np.float32)
    return result
