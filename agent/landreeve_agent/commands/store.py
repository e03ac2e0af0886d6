"""``store``: encryption at rest of this box's state folder."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from landreeve.cli import Exit, Format, fail
from landreeve.sealed import commands
from landreeve.settings import write_values

from landreeve_agent.commands.options import Output, state_of
from landreeve_agent.config import AgentSettings, StateFolder, load_settings
from landreeve_agent.errors import AlreadyRunningError
from landreeve_agent.sealing import training_folder

if TYPE_CHECKING:
    from landreeve.sealed.vault import Vault

Key = Annotated[str, typer.Option("--key", help="credential:NAME, file:/path or command:PROGRAM ARGUMENTS")]


def install(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="Encryption at rest of the state folder.", no_args_is_help=True)
    group.command("status")(status)
    group.command("encrypt")(encrypt)
    group.command("decrypt")(decrypt)
    group.command("rekey")(rekey)
    group.command("recover")(recover)
    app.add_typer(group, name="store")


def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """What is encrypted and what is not."""
    commands.status(_place(context), output)


def encrypt(context: typer.Context, key: Key = "", output: Output = Format.TABLE) -> None:
    """Encrypt the state folder; an encryption that was cut short goes on. The agent must not run."""
    commands.encrypt(_place(context), key, output)


def decrypt(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Decrypt the state folder. The agent must not run."""
    commands.decrypt(_place(context), output)


def rekey(context: typer.Context, key: Key = "", output: Output = Format.TABLE) -> None:
    """Encrypt anew with fresh keys; --key also changes where this box's key is. The agent must not run."""
    commands.rekey(_place(context), key, output)


def recover(context: typer.Context, key: Key, output: Output = Format.TABLE) -> None:
    """Open with the recovery key (read from standard input) after the key was lost."""
    commands.recover(_place(context), typer.prompt("recovery key", hide_input=True, err=True), key, output)


def _place(context: typer.Context) -> commands.Place:
    state = state_of(context)
    state.prepare()
    settings = load_settings(state, os.environ, {}).values

    @contextmanager
    def only_one() -> Iterator[None]:
        from landreeve_agent import lock

        try:
            held = lock.take(state.run / "lock")
        except AlreadyRunningError as error:
            fail(Exit.CONFLICT, str(error))
        try:
            yield
        finally:
            held.release()

    return commands.Place(
        state.root,
        state.database,
        (state.blobs,),
        settings.at_rest.key,
        lambda source: write_values(state.settings_file, AgentSettings, {"at_rest.key": source}),
        only_one,
        lambda vault: _drain(state, vault),
        state.models,
        (training_folder(state, settings),),
    )


def _drain(state: StateFolder, vault: "Vault") -> None:
    """Read what a killed worker left in the spool: its lines are sealed, and without the vault nobody could."""
    from landreeve_agent.intake.spool import Spool
    from landreeve_agent.sealing import spool_unseal
    from landreeve_agent.store.database import Database, StoreError

    if not state.database.exists():
        return
    try:
        database = Database(state.database, keys=list(vault.keys("store").values()))
    except StoreError as error:
        fail(Exit.FAILURE, str(error))
    try:
        spool = Spool(database, state.spool, unseal=spool_unseal(vault))
        asyncio.run(spool.drain_all(datetime.now(UTC)))
    finally:
        database.close()
