"""An autoencoder that scores how unusual a window of a periodic series is: seeded, fitted in torch, exported by hand.

Each value is first compared with what is usual at its hour of the day; a narrow network then rebuilds the window from
a few numbers. What it cannot rebuild, in units of what it usually cannot, is the score (Sakurada & Yairi 2014, DOI
10.1145/2689746.2689747). All of it is inside the graph: callers send plain readings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from landreeve_models.recipes.contract import BadConfigurationError, Floats, Progress

HOURS = 24
CLIP = 8.0
OPSET = 17
_IR_VERSION = 9
_LEAST_SPREAD = 1e-3


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``hidden`` units around ``bottleneck`` numbers; the learning rate falls to nothing over ``epochs``."""

    hidden: int = 128
    bottleneck: int = 8
    epochs: int = 60
    batch: int = 64
    learning_rate: float = 0.002
    weight_decay: float = 0.01
    seed: int = 1


@dataclass(frozen=True, slots=True)
class FittedAutoencoder:
    """``mean`` and ``spread`` (24, channels) of each hour; ``layers`` are (weight (out, in), bias (out,)) with ReLU
    between all but the two at the bottleneck; ``residual`` (channels,) is what usually stays unexplained."""

    mean: Floats
    spread: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    residual: Floats
    steps: int

    def score(self, windows: Floats) -> Floats:
        """How unusual each window is, float32 (n,), for windows (n, steps, 1 + channels)."""
        z = standardise(windows, self.mean, self.spread)
        apart = (_rebuild(z, self.layers) - z) / self.residual
        result: Floats = (np.clip(apart, -CLIP, CLIP) ** 2).mean(axis=(1, 2)).astype(np.float32)
        return result

    def export_onnx(self) -> bytes:
        """``window`` float32 (rows, steps, 1 + channels) to ``score`` float32 (rows,); opset 17."""
        return _graph(self)


def fit(windows: Floats, held_out: Floats, config: Mapping[str, Any], progress: Progress) -> FittedAutoencoder:
    """Fit on windows (n, steps, 1 + channels) whose first channel is the hour of the day; ``held_out`` windows say
    what a good model usually leaves unexplained. The same windows and configuration give the same weights."""
    settings = parse_config(config)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    mean, spread = _usual(windows)
    z = torch.from_numpy(standardise(windows, mean, spread))
    network = _network(z.shape[1] * z.shape[2], settings)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for epoch in range(settings.epochs):
        rate = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * epoch / settings.epochs))
        optimizer.param_groups[0]["lr"] = float(rate)
        loss = _one_epoch(network, optimizer, z, np.random.default_rng([settings.seed, epoch]), settings.batch)
        progress((epoch + 1) / settings.epochs, f"epoch {epoch + 1} of {settings.epochs}: loss {loss:.4f}")
    weights = [parameter.detach().numpy().copy() for parameter in network.parameters()]
    layers = tuple(zip(weights[::2], weights[1::2], strict=True))
    seen = standardise(held_out, mean, spread)
    residual = np.sqrt(((_rebuild(seen, layers) - seen) ** 2).mean(axis=(0, 1)))
    return FittedAutoencoder(mean, spread, layers, np.maximum(residual, _LEAST_SPREAD), windows.shape[1])


def parse_config(config: Mapping[str, Any]) -> Config:
    """The settings; `BadConfigurationError` names the one that is wrong."""
    try:
        settings = msgspec.convert(dict(config), Config)
    except msgspec.ValidationError as error:
        raise BadConfigurationError(f"recipes.autoencoder: {error}") from error
    if min(settings.hidden, settings.bottleneck, settings.epochs, settings.batch) < 1 or settings.learning_rate <= 0:
        raise BadConfigurationError("recipes.autoencoder: sizes, epochs and batch ≥ 1 and learning_rate > 0 needed")
    return settings


def standardise(windows: Floats, mean: Floats, spread: Floats) -> Floats:
    """float32 (n, steps, channels): distance from the usual value of the hour in its usual spreads, clipped."""
    hour = np.clip(windows[..., 0].astype(np.int64), 0, HOURS - 1)
    z = np.clip((windows[..., 1:] - mean[hour]) / spread[hour], -CLIP, CLIP)
    return np.ascontiguousarray(z, np.float32)


