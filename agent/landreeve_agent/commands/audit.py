"""``audit list|status|verify|export|trust``: who did what on this box."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
from landreeve.audit import commands
from landreeve.cli import Exit, Format, emit

from landreeve_agent.commands.client import connected
from landreeve_agent.commands.options import Output, state_of

COLUMNS = ("seq", "at", "actor", "action", "object", "decision")


def install(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="Who did what on this box: the tamper-evident log.", no_args_is_help=True)
    group.command("list")(listed)
    group.command("status")(status)
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("trust")(trust)
    app.add_typer(group, name="audit")


def listed(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    before: commands.Before = 0,
    actor: commands.ByActor = "",
    action: commands.OfAction = "",
    object: commands.AboutObject = "",  # noqa: A002  as entries name it
    decision: commands.Decided = "",
    since: commands.Since = "",
    until: commands.Until = "",
    output: Output = Format.TABLE,
) -> None:
    """The newest entries, or those that are looked for."""
    asked = {"actor": actor, "action": action, "object": object, "decision": decision, "since": since, "until": until}
    query = urlencode({"limit": limit, "before": before, **asked})
    emit(connected(state_of(context)).get(f"/audit?{query}")["items"], output, COLUMNS)


def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """How the log is sealed and witnessed, and how the hub's stands (exit 3 when one is refused)."""
    found = connected(state_of(context)).get("/audit/status")
    emit(found, output)
    if found["hub_refused"] or found["refused_by_hub"]:
        raise SystemExit(int(Exit.PROBLEMS))


def verify(
    context: typer.Context,
    offline: Annotated[Path | None, typer.Option("--offline", help="check this export, without any agent")] = None,
    key: Annotated[str, typer.Option("--key", help="with --offline: the log's key as known before")] = "",
    seen: Annotated[list[Path] | None, typer.Option("--seen", help="with --offline: a note or older export")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Check that the log is as it was written (exit 3 when it is not)."""
    commands.verify(lambda: connected(state_of(context)).get("/audit/verify"), offline, key, seen or [], output)


def export(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(help="the zip to write")],
    output: Output = Format.TABLE,
) -> None:
    """The log as files that verify alone: python -m landreeve.audit.verify FILE."""
    commands.export(lambda: connected(state_of(context)).get_bytes("/audit/export"), target, output)


def trust(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Accept that the hub's audit log is another one than was seen (the hub was restored)."""
    emit(connected(state_of(context)).post("/audit/trust"), output)
