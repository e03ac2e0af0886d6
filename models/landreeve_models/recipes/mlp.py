"""A small multi-layer perceptron in torch: seeded, checkpointed, and exported node by node.

Imputation, missing indicators and standardisation are part of the network, so the graph takes the pipeline's raw
tensor. Batches are drawn from a permutation that depends on seed and epoch alone: a killed fit continues from its
checkpoint to bit-identical weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from landreeve_models.recipes import graph
from landreeve_models.recipes.contract import (
    BadConfigurationError,
    Checkpoint,
    Data,
    Floats,
    Probabilities,
    Progress,
    fingerprint_of,
)

CLIP = 6.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``hidden`` layer sizes; ``epochs`` at most, keeping the weights of the best one on the validation rows;
    ``checkpoint_steps`` batches between two checkpoints."""

    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 12
    batch: int = 512
    learning_rate: float = 0.003
    weight_decay: float = 1e-4
    seed: int = 7
    checkpoint_steps: int = 100


@dataclass(frozen=True, slots=True)
class FittedMlp:
    """``layers`` are (weight (out, in), bias (out,)) from input to output; ``mean`` and ``scale`` (width,)."""

    mean: Floats
    scale: Floats
    layers: tuple[tuple[Floats, Floats], ...]

    def predict(self, x: Floats) -> Probabilities:
        """Probability of label 1 for each row of x (n, width)."""
        hidden = _prepare(x, self.mean, self.scale)
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        logit = (hidden @ weight.T + bias)[:, 0].astype(np.float64)
        result: Probabilities = 1.0 / (1.0 + np.exp(-logit))
        return result

    def export_onnx(self) -> bytes:
        """The graph, opset 17: IsNaN, Where, Sub, Div, Clip, Concat, Gemm, Relu, Sigmoid."""
        return graph.dense(self.mean, self.scale, self.layers, CLIP)


def fit(data: Data, config: Mapping[str, Any], checkpoint: Checkpoint, progress: Progress) -> FittedMlp:
    """Fit with AdamW on one thread; continue from the checkpoint when it belongs to this data and configuration."""
    settings = parse_config(config)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    run = _Run.begin(data, settings, checkpoint)
    while run.step < run.last_step:
        run.train_one_batch()
        if run.step % run.steps_per_epoch == 0:
            run.end_epoch()
            progress(run.step / run.last_step, f"epoch {run.epoch} of {settings.epochs}: loss {run.val_loss:.4f}")
        if run.step % settings.checkpoint_steps == 0:
            run.save(checkpoint)
    return run.fitted()


def parse_config(config: Mapping[str, Any]) -> Config:
    """The settings; `BadConfigurationError` names the one that is wrong."""
    try:
        settings = msgspec.convert(dict(config), Config)
    except msgspec.ValidationError as error:
        raise BadConfigurationError(f"recipes.mlp: {error}") from error
    if settings.epochs < 1 or settings.batch < 1 or settings.checkpoint_steps < 1 or min((*settings.hidden, 1)) < 1:
        raise BadConfigurationError("recipes.mlp: epochs, batch, checkpoint_steps and hidden sizes must be at least 1")
    return settings


