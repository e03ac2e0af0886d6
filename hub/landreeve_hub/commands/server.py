"""``init`` and ``serve``."""

from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail

from landreeve_hub.commands.options import Output

StateFolder = Annotated[Path, typer.Option("--state", envvar="LANDREEVE_HUB_STATE", help="The hub's state folder.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, as section.key=value; may be repeated.")]


def install(root: typer.Typer) -> None:
    """Put the commands on the root."""

    @root.command()
    def serve(*, state: StateFolder = Path("hub-state"), settings: Set = None) -> None:
        """Run the hub: API, console, ingest, rollouts, with the broker as a child."""
        from landreeve_hub.app import serve as run

        raise SystemExit(run(state, parse_settings(settings)))

    @root.command()
    def init(*, state: StateFolder = Path("hub-state"), settings: Set = None, output: Output = Format.TABLE) -> None:
        """Make the state folder: keys, authority, settings. Does nothing where they exist."""
        from landreeve_hub.app import init as make

        emit(make(state, parse_settings(settings)), output)


def parse_settings(given: list[str] | None) -> dict[str, str]:
    """``section.key=value`` texts as a mapping; anything else is a usage error."""
    flags = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            fail(Exit.USAGE, f"--set {text!r}: write it as section.key=value")
        flags[key.strip()] = value
    return flags