def _usual(windows: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each channel at each hour (24, channels); of all hours where one never occurs."""
    values, hours = windows[..., 1:], windows[..., 0].astype(np.int64)
    mean = np.tile(values.mean(axis=(0, 1)), (HOURS, 1))
    spread = np.tile(values.std(axis=(0, 1)), (HOURS, 1))
    for hour in np.unique(hours):
        mean[hour], spread[hour] = values[hours == hour].mean(axis=0), values[hours == hour].std(axis=0)
    return mean.astype(np.float32), np.maximum(spread, _LEAST_SPREAD).astype(np.float32)


def _network(width: int, settings: Config) -> torch.nn.Sequential:
    torch.manual_seed(settings.seed)
    narrow, wide = settings.bottleneck, settings.hidden
    return torch.nn.Sequential(
        torch.nn.Linear(width, wide), torch.nn.ReLU(), torch.nn.Linear(wide, narrow),
        torch.nn.Linear(narrow, wide), torch.nn.ReLU(), torch.nn.Linear(wide, width),
    )  # fmt: skip


def _one_epoch(
    network: torch.nn.Sequential,
    optimizer: torch.optim.Optimizer,
    z: torch.Tensor,
    random: np.random.Generator,
    batch: int,
) -> float:
    order, flat, total = random.permutation(len(z)), z.flatten(1), 0.0
    for first in range(0, len(order), batch):
        chosen = flat[torch.from_numpy(order[first : first + batch])]
        optimizer.zero_grad()
        # Storms are in the data too: an absolute loss in the tails keeps them from being learnt by heart.
        loss = torch.nn.functional.smooth_l1_loss(network(chosen), chosen)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(chosen)
    return total / len(order)


def _rebuild(z: Floats, layers: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """The network's own idea of the windows, float32 (n, steps, channels)."""
    hidden: NDArray[Any] = z.reshape(len(z), -1)
    for i, (weight, bias) in enumerate(layers):
        hidden = hidden @ weight.T + bias
        if i in (0, 2):
            hidden = np.maximum(hidden, 0)
    return hidden.reshape(z.shape).astype(np.float32)


def _graph(fitted: FittedAutoencoder) -> bytes:
    channels = fitted.mean.shape[1]
    stored: dict[str, Any] = {
        "mean": fitted.mean, "spread": fitted.spread, "residual": fitted.residual,
        "low": np.float32(-CLIP), "high": np.float32(CLIP),
        "first_hour": np.int64(0), "last_hour": np.int64(HOURS - 1),
        "zero": np.array([0], np.int64), "one": np.array([1], np.int64), "axis": np.array([2], np.int64),
        "end": np.array([1 + channels], np.int64), "shape": np.array([-1, fitted.steps, channels], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["window", "zero", "one", "axis"], ["hour_column"]),
        helper.make_node("Squeeze", ["hour_column", "axis"], ["hour_number"]),
        helper.make_node("Cast", ["hour_number"], ["any_hour"], to=TensorProto.INT64),
        helper.make_node("Clip", ["any_hour", "first_hour", "last_hour"], ["hour"]),
        helper.make_node("Slice", ["window", "one", "end", "axis"], ["values"]),
        helper.make_node("Gather", ["mean", "hour"], ["usual"], axis=0),
        helper.make_node("Gather", ["spread", "hour"], ["usual_spread"], axis=0),
        helper.make_node("Sub", ["values", "usual"], ["apart"]),
        helper.make_node("Div", ["apart", "usual_spread"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "low", "high"], ["z"]),
        helper.make_node("Flatten", ["z"], ["h0"], axis=1),
    ]
    for i, (weight, bias) in enumerate(fitted.layers):
        stored |= {f"w{i}": np.ascontiguousarray(weight.T), f"b{i}": bias}
        relu = i in (0, 2)
        nodes.append(helper.make_node("Gemm", [f"h{i}", f"w{i}", f"b{i}"], [f"g{i}" if relu else f"h{i + 1}"]))
        if relu:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"h{i + 1}"]))
    nodes += [
        helper.make_node("Reshape", [f"h{len(fitted.layers)}", "shape"], ["rebuilt"]),
        helper.make_node("Sub", ["rebuilt", "z"], ["unexplained"]),
        helper.make_node("Div", ["unexplained", "residual"], ["in_residuals"]),
        helper.make_node("Clip", ["in_residuals", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "clipped"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["score"], axes=[1, 2], keepdims=0),
    ]
    given = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["rows", fitted.steps, 1 + channels])
    answer = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "autoencoder", [given], [answer], initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="landreeve", ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
