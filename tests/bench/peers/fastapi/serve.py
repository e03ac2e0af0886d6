"""What an application developer writes in an afternoon: FastAPI, pydantic and onnxruntime, one process.

    python serve.py --port N --models FOLDER --work FOLDER --threads N --streams N

uvicorn runs it on uvloop and httptools without an access log. ``/tabular`` takes a row as JSON, its columns as named
in ``FOLDER/columns.json``; ``/image`` takes nested lists of numbers, ``/image/raw`` the same float32 as bytes.
"""

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from onnx_session import Graph
from pydantic import BaseModel, create_model


class Image(BaseModel):
    """An image batch, (rows, channels, height, width)."""

    pixels: list[list[list[list[float]]]]


def add_tabular(app: FastAPI, models: Path, threads: int) -> None:
    graph = Graph(models / "tabular.onnx", threads, 1)
    columns = json.loads((models / "columns.json").read_text())
    row_model = create_model("Row", **{c["name"]: (str if "ranks" in c else float, ...) for c in columns})
    ranks = [(c["name"], c.get("ranks")) for c in columns]

    async def predict(row) -> dict[str, float]:  # the annotation is made below
        values = [rank.get(getattr(row, name), -1.0) if rank else getattr(row, name) for name, rank in ranks]
        return {"probability": float(graph.run(np.array([values], np.float32))[0])}

    predict.__annotations__["row"] = row_model
    app.post("/tabular")(predict)


def add_image(app: FastAPI, models: Path, threads: int, streams: int) -> None:
    graph = Graph(models / "image.onnx", threads, streams)
    shape = (1, *np.load(models / "image.npy").shape[1:])

    async def classes(x: np.ndarray) -> dict[str, list[list[float]]]:
        answer = await asyncio.get_running_loop().run_in_executor(graph.pool, graph.run, x)
        return {"classes": answer.tolist()}

    @app.post("/image")
    async def image(body: Image) -> dict[str, list[list[float]]]:
        return await classes(np.array(body.pixels, np.float32))

    @app.post("/image/raw")
    async def raw(request: Request) -> dict[str, list[list[float]]]:
        return await classes(np.frombuffer(await request.body(), np.float32).reshape(shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    app = FastAPI()
    if (options.models / "tabular.onnx").exists():
        add_tabular(app, options.models, options.threads)
    if (options.models / "image.onnx").exists():
        add_image(app, options.models, options.threads, options.streams)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
