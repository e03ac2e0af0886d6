"""``ca``: the fleet's certificate authority and its roll."""

from typing import Annotated, Any

import typer
from landreeve.cli import Format, emit, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url


def group() -> typer.Typer:
    """``ca status|roll|finish``."""
    group = typer.Typer(help="The authority that vouches for devices and servers.", no_args_is_help=True)

    @group.command("status")
    def status(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """The authorities in force, how many devices have moved to the newest, the revocation list's dates."""
        _show(connect(url, token, state).get("authority"), output)

    @group.command("roll")
    def roll(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Begin a new authority: devices are told to trust both and renew by themselves."""
        _show(connect(url, token, state).post("authority/roll"), output)
        note("see `landreeve-hub ca status`; when every device has moved: `landreeve-hub ca finish`")

    @group.command("finish")
    def finish(
        *,
        force: Annotated[bool, typer.Option("--force", help="Even when devices would be stranded.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Drop the former authority. Refused while devices still use it."""
        _show(connect(url, token, state).post("authority/finish", {"force": force}), output)

    return group


def _show(status: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        emit(status, output)
        return
    rows = [{"what": f"authority {one['name'][-8:]}", "value": one["fingerprint"]} for one in status["authorities"]]
    rows.append({"what": "devices moved", "value": f"{status['moved']} of {status['devices']}"})
    behind = status["behind"] if status["rolling"] else ()
    rows += [{"what": "behind", "value": f"{one['site']} (seen {one['last_seen'] or 'never'})"} for one in behind]
    rows.append(
        {
            "what": "revocation list",
            "value": f"signed {status['crl']['signed'][:16]}, good until {status['crl']['expires'][:10]}",
        }
    )
    emit(rows, output, ("what", "value"))
