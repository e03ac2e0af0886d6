"""Data, drift and training."""

from typing import Annotated
from urllib.parse import quote

import typer
from landreeve.cli import Exit, Format, emit, note

from landreeve_agent.commands.client import connected, wait_until
from landreeve_agent.commands.options import Output, state_of

_ENDED = ("finished", "rejected", "failed", "cancelled")


def install(app: typer.Typer) -> None:
    """Add these commands."""
    train = typer.Typer(help="Training on this box.", no_args_is_help=True)
    train.command("run")(run_training)
    train.command("list")(list_training)
    app.add_typer(train, name="train")
    drift = typer.Typer(help="How the data changes.", no_args_is_help=True)
    drift.command("report")(report)
    app.add_typer(drift, name="drift")
    held = typer.Typer(help="The samples and labels of this box.", no_args_is_help=True)
    held.command("list")(list_data)
    app.add_typer(held, name="data")


def run_training(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Option("--model", help="the model to train")],
    first: Annotated[str, typer.Option("--from", help="first moment of the data, by its own time")],
    last: Annotated[str, typer.Option("--to", help="end of the data (not included)")],
    reason: Annotated[str, typer.Option("--reason", help="why, for the record")] = "by hand",
    wait: Annotated[bool, typer.Option("--wait", help="wait for the result")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="seconds to wait at most")] = 3600.0,
    output: Output = Format.TABLE,
) -> None:
    """Train a challenger on this box's own data. With --wait: exit code 3 when the gate refused it."""
    client = connected(state_of(context))
    body = {"model": model, "first": _moment(first), "last": _moment(last), "reason": reason}
    started = client.post("/training", body)
    if not wait:
        emit(started, output)
        return
    note(f"training {started['id']} …")
    run = wait_until(client, f"/training/{quote(started['id'], safe='')}", _ENDED, timeout_s)
    emit(run, output)
    if run["state"] != "finished":
        raise SystemExit(int(Exit.PROBLEMS if run["state"] == "rejected" else Exit.FAILURE))


def list_training(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Training runs, newest first."""
    runs = connected(state_of(context)).get("/training")["items"]
    emit(runs, output, ("id", "model", "state", "at", "finished"))


def report(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="one model; all when left out")] = None,
    output: Output = Format.TABLE,
) -> None:
    """The closed windows of each model, newest first, with their verdict."""
    client = connected(state_of(context))
    names = [model] if model else [row["name"] for row in client.get("/models")["items"]]
    rows = [row for name in names for row in client.get(f"/drift/{quote(name, safe='')}")["items"]]
    if output is not Format.TABLE:
        emit(rows, output)
        return
    shown = [
        {**row, "verdict": row["report"].get("verdict"), "sentence": row["report"].get("sentence")} for row in rows
    ]
    emit(shown, output, ("model", "window", "first", "last", "rows", "verdict", "sentence"))


def list_data(context: typer.Context, output: Output = Format.TABLE) -> None:
    """How many samples and labels each model has here."""
    models = connected(state_of(context)).get("/models")["items"]
    rows = [{"model": m["name"], **{key: m[key] for key in ("samples", "labels", "today", "total")}} for m in models]
    emit(rows, output)


def _moment(text: str) -> str:
    return f"{text}T00:00:00Z" if len(text) == len("2026-01-31") else text
