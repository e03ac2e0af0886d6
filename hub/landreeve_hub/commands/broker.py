"""``broker``: try a broker, and write what to put into one that the hub does not run."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url
from landreeve_hub.commands.server import StateFolder

Address = Annotated[str, typer.Argument(help="mqtts://host:port of a broker to try before a hub uses it.")]
COLUMNS = ("check", "result", "expected", "happened")


def group() -> typer.Typer:
    """``broker check|config|certificate``."""
    group = typer.Typer(help="The MQTT broker between hub and boxes.", no_args_is_help=True)

    @group.command("check")
    def check(
        address: Address = "",
        *,
        wait_s: Annotated[float, typer.Option(help="Seconds to wait for what should come, with ADDRESS.")] = 5.0,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Try the hub's broker, or the one at ADDRESS, as a bad device would; exit code 3 when something is wrong.

        Without ADDRESS the running hub checks the broker it uses. With one, the keys in --state are used and no hub
        is needed.
        """
        if address:
            findings = _try(address, state or Path("hub-state"), wait_s)
        else:
            findings = connect(url, token, state).post("broker/check", timeout_s=120)["findings"]
        _show(findings, output)
        if not all(found["ok"] for found in findings):
            raise SystemExit(int(Exit.PROBLEMS))

    @group.command("config")
    def config(
        kind: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """What to put into a mosquitto, nats or emqx broker of your own, so that it does what it must."""
        answer = connect(url, token, state).get(f"broker/config/{kind}")
        if output is not Format.TABLE:
            emit(answer, output)
            return
        for name, text in answer["files"].items():
            sys.stdout.write(f"# ---- {name}\n{text}\n")
        if not answer["proven"]:
            note(f"nobody here has run {kind} with this: use it only when `landreeve-hub broker check` finds it good")

    @group.command("certificate")
    def certificate(
        host: Annotated[list[str], typer.Argument(help="The names or addresses by which boxes reach the broker.")],
        *,
        state: StateFolder = Path("hub-state"),
        output: Output = Format.TABLE,
    ) -> None:
        """Make key and certificate, of this hub's authority, for a broker of your own on HOST."""
        from landreeve_hub.fleet.authority import Authority, AuthorityError

        try:
            authority = Authority(state.absolute())
            pair = authority.issue_server(f"broker-{_file_name(host[0])}", datetime.now(UTC), host)
        except AuthorityError as error:
            fail(Exit.USAGE, str(error))
        emit({"ca": str(authority.trust_path), "certificate": str(pair.certificate), "key": str(pair.key)}, output)

    return group


def _file_name(host: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in host)[:64]


def _try(address: str, state: Path, wait_s: float) -> list[dict[str, Any]]:
    """The check from here, with the keys of a state folder."""
    import msgspec
    from landreeve.settings import SettingsError

    from landreeve_hub.broker.check import check_apart
    from landreeve_hub.broker.place import broker_place
    from landreeve_hub.broker.probe import Door
    from landreeve_hub.config import load_config
    from landreeve_hub.errors import OperatorError
    from landreeve_hub.fleet.authority import Authority

    try:
        host, port = broker_place(address)
        config = load_config(state, {})
        authority = Authority(config.folder.root)
        found = check_apart(
            Door(host, port, authority.trust_path, wait_s), authority, config.settings.fleet, datetime.now(UTC)
        )
    except (OperatorError, SettingsError) as error:
        fail(Exit.USAGE, str(error))
    return [dict(row) for row in msgspec.to_builtins(found)]


def _show(findings: list[dict[str, Any]], output: Format) -> None:
    if output is not Format.TABLE:
        emit(findings, output)
        return
    emit([{**found, "result": _result(found)} for found in findings], output, COLUMNS)
    for found in findings:
        for kind, change in found["change"].items():
            note(f"{found['check']}: with {kind}: {change}")


def _result(found: dict[str, Any]) -> str:
    if found["ok"]:
        return "good"
    return "WRONG" if found["weight"] == "must" else "could be better"
