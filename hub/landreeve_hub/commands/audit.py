"""``audit list|status|verify|export|erase|trust``."""

from pathlib import Path
from typing import Annotated

import typer
from landreeve.audit import commands
from landreeve.cli import Exit, Format, emit, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

COLUMNS = ("seq", "at", "actor", "action", "object", "decision")
SITE_COLUMNS = ("device", "seen", "at", "refused", "sentence")


def audit() -> typer.Typer:
    """The group."""
    group = typer.Typer(help="Who did what: the tamper-evident log.", no_args_is_help=True)
    group.command("list")(listed)
    group.command("status")(status)
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("erase")(erase)
    group.command("trust")(trust)
    return group


def listed(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    before: commands.Before = 0,
    actor: commands.ByActor = "",
    action: commands.OfAction = "",
    object: commands.AboutObject = "",  # noqa: A002  as entries name it
    decision: commands.Decided = "",
    since: commands.Since = "",
    until: commands.Until = "",
    url: Url = "",
    token: Token = "",
    state: State = None,
    output: Output = Format.TABLE,
) -> None:
    """The newest entries, or those that are looked for."""
    asked = {"actor": actor, "action": action, "object": object, "decision": decision, "since": since, "until": until}
    found = connect(url, token, state).get("audit", limit=str(limit), before=str(before), **asked)
    emit(found["items"], output, COLUMNS)


def status(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
    """How many entries are sealed and witnessed, and how the sites' own logs stand (exit 3 when one is refused)."""
    found = connect(url, token, state).get("audit/status")
    sites = found["sites"]
    if output is Format.TABLE:
        emit({name: value for name, value in found.items() if name != "sites"}, output)
        emit(sites, output, SITE_COLUMNS)
    else:
        emit(found, output)
    if found["fault"] or any(site["refused"] for site in sites):
        raise SystemExit(int(Exit.PROBLEMS))


def verify(
    *,
    offline: Annotated[Path | None, typer.Option("--offline", help="Check this export, without any hub.")] = None,
    key: Annotated[str, typer.Option("--key", help="With --offline: the log's key as known before.")] = "",
    seen: Annotated[list[Path] | None, typer.Option("--seen", help="With --offline: a note or older export.")] = None,
    url: Url = "",
    token: Token = "",
    state: State = None,
    output: Output = Format.TABLE,
) -> None:
    """Check that the log is as it was written (exit 3 when it is not)."""
    commands.verify(lambda: connect(url, token, state).get("audit/verify"), offline, key, seen or [], output)


def export(
    target: Annotated[Path, typer.Argument(help="The zip to write.")],
    *,
    personal: Annotated[
        bool, typer.Option("--personal", help="With names: readable for ever, whoever is erased later.")
    ] = False,
    url: Url = "",
    token: Token = "",
    state: State = None,
    output: Output = Format.TABLE,
) -> None:
    """The whole log as files that verify without a hub: python -m landreeve.audit.verify FILE."""
    where = f"audit/export?personal={str(personal).lower()}"
    commands.export(lambda: connect(url, token, state).download(where), target, output)


def erase(
    subject: Annotated[str, typer.Argument(help="The name entries know the person by.")],
    *,
    url: Url = "",
    token: Token = "",
    state: State = None,
    output: Output = Format.TABLE,
) -> None:
    """Destroy the key of what the log holds about someone; the log still verifies."""
    found = connect(url, token, state).post("audit/erase", {"subject": subject})
    emit(found, output)
    if found["plain"]:
        note(f"{found['plain']} older entries, of before names were sealed, name the person in plain text and keep it")


def trust(
    device: Annotated[str, typer.Argument(help="The device whose log begins anew.")],
    *,
    url: Url = "",
    token: Token = "",
    state: State = None,
    output: Output = Format.TABLE,
) -> None:
    """Accept that a site's audit log is another one than was seen (its box was restored)."""
    emit(connect(url, token, state).post("audit/trust", {"subject": device}), output)
