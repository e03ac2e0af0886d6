"""Settings and tokens of this box."""

import os
from enum import StrEnum
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail, note
from landreeve.settings import Loaded, SettingsError

from landreeve_agent.commands.options import Output, state_of
from landreeve_agent.config import AgentSettings, load_settings

Key = Annotated[str, typer.Argument(help="a setting such as console.port")]


class TokenName(StrEnum):
    """The two tokens of a box."""

    API = "api"
    APP = "app"


def install(app: typer.Typer) -> None:
    """Add these commands."""
    config = typer.Typer(help="The settings and where each comes from.", no_args_is_help=True)
    config.command("explain")(explain)
    config.command("get")(get)
    config.command("validate")(validate)
    app.add_typer(config, name="config")
    token = typer.Typer(help="The bearer tokens of the local API.", no_args_is_help=True)
    token.command("show")(show_token)
    app.add_typer(token, name="token")


def explain(context: typer.Context, key: Key, output: Output = Format.TABLE) -> None:
    """A setting's value, its meaning, and every source that spoke."""
    try:
        found = _load(context).explain(key)
    except SettingsError as error:
        fail(Exit.NOT_FOUND, str(error))
    layers = [{"source": source, "value": value} for source, value in found.layers]
    emit({"key": found.key, "value": found.value, "source": found.source, "help": found.help, "layers": layers}, output)


def get(context: typer.Context, key: Key, output: Output = Format.TABLE) -> None:
    """A setting's value."""
    try:
        value = _load(context).explain(key).value
    except SettingsError as error:
        fail(Exit.NOT_FOUND, str(error))
    if output is Format.TABLE:
        typer.echo(value)
    else:
        emit({key: value}, output)


def validate(context: typer.Context) -> None:
    """Check all settings; exit code 3 says what is wrong and where."""
    try:
        load_settings(state_of(context), os.environ, {})
    except SettingsError as error:
        fail(Exit.PROBLEMS, str(error))
    note("the settings are good")


def show_token(
    context: typer.Context,
    name: Annotated[TokenName, typer.Argument(help="api: everything; app: bring in samples and labels")],
    output: Output = Format.TABLE,
) -> None:
    """A bearer token of the local API."""
    path = state_of(context).tokens / name.value
    try:
        token = path.read_text(encoding="ascii").strip()
    except PermissionError:
        fail(Exit.AUTH, f"{path} belongs to another account: use the one the agent runs as")
    except OSError:
        fail(Exit.NOT_FOUND, f"{path} is not there; make it: landreeve init")
    if output is Format.TABLE:
        typer.echo(token)
    else:
        emit({"name": name.value, "token": token}, output)


def _load(context: typer.Context) -> Loaded[AgentSettings]:
    try:
        return load_settings(state_of(context), os.environ, {})
    except SettingsError as error:
        fail(Exit.PROBLEMS, str(error))
