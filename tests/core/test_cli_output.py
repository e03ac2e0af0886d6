import json

import pytest
from landreeve.cli import Exit, emit, fail


def test_json_goes_to_stdout_whole(capsys: pytest.CaptureFixture[str]) -> None:
    emit([{"a": 1, "b": None}], "json")
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "b": None}]


def test_yaml_nests(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [{"b": "x: y"}], "c": [], "d": True}, "yaml")
    assert capsys.readouterr().out == '"a":\n  -\n    "b": "x: y"\n"c": []\n"d": true\n'


def test_table_shows_chosen_columns(capsys: pytest.CaptureFixture[str]) -> None:
    emit([{"name": "m", "hidden": 1, "rows": 12345.0}], "table", ["name", "rows"])
    out = capsys.readouterr().out
    assert "m" in out
    assert "hidden" not in out


def test_failing_says_why_on_stderr_and_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        fail(Exit.NOT_FOUND, "no model 'x'")
    assert left.value.code == 4
    assert "no model 'x'" in capsys.readouterr().err
