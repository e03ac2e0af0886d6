"""Triton Inference Server through PyTriton on 127.0.0.1 with every ``FOLDER/*.onnx``.

    python serve.py --port N --models FOLDER --work FOLDER --threads N --streams N

The wheel's tritonserver has the Python backend only, so a graph runs in this process and its tensors cross shared
memory. Triton's dynamic batcher is on for the tabular model, which gains by it; the image model has ``streams``
instances instead.
"""

import argparse
import logging
import signal
import threading
from pathlib import Path

import numpy as np
from onnx_session import Graph
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

TABULAR_BATCH = 16


def bind_tabular(triton: Triton, path: Path, threads: int) -> None:
    graph = Graph(path, threads, 1)
    width = np.load(path.with_suffix(".npy")).shape[1]

    @batch
    def infer(x: np.ndarray) -> dict[str, np.ndarray]:
        return {graph.output: graph.run(x).reshape(-1, 1)}

    triton.bind(
        model_name="tabular",
        infer_func=infer,
        inputs=[Tensor(name=graph.input, dtype=np.float32, shape=(width,))],
        outputs=[Tensor(name=graph.output, dtype=np.float32, shape=(1,))],
        config=ModelConfig(batching=True, max_batch_size=TABULAR_BATCH),
    )


def bind_image(triton: Triton, path: Path, threads: int, streams: int) -> None:
    graph = Graph(path, threads, streams)
    shape = (1, *np.load(path.with_suffix(".npy")).shape[1:])

    def infer(requests: list) -> list[dict[str, np.ndarray]]:
        return [{graph.output: graph.run(request[graph.input])} for request in requests]

    triton.bind(
        model_name="image",
        infer_func=[infer] * streams,
        inputs=[Tensor(name=graph.input, dtype=np.float32, shape=shape)],
        outputs=[Tensor(name=graph.output, dtype=np.float32, shape=(1, -1))],
        config=ModelConfig(batching=False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=options.port,
        grpc_address="127.0.0.1",
        grpc_port=options.port + 1,
        allow_metrics=False,
        exit_timeout_secs=2,
    )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Triton(config=config, workspace=options.work) as triton:
        # Models bound while connected are loaded at once.
        if (options.models / "tabular.onnx").exists():
            bind_tabular(triton, options.models / "tabular.onnx", options.threads)
        if (options.models / "image.onnx").exists():
            bind_image(triton, options.models / "image.onnx", options.threads, options.streams)
        ended.wait()


if __name__ == "__main__":
    main()
