"""Running a graph plainly: onnxruntime, fp32, one thread. The reference that every optimised plan must reproduce."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GraphFailedError(ValueError):
    """onnxruntime could not load or run a graph; the text is its own, shortened."""


def predict_graph(graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The graph's float32 output (n,) for x (n, width)."""
    return np.asarray(run_graph(graph, [x])[0], dtype=np.float32)


def run_graph(graph: bytes, feeds: Sequence[NDArray[Any]], batch_rows: int | None = None) -> list[NDArray[Any]]:
    """The graph's outputs, in its order, for feeds in the order of its inputs; ``batch_rows`` rows at once or all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    step = max(batch_rows or len(feeds[0]), 1)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = [end.name for end in session.get_inputs()]
        parts: list[list[Any]] = [
            session.run(None, {n: feed[at : at + step] for n, feed in zip(names, feeds, strict=True)})
            for at in range(0, max(len(feeds[0]), 1), step)
        ]
    except Exception as error:  # onnxruntime raises its own classes without a public base
        raise GraphFailedError(f"onnxruntime: {str(error)[:300]}") from error
    return [np.concatenate(pieces) if len(pieces) > 1 else np.asarray(pieces[0]) for pieces in zip(*parts, strict=True)]
