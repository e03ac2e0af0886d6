"""``agent``: releases of the agent itself, rolled out like models."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

NAME = "landreeve-agent"


def group() -> typer.Typer:
    """``agent push``."""
    group = typer.Typer(help="The agent's own software.", no_args_is_help=True)
    group.callback()(_nothing)

    @group.command("push")
    def push(
        wheels: Annotated[list[Path], typer.Argument(metavar="WHEEL…", help="landreeve and what changed with it.")],
        *,
        card: Annotated[str, typer.Option(help="What is new, in a sentence or two.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Bring a version of the agent to the hub as a draft; approve and roll it out like a model.

        The wheels are installed over what the boxes came with, without any index: give every package that changed.
        """
        archive = packed(wheels, card)
        hub = connect(url, token, state)
        note(f"Uploading {len(wheels)} wheel{'s' if len(wheels) > 1 else ''} ({len(archive) / 1e6:.1f} MB) …")
        emit(hub.upload("releases", archive), output)

    return group


def _nothing() -> None:
    """Keeps ``push`` a command of its own while it is the only one."""


def packed(wheels: list[Path], card: str) -> bytes:
    """The archive of a release of these wheels; ends the command when they are none."""
    from landreeve.release.layout import pack
    from landreeve.release.manifest import BadReleaseError, Gates, Lineage, ReleaseConfig, Signature

    from landreeve_hub.exchange.archive import write_archive

    own = [wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("landreeve-") and "-" in wheel.name]
    if len(own) != 1:
        fail(Exit.USAGE, f"{len(own)} wheels of landreeve itself: give exactly one, and beside it what changed with it")
    config = ReleaseConfig(
        model=NAME,
        family="agent",
        component="agent",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        signature=Signature(inputs=(), output=""),
        gates=Gates(metrics={}),
        lineage=Lineage(code=own[0]),
    )
    try:
        files = {wheel.name: wheel.read_bytes() for wheel in wheels}
        return write_archive(pack({**files, "card.md": f"# landreeve {own[0]}\n\n{card}\n".encode()}, config))
    except BadReleaseError as error:
        fail(Exit.PROBLEMS, str(error))
    except OSError as error:
        fail(Exit.NOT_FOUND, f"{error.filename}: {error.strerror}")
