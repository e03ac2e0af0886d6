"""``config``: the hub's settings and where each comes from."""

import os
from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail, note
from landreeve.settings import Explanation, Loaded, SettingsError

from landreeve_hub.commands.options import Output
from landreeve_hub.commands.server import StateFolder
from landreeve_hub.config import HubFolder, HubSettings, load_settings

Key = Annotated[str, typer.Argument(help="A setting such as http.port.")]
DEFAULT_STATE = Path("hub-state")


def group() -> typer.Typer:
    """``config explain|get|validate``."""
    group = typer.Typer(help="The settings and where each comes from.", no_args_is_help=True)

    @group.command("explain")
    def explain(key: Key, *, state: StateFolder = DEFAULT_STATE, output: Output = Format.TABLE) -> None:
        """A setting's value, its meaning, and every source that spoke."""
        found = _known(_load(state), key)
        layers = [{"source": source, "value": value} for source, value in found.layers]
        shown = {"key": found.key, "value": found.value, "source": found.source, "help": found.help, "layers": layers}
        emit(shown, output)

    @group.command("get")
    def get(key: Key, *, state: StateFolder = DEFAULT_STATE, output: Output = Format.TABLE) -> None:
        """A setting's value."""
        value = _known(_load(state), key).value
        if output is Format.TABLE:
            typer.echo(value)
        else:
            emit({key: value}, output)

    @group.command("validate")
    def validate(*, state: StateFolder = DEFAULT_STATE) -> None:
        """Check all settings; exit code 3 says what is wrong and where."""
        _load(state)
        note("the settings are good")

    return group


def _known(loaded: Loaded[HubSettings], key: str) -> Explanation:
    try:
        return loaded.explain(key)
    except SettingsError as error:
        fail(Exit.NOT_FOUND, str(error))


def _load(state: Path) -> Loaded[HubSettings]:
    try:
        return load_settings(HubFolder(state.absolute()), os.environ, {})
    except SettingsError as error:
        fail(Exit.PROBLEMS, str(error))
