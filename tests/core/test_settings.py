from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from landreeve.settings import SettingsError, fields_of, load, write_values

Port = Annotated[int, msgspec.Meta(ge=0, le=65535, description="TCP port; 0 takes any free one")]


class Serving(msgspec.Struct, frozen=True):
    port: Port = 8081
    host: Annotated[str, msgspec.Meta(description="address to bind")] = "127.0.0.1"


class Schema(msgspec.Struct, frozen=True):
    site: Annotated[str, msgspec.Meta(description="name of the site")] = ""
    tags: Annotated[tuple[str, ...], msgspec.Meta(description="labels")] = ()
    serving: Serving = Serving()


def test_later_layers_win_and_the_explanation_names_every_layer(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('site = "EWR"\n[serving]\nport = 9000\n')
    loaded = load(Schema, files=[file], environ={"LANDREEVE_SERVING__PORT": "9100"}, flags={"serving.host": "::1"})
    assert loaded.values == Schema(site="EWR", serving=Serving(port=9100, host="::1"))
    said = loaded.explain("serving.port")
    assert (said.value, said.source) == (9100, "environment")
    assert said.layers == (("default", 8081), (str(file), 9000), ("environment", 9100))
    assert said.help == "TCP port; 0 takes any free one"


def test_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[serving]\nprot = 1\n")
    with pytest.raises(
        SettingsError, match=r"agent\.toml: unknown setting 'serving\.prot'; did you mean 'serving\.port'"
    ):
        load(Schema, files=[file])


@pytest.mark.parametrize("text", ["x", "70000", "-1", "1.5"])
def test_wrong_value_names_key_and_source(text: str) -> None:
    with pytest.raises(SettingsError, match=r"LANDREEVE_SERVING__PORT: serving\.port|environment: serving\.port"):
        load(Schema, environ={"LANDREEVE_SERVING__PORT": text})


def test_foreign_variables_of_the_same_prefix_are_left_alone() -> None:
    assert load(Schema, environ={"LANDREEVE_STATE": "/x"}).values == Schema()


def test_lists_come_as_json_text() -> None:
    assert load(Schema, flags={"tags": '["a","b"]'}).values.tags == ("a", "b")


def test_written_values_read_back_and_keep_the_others(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('site = "a \\"quoted\\" name"\n')
    write_values(file, Schema, {"serving.port": "0", "tags": '["x"]'})
    loaded = load(Schema, files=[file]).values
    assert loaded == Schema(site='a "quoted" name', tags=("x",), serving=Serving(port=0))


def test_every_field_has_a_key_a_default_and_help() -> None:
    assert [(f.key, f.help != "") for f in fields_of(Schema)] == [
        ("site", True),
        ("tags", True),
        ("serving.port", True),
        ("serving.host", True),
    ]


def test_broken_toml_says_which_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("site = ")
    with pytest.raises(SettingsError, match=r"agent\.toml: not readable as TOML"):
        load(Schema, files=[file])
