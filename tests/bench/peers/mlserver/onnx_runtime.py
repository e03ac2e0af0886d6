"""A custom MLServer runtime around onnxruntime, as MLServer's own documentation tells to write one.

A tiny graph runs on the event loop, for handing it to a thread costs more than it; the image model runs in a
thread, so that MLServer can read the next request meanwhile.
"""

import asyncio
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_session import Graph


class OnnxModel(MLModel):
    """One graph: one input, one output."""

    async def load(self) -> bool:
        parameters = self.settings.parameters
        self._inline = parameters.extra["inline"]
        self._graph = Graph(Path(parameters.uri), parameters.extra["threads"], parameters.extra["streams"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        if self._inline:
            answer = self._graph.run(x)
        else:
            answer = await asyncio.get_running_loop().run_in_executor(self._graph.pool, self._graph.run, x)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(self._graph.output, answer)], id=payload.id
        )
