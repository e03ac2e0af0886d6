"""``code``, ``user`` and ``token``."""

import os
import sys
from typing import Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

PASSWORD_VARIABLE = "LANDREEVE_HUB_PASSWORD"  # noqa: S105  a name, no secret


def install(root: typer.Typer) -> None:
    """Put ``code`` on the root."""

    @root.command()
    def code(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Write a fresh one-time code to sign in to the console with."""
        made = connect(url, token, state).post("setup-codes")
        if output is Format.TABLE:
            sys.stdout.write(made["code"] + "\n")
        else:
            emit(made, output)


def users() -> typer.Typer:
    """``user add|list``."""
    group = typer.Typer(help="People and their roles.", no_args_is_help=True)

    @group.command("add")
    def add(
        name: str,
        role: Annotated[
            str, typer.Option(help="viewer, operator, ml-engineer, approver, security, dpo, auditor, admin.")
        ],
        *,
        no_password: Annotated[bool, typer.Option("--no-password", help="Tokens only, no signing in.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Add a person. The password is asked for, or read from LANDREEVE_HUB_PASSWORD."""
        password = "" if no_password else _password()
        hub = connect(url, token, state)
        emit(hub.post("users", {"name": name, "role": role, "password": password}), output)

    @group.command("list")
    def listed(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Everyone and their role."""
        emit(connect(url, token, state).get("users"), output)

    return group


def tokens() -> typer.Typer:
    """``token create|list``."""
    group = typer.Typer(help="Bearer tokens for programs.", no_args_is_help=True)

    @group.command("create")
    def create(
        *,
        user: Annotated[str, typer.Option(help="Whose token; oneself by default.")] = "",
        name: Annotated[str, typer.Option(help="What it is for.")] = "",
        scope: Annotated[
            list[str] | None, typer.Option(help="A permission to keep; all of the role's by default.")
        ] = None,
        days: Annotated[float, typer.Option(help="Days until it expires.")] = 90.0,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write the token alone.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Create a token; it is shown once."""
        body = {"user": user, "name": name, "scopes": scope or [], "days": days}
        made = connect(url, token, state).post("tokens", body)
        if quiet:
            sys.stdout.write(made["token"] + "\n")
            return
        emit(made, output)
        note("Keep this token now: it is not shown again.")

    @group.command("list")
    def listed(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Tokens, without their secrets."""
        emit(connect(url, token, state).get("tokens"), output)

    return group


def _password() -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        fail(Exit.USAGE, f"no terminal to ask for a password: set {PASSWORD_VARIABLE} or give --no-password")
    return str(typer.prompt("Password (12 characters or more)", hide_input=True, confirmation_prompt=True, err=True))
