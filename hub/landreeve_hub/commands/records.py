"""``incident``, ``retrain`` and ``drift``."""

from typing import Annotated, Any

import typer
from landreeve.cli import Format, emit, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

INCIDENT_COLUMNS = ("id", "state", "severity", "kind", "opened", "sentence")
RUN_COLUMNS = ("id", "model", "site", "state", "at", "request")
Note = Annotated[str, typer.Option("--note", help="What there is to say about it.")]


def incidents() -> typer.Typer:
    """``incident list|show|ack|close``."""
    group = typer.Typer(help="What went wrong, and who takes care of it.", no_args_is_help=True)

    @group.command("list")
    def listed(
        *,
        only: Annotated[str, typer.Option("--only", help="open, acknowledged or closed.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Incidents, newest first."""
        emit(connect(url, token, state).get("incidents", state=only), output, INCIDENT_COLUMNS)

    @group.command("show")
    def show(
        incident: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """One incident with its log."""
        emit(connect(url, token, state).get(f"incidents/{incident}"), output)

    @group.command("ack")
    def acknowledge(
        incident: str,
        *,
        said: Note = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Take care of it."""
        emit(connect(url, token, state).post(f"incidents/{incident}/acknowledge", {"note": said}), output)

    @group.command("close")
    def close(
        incident: str,
        *,
        said: Note = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """It is over."""
        emit(connect(url, token, state).post(f"incidents/{incident}/close", {"note": said}), output)

    return group


def retrains() -> typer.Typer:
    """``retrain list``."""
    group = typer.Typer(help="Trainings asked for and offered.", no_args_is_help=True)

    @group.command("list")
    def listed(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Trainings, newest first, and why the next one waits."""
        found = connect(url, token, state).get("retrains")
        emit(found if output is not Format.TABLE else found["runs"], output, RUN_COLUMNS)
        for model, words in found["waiting"].items():
            note(f"{model}: {words}")

    return group


def install(root: typer.Typer) -> None:
    """Put ``drift`` on the root."""

    @root.command()
    def drift(
        model: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """How far each feature has moved, by site."""
        found = connect(url, token, state).get(f"drift/{model}")
        if output is not Format.TABLE:
            emit(found, output)
            return
        rows: list[dict[str, Any]] = [{"feature": name, **found["matrix"][name]} for name in found["columns"]]
        emit(rows, output)
        for site, verdict in found["verdicts"].items():
            note(f"{site}: {verdict['sentence']}")
