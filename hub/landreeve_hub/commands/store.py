"""``store``: encryption at rest of the hub's state folder."""

from pathlib import Path
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, fail
from landreeve.sealed import commands
from landreeve.settings import write_values

from landreeve_hub.commands.options import Output

Key = Annotated[str, typer.Option("--key", help="credential:NAME, file:/path or command:PROGRAM ARGUMENTS")]
StateFolder = Annotated[Path, typer.Option("--state", envvar="LANDREEVE_HUB_STATE", help="The hub's state folder.")]
HERE = Path("hub-state")


def store() -> typer.Typer:
    """The group."""
    group = typer.Typer(help="Encryption at rest of the state folder.", no_args_is_help=True)
    group.command("status")(status)
    group.command("encrypt")(encrypt)
    group.command("decrypt")(decrypt)
    group.command("rekey")(rekey)
    group.command("recover")(recover)
    return group


def status(*, state: StateFolder = HERE, output: Output = Format.TABLE) -> None:
    """What is encrypted and what is not."""
    commands.status(_place(state), output)


def encrypt(*, key: Key = "", state: StateFolder = HERE, output: Output = Format.TABLE) -> None:
    """Encrypt the state folder; an encryption that was cut short goes on. The hub must not run."""
    commands.encrypt(_place(state), key, output)


def decrypt(*, state: StateFolder = HERE, output: Output = Format.TABLE) -> None:
    """Decrypt the state folder. The hub must not run."""
    commands.decrypt(_place(state), output)


def rekey(*, key: Key = "", state: StateFolder = HERE, output: Output = Format.TABLE) -> None:
    """Encrypt anew with fresh keys; --key also changes where the hub's key is. The hub must not run."""
    commands.rekey(_place(state), key, output)


def recover(*, key: Key, state: StateFolder = HERE, output: Output = Format.TABLE) -> None:
    """Open with the recovery key (read from standard input) after the key was lost."""
    commands.recover(_place(state), typer.prompt("recovery key", hide_input=True, err=True), key, output)


def _place(state: Path) -> commands.Place:
    from landreeve_hub.config import HubFolder, HubSettings, load_config
    from landreeve_hub.process import only_one
    from landreeve_hub.sealing import parts_of

    folder = HubFolder(state.absolute())
    if not folder.root.is_dir():
        fail(Exit.NOT_FOUND, f"{folder.root}: no such state folder; make it with landreeve-hub init")
    folder.prepare()
    parts = parts_of(folder)
    return commands.Place(
        folder.root,
        parts.database,
        parts.blobs,
        load_config(folder.root, {}).settings.at_rest.key,
        lambda source: write_values(folder.settings_file, HubSettings, {"at_rest.key": source}),
        lambda: only_one(folder.run / "lock"),
    )
