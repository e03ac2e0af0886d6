"""Real pairs of releases' files, made on the spot for bench_delta.py: what a site holds, and what comes next.

A convolutional network of some 5 MB learns to read digits, and is then trained on in the ways that happen in the
field; gradient boosting grows by trees or is fitted again. Files are ONNX, as releases carry them. How much of a
weight changes depends on how far training moved it, so full fine-tunes come with two learning rates each.
"""

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from landreeve_models.recipes.boosting import FittedBoosting
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

BATCH = 64
Images = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """``bar`` is the most percent of the whole file that may be sent; None where nothing is promised."""

    name: str
    base: bytes
    target: bytes
    bar: float | None


def pairs() -> Iterator[Pair]:
    """Every pair, one after another: making one takes seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    train, more = _digits()
    base = _fitted(_network(), train, epochs=2, optimiser=_adam(1e-3))
    whole = _onnx(base)
    tuned = {
        "head fine-tune": (_fitted(base, more, epochs=2, optimiser=_adam(1e-3), head_only=True), 1.0),
        "full fine-tune, SGD 1e-4": (_fitted(base, more, epochs=1, optimiser=_sgd(1e-4)), 45.0),
        "full fine-tune, SGD 1e-3": (_fitted(base, more, epochs=1, optimiser=_sgd(1e-3)), 45.0),
        "full fine-tune, Adam 1e-6": (_fitted(base, more, epochs=1, optimiser=_adam(1e-6)), 45.0),
        "full fine-tune, Adam 1e-5": (_fitted(base, more, epochs=1, optimiser=_adam(1e-5)), 45.0),
    }
    torch.manual_seed(1)
    retrained = _fitted(_network(), more, epochs=2, optimiser=_adam(1e-3))
    for name, (network, bar) in {**tuned, "retrain": (retrained, 90.0)}.items():
        yield Pair(f"{name}, fp32", whole, _onnx(network), bar)
    small = _int8(whole, train)  # quantisation notes what it would like better
    for name, (network, _) in tuned.items():
        yield Pair(f"{name}, int8", small, _int8(_onnx(network), train), 30.0)
    yield from _trees()


def _digits() -> tuple[Images, Images]:
    """What the first version learnt from and what came since, as pictures of 16 by 16 with noise."""
    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    pictures = nn.functional.interpolate(pictures, size=16, mode="bilinear")
    pictures += 0.05 * torch.randn(pictures.shape)
    labels = torch.tensor(data.target)
    return (pictures[:600], labels[:600]), (pictures[600:1200], labels[600:1200])


def _network() -> nn.Sequential:
    """1.4 million weights."""

    def stage(inner: int, outer: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2)]

    body = [*stage(1, 32), *stage(32, 96), *stage(96, 224), *stage(224, 512)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def _adam(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda weights: torch.optim.Adam(weights, lr=rate)


def _sgd(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda weights: torch.optim.SGD(weights, lr=rate)


def _fitted(
    start: nn.Sequential,
    data: Images,
    *,
    epochs: int,
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    head_only: bool = False,
) -> nn.Sequential:
    """A copy of the network, trained on."""
    network = copy.deepcopy(start).train()
    if head_only:
        network[:-1].eval().requires_grad_(requires_grad=False)
    steps = optimiser([weight for weight in network.parameters() if weight.requires_grad])
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0])).split(BATCH):
            steps.zero_grad()
            nn.functional.cross_entropy(network(data[0][rows]), data[1][rows]).backward()
            steps.step()
    return network.eval()


def _onnx(network: nn.Sequential) -> bytes:
    """Exported as it is (batch norm stays a layer, so the file's layout does not depend on the weights)."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 1, 16, 16),), out, input_names=["x"], output_names=["y"],
            dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.EVAL,
        )  # fmt: skip
    return out.getvalue()


class _Calibration(CalibrationDataReader):
    def __init__(self, pictures: torch.Tensor) -> None:
        self._rows = iter(pictures[:64].numpy())

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"x": row[None]}


def _int8(model: bytes, data: Images) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        before.write_bytes(model)
        quantize_static(
            before, after, _Calibration(data[0]), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
        return after.read_bytes()


def _trees() -> Iterator[Pair]:
    """Gradient boosting that goes on where it was, and one fitted again on more rows."""
    rows, labels = load_digits(return_X_y=True)
    odd = (labels % 2).astype(np.int64)
    growing = HistGradientBoostingClassifier(max_iter=100, warm_start=True, early_stopping=False, random_state=0)
    before = FittedBoosting(growing.fit(rows[:1200], odd[:1200]), rows.shape[1]).export_onnx()
    again = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0).fit(rows, odd)
    growing.set_params(max_iter=110).fit(rows[:1200], odd[:1200])
    yield Pair("gradient boosting, more trees", before, FittedBoosting(growing, rows.shape[1]).export_onnx(), None)
    yield Pair("gradient boosting, fitted again", before, FittedBoosting(again, rows.shape[1]).export_onnx(), None)
