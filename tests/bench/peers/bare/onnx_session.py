"""The one way all peers open a graph: onnxruntime on the CPU, the threads they are told, no spinning.

It stands on each peer's path. The options are those of the worker's own session, so what differs in a comparison is
the server around it.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort


class Graph:
    """An ONNX graph with one input and one output; ``streams`` of its runs may happen at once."""

    def __init__(self, path: Path, threads: int, streams: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = self._session.get_inputs()[0].name
        self.output = self._session.get_outputs()[0].name
        self._outputs = [self.output]
        self.pool = ThreadPoolExecutor(streams)

    def run(self, x: np.ndarray) -> np.ndarray:
        """The output for float32 ``x``, on the calling thread."""
        return self._session.run(self._outputs, {self.input: x})[0]
