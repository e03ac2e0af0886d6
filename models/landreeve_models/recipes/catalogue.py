"""Which recipes exist, by the name a definition calls them."""

from collections.abc import Callable, Mapping
from typing import Any

from landreeve_models.recipes.contract import BadConfigurationError, Checkpoint, Data, Fitted, Progress

NAMES = ("boosting", "mlp")
Fit = Callable[[Data, Mapping[str, Any], Checkpoint, Progress], Fitted]


def recipe(name: str) -> Fit:
    """The recipe's fit function; its libraries are imported here and nowhere earlier."""
    match name:
        case "boosting":
            from landreeve_models.recipes import boosting

            return boosting.fit
        case "mlp":
            from landreeve_models.recipes import mlp

            return mlp.fit
        case _:
            raise BadConfigurationError(f"recipe {name[:60]!r} is unknown; known are {', '.join(NAMES)}")
