"""Options that many commands share."""

from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Format

Output = Annotated[Format, typer.Option("--output", "-o", help="How the result is written.")]
Url = Annotated[
    str, typer.Option("--url", envvar="LANDREEVE_HUB_URL", help="The hub's address, such as http://127.0.0.1:8600.")
]
Token = Annotated[str, typer.Option("--token", envvar="LANDREEVE_HUB_TOKEN", help="A bearer token (token create).")]
State = Annotated[
    Path | None,
    typer.Option("--state", envvar="LANDREEVE_HUB_STATE", help="The hub's state folder: its address and admin token."),
]
