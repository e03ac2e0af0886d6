"""A tensor model's definition: every member that does not fit is named with what is accepted."""

from typing import Any

import msgspec
import pytest
from landreeve_models.definition import (
    BadDefinitionError,
    check_definition,
    encode_definition,
    parse_definition,
)

from tests.models.tensor_releases import image_definition, series_definition, text_definition

IMAGE = msgspec.to_builtins(image_definition())


def refused(**changes: Any) -> str:
    with pytest.raises(BadDefinitionError) as caught:
        parse_definition(msgspec.json.encode(IMAGE | changes))
    return str(caught.value)


@pytest.mark.parametrize("definition", [image_definition(), text_definition(), series_definition()])
def test_columns_are_derived_and_come_back(definition: Any) -> None:
    checked = check_definition(definition)
    assert [c.name for c in checked.columns] == [f"{t.name}.{p}" for t in definition.tensors for p in ("mean", "std")]
    assert checked.recipes == {}
    assert not checked.tabular
    assert parse_definition(encode_definition(checked)) == checked


def tensor(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "image", "datatype": "FP32", "shape": [-1, 3]} | changes]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensors": tensor(name="")}, "tensors[0] '': name must have"),
        ({"tensors": tensor(datatype="BYTES")}, "datatype 'BYTES'"),
        ({"tensors": tensor(shape=[])}, "shape []"),
        ({"tensors": tensor(shape=[4, 3])}, "the first is -1 (rows)"),
        ({"tensors": tensor(shape=[-1, 0])}, "shape [-1, 0]"),
        ({"tensors": tensor(shape=[-1] + [2] * 8)}, "1 to 8 axes"),
        ({"tensors": tensor() * 2}, "tensors: a name occurs twice"),
        ({"outputs": []}, "at least one output"),
        ({"outputs": tensor(datatype="INT64")}, "first output is FP32"),
        ({"outputs": tensor(shape=[-1])}, "task 'classification' answers [-1, n]"),
        ({"outputs": tensor(shape=[-1, 1])}, "n of 2 or more"),
        ({"task": "anomaly", "gates": {"metric": "auc"}}, "task 'anomaly' answers [-1]"),
        ({"task": "poetry"}, "task 'poetry' is unknown"),
        ({"gates": {"metric": "log_loss"}}, "is judged by accuracy"),
        ({"recipes": {"mlp": {"epochs": 2}}}, "recipes: leave them out"),
        ({"columns": [{"name": "a", "kind": "number"}]}, "columns: leave them out"),
        ({"tensors": [], "columns": [{"name": "a", "kind": "number"}]}, "a model of columns is binary"),
    ],
)
def test_member_that_does_not_fit_is_named(changes: dict[str, Any], said: str) -> None:
    assert said in refused(**changes)