class _Run:
    """The state of one fit; everything that matters is in `arrays`."""

    def __init__(self, data: Data, settings: Config, fingerprint: str) -> None:
        self.settings, self.fingerprint = settings, fingerprint
        self.mean, self.scale = _moments(data.x)
        self.x = torch.from_numpy(_prepare(data.x, self.mean, self.scale))
        self.y = torch.from_numpy(np.ascontiguousarray(data.y, dtype=np.float32))
        self.x_val = torch.from_numpy(_prepare(data.x_val, self.mean, self.scale))
        self.y_val = torch.from_numpy(np.ascontiguousarray(data.y_val, dtype=np.float32))
        self.steps_per_epoch = -(-len(data.y) // settings.batch)
        self.last_step = self.steps_per_epoch * settings.epochs
        self.step, self.val_loss, self.best_loss = 0, float("inf"), float("inf")
        self.network = _network(self.x.shape[1], settings, float(data.y.mean()))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.best = self._weights()

    @classmethod
    def begin(cls, data: Data, settings: Config, checkpoint: Checkpoint) -> "_Run":
        fingerprint = fingerprint_of(data, msgspec.structs.asdict(settings) | {"recipe": "mlp"})
        run = cls(data, settings, fingerprint)
        kept = checkpoint.load(fingerprint)
        if kept is not None:
            run.restore(kept)
        return run

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def train_one_batch(self) -> None:
        place = self.step % self.steps_per_epoch
        order = np.random.default_rng([self.settings.seed, self.epoch]).permutation(len(self.y))
        chosen = torch.from_numpy(order[place * self.settings.batch : (place + 1) * self.settings.batch])
        rate = self.settings.learning_rate * 0.5 * (1 + np.cos(np.pi * self.step / self.last_step))
        self.optimizer.param_groups[0]["lr"] = float(rate)
        self.optimizer.zero_grad()
        logits = self.network(self.x[chosen])[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, self.y[chosen]).backward()
        self.optimizer.step()
        self.step += 1

    def end_epoch(self) -> None:
        with torch.no_grad():
            logits = self.network(self.x_val)[:, 0]
            self.val_loss = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, self.y_val))
        if self.val_loss < self.best_loss:
            self.best_loss, self.best = self.val_loss, self._weights()

    def _weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.network.parameters()]

    def save(self, checkpoint: Checkpoint) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "step": np.array([self.step]),
            "losses": np.array([self.val_loss, self.best_loss]),
        }
        for i, parameter in enumerate(self.network.parameters()):
            state = self.optimizer.state[parameter]
            arrays[f"w{i}"] = parameter.detach().numpy()
            arrays[f"best{i}"] = self.best[i].numpy()
            arrays[f"m{i}"] = state["exp_avg"].numpy()
            arrays[f"v{i}"] = state["exp_avg_sq"].numpy()
        checkpoint.save(self.fingerprint, arrays)

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.step = int(arrays["step"][0])
        self.val_loss, self.best_loss = (float(value) for value in arrays["losses"])
        for i, parameter in enumerate(self.network.parameters()):
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(arrays[f"w{i}"]))
            self.best[i] = torch.from_numpy(arrays[f"best{i}"].copy())
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": torch.from_numpy(arrays[f"m{i}"].copy()),
                "exp_avg_sq": torch.from_numpy(arrays[f"v{i}"].copy()),
            }

    def fitted(self) -> FittedMlp:
        weights = [tensor.numpy().copy() for tensor in self.best]
        return FittedMlp(self.mean, self.scale, tuple(zip(weights[::2], weights[1::2], strict=True)))


def _network(width: int, settings: Config, base_rate: float) -> torch.nn.Sequential:
    torch.manual_seed(settings.seed)
    sizes = [width, *settings.hidden]
    layers: list[torch.nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [torch.nn.Linear(inside, outside), torch.nn.ReLU()]
    last = torch.nn.Linear(sizes[-1], 1)
    rate = min(max(base_rate, 1e-3), 1 - 1e-3)
    torch.nn.init.constant_(last.bias, float(np.log(rate / (1 - rate))))
    return torch.nn.Sequential(*layers, last)


def _moments(x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column's known values; 0 and 1 for a column that has none."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, x, 0).sum(axis=0, dtype=np.float64) / count
    spread = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(axis=0, dtype=np.float64) / count)
    return mean.astype(np.float32), np.where(spread > 1e-6, spread, 1).astype(np.float32)


def _prepare(x: Floats, mean: Floats, scale: Floats) -> Floats:
    """float32 (n, 2·width): standardised and clipped values with unknown ones at the mean, then their indicators."""
    missing = np.isnan(x)
    z = np.clip((np.where(missing, mean, x) - mean) / scale, -CLIP, CLIP)
    return np.concatenate([z, missing], axis=1, dtype=np.float32)
