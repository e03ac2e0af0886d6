"""The command line's tree. Groups import little: what is heavy is imported inside the command that needs it."""

from pathlib import Path
from typing import Annotated

import typer

from landreeve_agent.commands import audit, box, data, hardware, infer, models, plans, settings, store

app = typer.Typer(
    help="Landreeve on this box: runs, watches, trains and updates the models of one site.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from landreeve_agent.version import agent_version

        typer.echo(f"landreeve {agent_version()}")
        raise typer.Exit


@app.callback()
def _root(
    state: Annotated[
        Path | None, typer.Option("--state", help="state folder of this site (or LANDREEVE_STATE)")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Options before the command hold for all of them."""


box.install(app)
models.install(app)
hardware.install(app)
data.install(app)
infer.install(app)
plans.install(app)
settings.install(app)
audit.install(app)
store.install(app)
