"""``init`` and ``serve``."""

from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail

from landreeve_hub.commands.options import Output

StateFolder = Annotated[Path, typer.Option("--state", envvar="LANDREEVE_HUB_STATE", help="The hub's state folder.")]
Broker = Annotated[
    str, typer.Option(help="A broker that runs elsewhere, as mqtts://host:port, instead of a child (broker.url).")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, as section.key=value; may be repeated.")]


def install(root: typer.Typer) -> None:
    """Put the commands on the root."""

    @root.command()
    def serve(*, state: StateFolder = Path("hub-state"), broker: Broker = "", settings: Set = None) -> None:
        """Run the hub: API, console, ingest, rollouts, with the broker as a child."""
        from landreeve_hub.app import serve as run

        flags = parse_settings(settings)
        raise SystemExit(run(state, flags | {"broker.url": broker} if broker else flags))

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
