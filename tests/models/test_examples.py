"""The examples in docstrings of models, sketches, drift and training are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "landreeve.sketch.categories",
        "landreeve.sketch.divergence",
        "landreeve.sketch.histogram",
        "landreeve.sketch.moments",
        "landreeve_agent.drift.psi",
        "landreeve_agent.training.job",
        "landreeve_models.definition",
        "landreeve_models.evaluate",
        "landreeve_models.reference.wordpiece",
    ],
)
def test_examples_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
