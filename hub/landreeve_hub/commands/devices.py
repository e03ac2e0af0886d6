"""``device``."""

import sys
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

COLUMNS = ("site", "id", "state", "online", "model", "p95_ms", "psi", "predictions", "waiting")


def group() -> typer.Typer:
    """``device list|show|token``."""
    group = typer.Typer(help="The boxes of the fleet.", no_args_is_help=True)

    @group.command("list")
    def listed(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Every box: state, model, figures, what it waits for."""
        rows = connect(url, token, state).get("devices")
        if output is Format.TABLE:
            rows = [{**row, "model": _models(row)} for row in rows]
        emit(rows, output, COLUMNS)

    @group.command("show")
    def show(
        device: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """One box, by id or site name."""
        emit(connect(url, token, state).get(f"devices/{device}"), output)

    @group.command("token")
    def mint(
        site: str,
        *,
        label: Annotated[list[str] | None, typer.Option(help="A label, as name=value; may be repeated.")] = None,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """A single-use token with which one box joins as that site (landreeve join TOKEN)."""
        labels = dict(_label(text) for text in label or ())
        made = connect(url, token, state).post("enrolment-tokens", {"site": site, "labels": labels})
        if output is Format.TABLE:
            sys.stdout.write(made["token"] + "\n")
        else:
            emit(made, output)

    return group


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        fail(Exit.USAGE, f"--label {text!r}: write it as name=value")
    return name, value


def _models(row: dict[str, list[dict[str, str]]]) -> str:
    return ", ".join(f"{m['model']} {m['version']} ({m['used']})" for m in row["models"])
