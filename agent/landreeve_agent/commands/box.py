"""The box itself: make it, run it, join a hub, ask how it is."""

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note, report
from landreeve.settings import SettingsError, write_values

from landreeve_agent.commands.client import connected
from landreeve_agent.commands.options import Output, state_of
from landreeve_agent.commands.running import changes_of, run_site
from landreeve_agent.config import AgentSettings, StateFolder, load_settings
from landreeve_agent.errors import OperatorError

if TYPE_CHECKING:
    from landreeve_agent.link.enrol import Former

Sets = Annotated[list[str] | None, typer.Option("--set", help="a setting as KEY=VALUE; may be repeated")]


def install(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(init)
    app.command()(run)
    app.command()(join)
    app.command()(status)
    app.command()(doctor)
    app.command()(code)
    hub = typer.Typer(help="The link to the hub.", no_args_is_help=True)
    hub.command("join")(join)
    hub.command("status")(hub_status)
    app.add_typer(hub, name="hub")


def init(
    context: typer.Context,
    site: Annotated[str | None, typer.Option("--site", help="name of this site")] = None,
    sets: Sets = None,
    output: Output = Format.TABLE,
) -> None:
    """Make the state folder, its settings and its tokens; what is there already stays."""
    from landreeve_agent.console.access import ensure_tokens

    state = state_of(context)
    changes = changes_of(sets or []) | ({"site.name": site} if site else {})
    try:
        state.prepare()
        if changes or not state.settings_file.exists():
            write_values(state.settings_file, AgentSettings, changes)
        loaded = load_settings(state, os.environ, {})
    except SettingsError as error:
        fail(Exit.USAGE, str(error))
    except OperatorError as error:
        fail(Exit.FAILURE, str(error))
    ensure_tokens(state.tokens)
    emit({"state": str(state.root), "site": loaded.values.site.name, "settings": str(state.settings_file)}, output)
    note("next: landreeve run" + ("" if state.identity.exists() else "  (and, with a hub: landreeve join TOKEN)"))


def run(context: typer.Context, sets: Sets = None) -> None:
    """Run this site until asked to stop: inference, intake, drift, training, updates, console."""
    run_site(state_of(context).root, sets or [])


def join(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="the single-use token the hub made for this site")],
    wait: Annotated[float, typer.Option("--wait", help="seconds to wait while a person at the hub decides")] = 86_400.0,
    again: Annotated[
        bool, typer.Option("--again", help="make this box another device: its disk was cloned, or it was revoked")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Join a hub: the key is made on this box, the hub signs its certificate."""
    from landreeve_agent.link import enrol

    state = state_of(context)
    try:
        state.prepare()
        patience = enrol.Patience(wait, _Waiting())
        former = _former(state) if again else None
        identity = enrol.join(state.root, token, datetime.now(UTC), patience=patience, again=former)
    except (OperatorError, enrol.JoinError) as error:
        fail(Exit.FAILURE, str(error))
    emit({"device": identity.device, "site": identity.site, "hub": identity.hub_url}, output)
    note("joined; a running agent notices by itself")


class _Waiting:
    """Says once that a person has to decide, and which key to compare."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, sentence: str, fingerprint: str) -> None:
        if not self._said:
            note(f"waiting: {sentence}\n\n    this box's key   {fingerprint}\n")
        self._said = True


def _former(state: StateFolder) -> "Former":
    """What a box that becomes another device brings along; only while no agent runs on it."""
    from landreeve_agent import lock
    from landreeve_agent.link.enrol import Former
    from landreeve_agent.sealing import AtRest
    from landreeve_agent.store.database import Database

    held = lock.take(state.run / "lock")  # raises when an agent has it
    held.release()
    if not state.database.exists():
        return Former()
    at_rest = AtRest.opened(state, load_settings(state, os.environ, {}).values)
    database = Database(state.database, keys=at_rest.store_keys)
    try:
        query = "SELECT value FROM meta WHERE key = 'desired.generation'"
        row = asyncio.run(database.read(lambda tables: tables.conn.execute(query).fetchone()))
    finally:
        database.close()
    return Former(int(row[0]) if row else 0)


def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """What this box is doing, its verdict first. Exit code 3 when something does not work."""
    document = connected(state_of(context)).get("/status")
    if output is not Format.TABLE:
        emit(document, output)
    else:
        _show_status(document)
    if document["verdict"]["level"] == "error":
        raise SystemExit(int(Exit.PROBLEMS))


def hub_status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """How the link to the hub stands and how many facts wait."""
    emit(connected(state_of(context)).get("/status")["hub"], output)


def doctor(
    context: typer.Context,
    fix: Annotated[bool, typer.Option("--fix", help="put right what is safe to: permissions, left-over keys")] = False,
    broker: Annotated[
        bool, typer.Option("--broker", help="also try the broker as this device; interrupts a running link briefly")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Check this box part by part; each finding with its fix. Exit code 3 when a check fails."""
    from landreeve_agent.commands.checks import examine

    state = state_of(context)
    if fix and state.root.is_dir():
        from landreeve_agent.commands.checks_link import mend

        for sentence in mend(state):
            note(f"mended: {sentence}")
    report(examine(state, os.environ, broker=broker), output)


def code(context: typer.Context, output: Output = Format.TABLE) -> None:
    """A fresh one-time code to sign a browser in."""
    client = connected(state_of(context))
    made = client.post("/codes")
    url = f"http://{client.host}:{client.port}/login"
    if output is Format.TABLE:
        typer.echo(made["code"])
        note(f"type it at {url} within {made['valid_s'] / 60:.0f} minutes")
    else:
        emit({"code": made["code"], "url": url, "valid_s": made["valid_s"]}, output)


def _show_status(document: dict[str, Any]) -> None:
    verdict = document["verdict"]
    glyph = {"ok": "✓", "warning": "!", "error": "✕"}[verdict["level"]]
    typer.echo(f"{glyph} {document['site']}: {verdict['sentence']}")
    if verdict["detail"]:
        typer.echo(f"  {verdict['detail']}")
    hub, worker = document["hub"], document["worker"]
    typer.echo(
        f"  {document['predictions_today']:,} predictions today, {document['predictions_total']:,} in all; "
        f"worker pid {worker['pid'] or '-'}, {worker['restarts']} restarts; "
        f"hub {hub['state']}, {hub['waiting']} waiting"
    )
    emit(
        document["models"], Format.TABLE, ("name", "version", "health", "wanted", "used", "p95_ms", "today", "samples")
    )
