"""``blobs``: files that no release needs any more."""

from typing import Annotated, Any

import typer
from landreeve.cli import Format, emit, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

COLUMNS = ("blob", "MB", "why", "needless for", "goes")


def group() -> typer.Typer:
    """``blobs gc``."""
    group = typer.Typer(help="Files of releases in the hub's blob store.", no_args_is_help=True)

    @group.command("gc")
    def collect(
        *,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go, and when.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Remove files that no release, rollout, device, tag or training has needed for long enough.

        The hub does so by itself every hour; settings keep.withdrawn_days and keep.orphan_hours.
        """
        hub = connect(url, token, state)
        found = hub.get("blobs/garbage") if dry_run else hub.post("blobs/gc", timeout_s=120)
        if output is not Format.TABLE:
            emit(found, output)
            return
        emit([_row(blob, dry=dry_run) for blob in found["blobs"]], output, COLUMNS)
        note(f"{found['removed']} files removed ({found['removed_bytes'] / 1e6:.1f} MB)")

    # A group of one command would lose its name.
    group.callback()(lambda: None)
    return group


def _row(blob: dict[str, Any], *, dry: bool) -> dict[str, Any]:
    return {
        "blob": blob["digest"][:12],
        "MB": f"{blob['bytes'] / 1e6:.1f}",
        "why": blob["why"],
        "needless for": f"{blob['age_s'] / 3600:.1f} h",
        "goes": _when(blob, dry=dry),
    }


def _when(blob: dict[str, Any], *, dry: bool) -> str:
    """
    >>> _when({"removed": False, "after_s": 7200.0, "age_s": 3600.0}, dry=True)
    'in 1.0 h'
    """
    if blob["removed"]:
        return "removed"
    if blob["after_s"] is None:
        return "never"
    left_s = blob["after_s"] - blob["age_s"]
    if left_s <= 0:
        return "now" if dry else "at the next look"
    return f"in {left_s / 3600:.1f} h"
