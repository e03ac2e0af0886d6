"""``device``."""

import sys
from typing import Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import Hub, connect
from landreeve_hub.commands.options import Output, State, Token, Url

COLUMNS = ("site", "id", "state", "online", "model", "p95_ms", "psi", "predictions", "waiting")


def group() -> typer.Typer:
    """``device list|show|why|resolve|token|waiting|approve|deny|revoke``."""
    group = typer.Typer(help="The boxes of the fleet.", no_args_is_help=True)

    @group.command("list")
    def listed(
        *,
        matching: Annotated[str, typer.Option("--filter", help="Such as 'is:offline hw:npu model:x@4 -tag:lab'.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Every box, or those that match: state, model, figures, what it waits for."""
        hub = connect(url, token, state)
        rows = _matching(hub, matching) if matching else hub.get("devices")
        if output is Format.TABLE:
            rows = [{**row, "model": _models(row)} for row in rows]
        emit(rows, output, COLUMNS)

    @group.command("show")
    def show(
        device: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """One box, by id or site name."""
        emit(connect(url, token, state).get(f"devices/{device}"), output)

    @group.command("token")
    def mint(
        site: str,
        *,
        label: Annotated[list[str] | None, typer.Option(help="A label, as name=value; may be repeated.")] = None,
        replace: Annotated[
            bool, typer.Option("--replace", help="For a new or re-imaged box in the place of the site's present one.")
        ] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """A single-use token with which one box joins as that site (landreeve join TOKEN)."""
        labels = dict(_label(text) for text in label or ())
        asked = {"site": site, "labels": labels, "replaces": replace}
        made = connect(url, token, state).post("enrolment-tokens", asked)
        if output is Format.TABLE:
            sys.stdout.write(made["token"] + "\n")
        else:
            emit(made, output)

    _version(group)
    _admission(group)
    _rates(group)
    _lines(group)
    return group


def _version(group: typer.Typer) -> None:
    """Why a box is on its version, and who is right when the hub knows less than the box."""

    @group.command("why")
    def why(
        device: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Why a box is on the version it is on, from what was stored when it happened."""
        found = connect(url, token, state).get(f"devices/{device}/why")
        if output is not Format.TABLE:
            emit(found, output)
            return
        if found["conflict"]:
            note(f"{found['site']} {found['conflict']}: landreeve-hub device resolve {found['site']}")
        for model in found["models"]:
            sys.stdout.write(f"{model['model']}: {model['sentence']}\n")
            for text in model["waiting"]:
                sys.stdout.write(f"  waiting: {text}\n")
            emit(model["steps"], output, ("at", "by", "rollout", "cause", "sentence"))

    @group.command("resolve")
    def resolve(
        device: str,
        *,
        adopt: Annotated[bool, typer.Option("--adopt", help="What the box runs is what the hub wants.")] = False,
        override: Annotated[bool, typer.Option("--override", help="The hub orders anew what it wants.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Say who is right about a box that obeys newer orders than this hub ever gave (restored from a backup)."""
        if adopt == override:
            fail(Exit.USAGE, "say exactly one of --adopt and --override")
        body = {"adopt": adopt, "override": override}
        emit(connect(url, token, state).post(f"devices/{device}/resolve", body), output)


def _admission(group: typer.Typer) -> None:
    """Who may come in, and who may stay."""

    @group.command("waiting")
    def waiting(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Boxes that wait for approval; compare each fingerprint with what the box itself shows."""
        columns = ("site", "device", "fingerprint", "address", "replaces", "asked")
        emit(connect(url, token, state).get("enrolments"), output, columns)

    @group.command("approve")
    def approve(
        device: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Let a waiting box in."""
        emit(connect(url, token, state).post(f"enrolments/{device}/approve"), output)

    @group.command("deny")
    def deny(
        device: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Turn a waiting box away; its token is worth nothing any more."""
        emit(connect(url, token, state).post(f"enrolments/{device}/deny"), output)

    @group.command("revoke")
    def revoke(
        device: str,
        *,
        reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Throw a device out, by id or site name: its session is cut, its certificates and tokens are worthless."""
        emit(connect(url, token, state).post(f"devices/{device}/revoke", {"reason": reason}), output)


def _rates(group: typer.Typer) -> None:
    """``device rate|rates``."""

    @group.command("rate")
    def rate(
        device: Annotated[str, typer.Argument(help="A box, by id or site; left out with --label.")] = "",
        facts_per_s: Annotated[float | None, typer.Argument(help="Facts a second; 0 sets no limit.", min=0)] = None,
        *,
        label: Annotated[str, typer.Option(help="All boxes with this label, as name=value.")] = "",
        clear: Annotated[bool, typer.Option("--clear", help="Forget the rate: the next wider one holds.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """At most so many facts a second of one box, or of each with a label (device rate --label region=north 5)."""
        device, facts_per_s = _aimed(device, facts_per_s, label)
        if clear == (facts_per_s is not None):
            fail(Exit.USAGE, "give the facts a second, or --clear")
        body = {"device": device, "label": label, "facts_per_s": facts_per_s}
        emit(connect(url, token, state).post("rates", body), output)

    @group.command("rates")
    def rates(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Every rate that was set, and the fleet's."""
        found = connect(url, token, state).get("rates")
        if output is Format.TABLE:
            fleet = {"scope": "fleet", "name": "limits.facts_per_s", "facts_per_s": found["fleet"]}
            emit([fleet, *found["rates"]], output, ("scope", "name", "facts_per_s", "at", "by"))
        else:
            emit(found, output)


def _lines(group: typer.Typer) -> None:
    """``device line|lines``."""

    @group.command("line")
    def line(
        site: Annotated[str, typer.Argument(help="A site: a box's own name, or the value of its label site.")],
        *,
        mb_per_hour: Annotated[float, typer.Option(help="Megabytes an hour; 0 sets no bound.", min=0)] = 0.0,
        window: Annotated[
            list[str] | None, typer.Option(help="When files may travel, such as '22:00-06:00'; may be repeated.")
        ] = None,
        zone: Annotated[str, typer.Option(help="Time zone of the windows; else the box's own.")] = "",
        clear: Annotated[bool, typer.Option("--clear", help="Forget the rules: the fleet's hold again.")] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """What the line of one site may carry of model files, for all of its boxes and before the fleet's rules."""
        if clear and (mb_per_hour or window or zone):
            fail(Exit.USAGE, "give rules, or --clear")
        body = {"site": site, "mb_per_hour": mb_per_hour, "windows": window or [], "zone": zone, "forget": clear}
        emit(connect(url, token, state).post("lines", body), output)

    @group.command("lines")
    def lines(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """The rules of every site that has some, and the fleet's."""
        found = connect(url, token, state).get("lines")
        if output is Format.TABLE:
            fleet = {"site": "(fleet)", **(found["fleet"] or {})}
            emit([fleet, *found["lines"]], output, ("site", "mb_per_hour", "windows", "zone", "at", "by"))
        else:
            emit(found, output)


def _aimed(device: str, facts_per_s: float | None, label: str) -> tuple[str, float | None]:
    """With --label the only argument is the number."""
    if not label or not device:
        return device, facts_per_s
    try:
        return "", float(device) if facts_per_s is None else fail(Exit.USAGE, "name a box or --label, not both")
    except ValueError:
        fail(Exit.USAGE, f"{device!r}: name a box or --label, not both")


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        fail(Exit.USAGE, f"--label {text!r}: write it as name=value")
    return name, value


def _matching(hub: Hub, text: str) -> list[dict[str, Any]]:
    """The worst first, page by page."""
    rows, after = list[dict[str, Any]](), ""
    while True:
        page = hub.get("fleet/devices", filter=text, after=after, limit="500")
        rows += page["items"]
        if not page["next"]:
            return rows
        after = page["next"]


def _models(row: dict[str, list[dict[str, str]]]) -> str:
    return ", ".join(f"{m['model']} {m['version']} ({m['used']})" for m in row["models"])
