"""Definitions and rows: what is wrong is always named by its field."""

from pathlib import Path

import pytest
from landreeve.release.manifest import Column
from landreeve_models.definition import (
    BadDefinitionError,
    Definition,
    check_label,
    check_row,
    encode_definition,
    load_definition,
    parse_definition,
)

CATALOG = Path(__file__).resolve().parents[2] / "models" / "catalog" / "flight-delay"
GOOD = {"carrier": "UA", "dest": "IAH", "distance": 1400, "weekday": 1, "hour": 5}
FLIGHTS = load_definition(CATALOG)


def test_catalog_definition_round_trips_to_the_same_bytes() -> None:
    data = encode_definition(FLIGHTS)
    assert parse_definition(data) == FLIGHTS
    assert encode_definition(parse_definition(data)) == data
    assert FLIGHTS.signature().width == 13


def test_toml_says_the_same_as_json() -> None:
    text = b'name = "m"\npurpose = "p"\nlabel = "y"\n[[columns]]\nname = "a"\nkind = "number"\n'
    column = Column(name="a", kind="number")
    assert parse_definition(text, form="toml") == Definition(name="m", purpose="p", label="y", columns=(column,))


def test_good_row_has_no_problem_and_unknown_optional_values_are_fine() -> None:
    assert check_row(FLIGHTS, GOOD) == ()
    assert check_row(FLIGHTS, GOOD | {"temp": None, "visib": float("nan")}) == ()


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"distance": None}, "distance", "is required"),
        ({"distance": float("nan")}, "distance", "is required"),
        ({"distance": -1}, "distance", "below"),
        ({"hour": 24}, "hour", "above"),
        ({"hour": "5"}, "hour", "expected a number in h, got str"),
        ({"hour": True}, "hour", "got bool"),
        ({"temp": float("inf")}, "temp", "finite"),
        ({"temp": [1]}, "temp", "got list"),
        ({"carrier": 7}, "carrier", "expected text"),
        ({"carrier": ""}, "carrier", "1 to 200"),
        ({"dest": "x" * 201}, "dest", "1 to 200"),
        ({"Carrier": "UA"}, "Carrier", "not a column"),
        ({"late": 1}, "late", "not a column"),
    ],
)
def test_each_bad_value_is_named_by_its_field(change: dict[str, object], field: str, said: str) -> None:
    (problem,) = check_row(FLIGHTS, GOOD | change)
    assert problem.field == field
    assert said in problem.reason


def test_every_problem_of_a_row_is_told_at_once() -> None:
    assert {p.field for p in check_row(FLIGHTS, {"bogus": 1})} == {
        "bogus",
        "carrier",
        "dest",
        "distance",
        "weekday",
        "hour",
    }


@pytest.mark.parametrize("value", [0.5, 2, -1, "1", None, True, float("nan")])
def test_label_is_zero_or_one_and_nothing_else(value: object) -> None:
    assert check_label(value)
    assert check_label(1) == check_label(0.0) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (b'"name": "../m"', "name"),
        (b'"columns": []', "columns"),
        (b'"columns": [{"name": "a", "kind": "text"}]', "kind 'text'"),
        (b'"columns": [{"name": "a", "kind": "number"}, {"name": "a", "kind": "number"}]', "twice"),
        (b'"columns": [{"name": "y", "kind": "number"}]', "label"),
        (b'"columns": [{"name": "a", "kind": "number", "low": 2, "high": 1}]', "above high"),
        (b'"window_days": 0', "window_days"),
        (b'"recipes": {}', "recipes"),
        (b'"recipies": {}', "recipies"),
        (b'"drift": {"alpha": "x"}', r"drift\.alpha"),
    ],
)
def test_bad_definition_names_the_member(change: bytes, said: str) -> None:
    base = b'{"name": "m", "purpose": "p", "label": "y", "columns": [{"name": "a", "kind": "number"}], '
    with pytest.raises(BadDefinitionError, match=said):
        parse_definition(base + change + b"}")


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDefinitionError, match="cannot be read"):
        load_definition(tmp_path)
    with pytest.raises(BadDefinitionError, match="definition"):
        parse_definition(b"\xff\xfe")
