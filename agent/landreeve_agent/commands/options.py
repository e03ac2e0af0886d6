"""Options that every command shares."""

from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Format

from landreeve_agent.config import StateFolder, default_state

Output = Annotated[Format, typer.Option("-o", "--output", help="table, json or yaml")]


def state_of(context: typer.Context) -> StateFolder:
    """The state folder the command line names (``--state``, else LANDREEVE_STATE, else the default)."""
    given: Path | None = context.find_root().params.get("state")
    return StateFolder((given or default_state()).absolute())
