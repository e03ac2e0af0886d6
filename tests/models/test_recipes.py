"""Recipes: export equals the fit, unknown values included, and a killed fit continues bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from landreeve_models import onnx_policy
from landreeve_models.assemble import check_parity
from landreeve_models.evaluate import log_loss
from landreeve_models.inference import predict_graph
from landreeve_models.recipes import mlp
from landreeve_models.recipes.catalogue import NAMES, recipe
from landreeve_models.recipes.contract import BadConfigurationError, Checkpoint, Data
from numpy.typing import NDArray

SMALL: dict[str, dict[str, Any]] = {
    "boosting": {"max_iter": 15},
    "mlp": {"hidden": [8, 4], "epochs": 4, "batch": 64, "checkpoint_steps": 5},
}


def quiet(share: float, words: str) -> None:
    del share, words


def draw(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5)).astype(np.float32)
    y = (random.random(n) < 1 / (1 + np.exp(-2 * x[:, 0] + x[:, 1]))).astype(np.float32)
    x[random.random((n, 5)) < 0.15] = np.nan
    x[:, 4] = np.nan  # a column that is never known
    return x, y


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(*draw(1200, 1), *draw(300, 2))


@pytest.mark.parametrize("name", NAMES)
def test_graph_gives_what_the_fit_gives_for_every_kind_of_row(name: str, data: Data, tmp_path: Path) -> None:
    fitted = recipe(name)(data, SMALL[name], Checkpoint(tmp_path / "c"), quiet)
    graph = fitted.export_onnx()
    extremes = np.array([[np.nan] * 5, [0] * 5, [1e30] * 5, [-1e30] * 5], dtype=np.float32)
    x = np.concatenate([data.x, data.x_val, extremes])
    assert check_parity(fitted.predict(x), graph, x) < 1e-5
    assert predict_graph(graph, x[:1]).shape == (1,)
    onnx_policy.check(graph, width=5)


@pytest.mark.parametrize("name", NAMES)
def test_fit_learns_and_the_same_fit_gives_the_same_bytes(name: str, data: Data, tmp_path: Path) -> None:
    graphs = [recipe(name)(data, SMALL[name], Checkpoint(tmp_path / f"{i}"), quiet).export_onnx() for i in range(2)]
    assert graphs[0] == graphs[1]
    rate = float(data.y.mean())
    base = log_loss(np.full(len(data.y_val), rate), data.y_val)
    assert log_loss(predict_graph(graphs[0], data.x_val), data.y_val) < base


class KilledError(Exception):
    pass


@pytest.mark.parametrize("save", range(1, 14, 3))
def test_fit_killed_at_any_checkpoint_continues_to_bit_identical_weights(save: int, data: Data, tmp_path: Path) -> None:
    whole = mlp.fit(data, SMALL["mlp"], Checkpoint(tmp_path / "whole"), quiet)

    class Dying(Checkpoint):
        def save(self, fingerprint: str, arrays: Any) -> None:
            super().save(fingerprint, arrays)
            saves.append(1)
            if len(saves) == save:
                raise KilledError

    saves: list[int] = []
    with pytest.raises(KilledError):
        mlp.fit(data, SMALL["mlp"], Dying(tmp_path / "cut"), quiet)
    resumed = mlp.fit(data, SMALL["mlp"], Checkpoint(tmp_path / "cut"), quiet)
    for a, b in zip(whole.layers, resumed.layers, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert whole.export_onnx() == resumed.export_onnx()


def test_checkpoint_of_other_data_or_damaged_is_ignored(data: Data, tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "c")
    first = mlp.fit(data, SMALL["mlp"], kept, quiet)
    other = Data(data.x[:600], data.y[:600], data.x_val, data.y_val)
    assert mlp.fit(other, SMALL["mlp"], kept, quiet).export_onnx() != first.export_onnx()
    kept.path.write_bytes(kept.path.read_bytes()[:100])
    assert mlp.fit(data, SMALL["mlp"], kept, quiet).export_onnx() == first.export_onnx()


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("mlp", {"epocs": 3}, "epocs"),
        ("mlp", {"hidden": [0]}, "hidden"),
        ("mlp", {"batch": "x"}, "batch"),
        ("boosting", {"max_iter": 0}, "max_iter"),
        ("boosting", {"depth": 3}, "depth"),
        ("forest", {}, "unknown"),
    ],
)
def test_bad_configuration_names_the_setting(name: str, config: dict[str, Any], said: str, data: Data) -> None:
    with pytest.raises(BadConfigurationError, match=said):
        recipe(name)(data, config, Checkpoint(Path("unused")), quiet)
