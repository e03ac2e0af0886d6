"""Gradient-boosted trees: scikit-learn's HistGradientBoosting, exported node by node.

skl2onnx would do the export too, but it rounds thresholds to the nearest float32, which sends some rows down the
other branch, and with the tested protobuf it fails on the node table's unsigned integers.

Unknown values take the branch that training found best for them. A fit is a matter of seconds and deterministic:
after a kill it starts over and gives the same trees, so it writes no checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from landreeve_models.recipes import graph
from landreeve_models.recipes.contract import (
    BadConfigurationError,
    Checkpoint,
    Data,
    Floats,
    Probabilities,
    Progress,
)


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Number of trees, step size, leaves for each tree, L2 penalty, and the fewest rows in a leaf."""

    max_iter: int = 120
    learning_rate: float = 0.06
    max_leaf_nodes: int = 15
    l2: float = 5.0
    min_samples_leaf: int = 60
    seed: int = 7


@dataclass(frozen=True, slots=True)
class FittedBoosting:
    """A fitted `sklearn.ensemble.HistGradientBoostingClassifier` and its width."""

    model: Any
    width: int

    def predict(self, x: Floats) -> Probabilities:
        """Probability of label 1 for each row of x (n, width)."""
        probabilities: Probabilities = self.model.predict_proba(x)[:, 1].astype(np.float64)
        return probabilities

    def export_onnx(self) -> bytes:
        """The graph, opset 17 and ai.onnx.ml 3: one TreeEnsembleRegressor, Sigmoid, Squeeze."""
        trees = [_tree(stage[0].nodes) for stage in self.model._predictors]
        return graph.trees(trees, float(self.model._baseline_prediction.item()), self.width)


def _tree(nodes: Any) -> graph.Tree:
    """scikit-learn's node table as plain arrays.

    A row goes left when value <= threshold, compared in double; the graph compares float32. The largest float32 not
    above the threshold decides every float32 value alike.
    """
    threshold = nodes["num_threshold"].astype(np.float32)
    above = threshold.astype(np.float64) > nodes["num_threshold"]
    threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
    return graph.Tree(
        feature=nodes["feature_idx"].astype(np.int64),
        threshold=threshold,
        left=nodes["left"].astype(np.int64),
        right=nodes["right"].astype(np.int64),
        missing_left=nodes["missing_go_to_left"].astype(np.int64),
        leaf=nodes["is_leaf"].astype(bool),
        value=nodes["value"].astype(np.float32),
    )


def fit(data: Data, config: Mapping[str, Any], checkpoint: Checkpoint, progress: Progress) -> FittedBoosting:
    """Fit on training and validation rows: the number of trees is part of the recipe, nothing is stopped early."""
    del checkpoint
    from sklearn.ensemble import HistGradientBoostingClassifier

    settings = parse_config(config)
    x, y = np.concatenate([data.x, data.x_val]), np.concatenate([data.y, data.y_val])
    # scikit-learn cannot bin a column that is never known; as a constant it is never split on, which is the same.
    x[:, np.isnan(x).all(axis=0)] = 0
    progress(0.0, f"growing {settings.max_iter} trees on {len(y)} rows")
    model = HistGradientBoostingClassifier(
        max_iter=settings.max_iter,
        learning_rate=settings.learning_rate,
        max_leaf_nodes=settings.max_leaf_nodes,
        l2_regularization=settings.l2,
        min_samples_leaf=settings.min_samples_leaf,
        early_stopping=False,
        random_state=settings.seed,
    ).fit(x, y.astype(np.int64))
    progress(1.0, f"grew {model.n_iter_} trees")
    return FittedBoosting(model, x.shape[1])


def parse_config(config: Mapping[str, Any]) -> Config:
    """The settings; `BadConfigurationError` names the one that is wrong."""
    try:
        settings = msgspec.convert(dict(config), Config)
    except msgspec.ValidationError as error:
        raise BadConfigurationError(f"recipes.boosting: {error}") from error
    if settings.max_iter < 1 or settings.max_leaf_nodes < 2 or settings.learning_rate <= 0:
        raise BadConfigurationError("recipes.boosting: max_iter ≥ 1, max_leaf_nodes ≥ 2 and learning_rate > 0 needed")
    return settings
