"""``firmware``: images for the slots of boxes, rolled out like models."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

NAME = "firmware"


def group() -> typer.Typer:
    """``firmware push``."""
    group = typer.Typer(help="Images for the firmware slots of boxes.", no_args_is_help=True)
    group.callback()(_nothing)

    @group.command("push")
    def push(
        image: Annotated[Path, typer.Argument(help="One .raucb or .img file, as the boxes' own tool takes it.")],
        *,
        name: Annotated[str, typer.Option(help="The component; boards that take other images need another.")] = NAME,
        card: Annotated[str, typer.Option(help="What is new, in a sentence or two.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Bring an image to the hub as a draft; approve and roll it out like a model.

        Only boxes whose setting firmware.slots_command names an executable for their slots take it.
        """
        archive = packed(image, name, card)
        hub = connect(url, token, state)
        note(f"Uploading {image.name} ({len(archive) / 1e6:.1f} MB) …")
        emit(hub.upload("releases", archive), output)

    return group


def _nothing() -> None:
    """Keeps ``push`` a command of its own while it is the only one."""


def packed(image: Path, name: str, card: str) -> bytes:
    """The archive of a release of that image; ends the command when it is none."""
    from landreeve.release.layout import pack
    from landreeve.release.manifest import (
        IMAGE_SUFFIXES,
        BadReleaseError,
        Gates,
        Lineage,
        ReleaseConfig,
        Signature,
    )

    from landreeve_hub.exchange.archive import write_archive

    if image.suffix not in IMAGE_SUFFIXES:
        fail(Exit.USAGE, f"{image.name}: an image ends with {' or '.join(sorted(IMAGE_SUFFIXES))}")
    config = ReleaseConfig(
        model=name,
        family="firmware",
        component="firmware",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        signature=Signature(inputs=(), output=""),
        gates=Gates(metrics={}),
        lineage=Lineage(),
    )
    try:
        files = {f"image{image.suffix}": image.read_bytes(), "card.md": f"# {image.name}\n\n{card}\n".encode()}
        return write_archive(pack(files, config))
    except BadReleaseError as error:
        fail(Exit.PROBLEMS, str(error))
    except OSError as error:
        fail(Exit.NOT_FOUND, f"{error.filename}: {error.strerror}")
