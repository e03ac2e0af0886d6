"""``rollout``."""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import Hub, connect
from landreeve_hub.commands.options import Output, State, Token, Url

After = Annotated[list[str] | None, typer.Option(help="A component that comes first on each device; may be repeated.")]
Waves = Annotated[
    list[str] | None,
    typer.Option(
        "--wave",
        help="Who is next: 10% of the fleet, a number of devices, SITE,SITE…, a filter like tag:pilot, or rest. "
        "May be repeated, in order.",
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Follow it, with the exit codes of rollout watch.")]
AWAY_S = 300.0
"""How long `watch` goes on asking a hub that does not answer: it may be starting anew."""
COLUMNS = ("id", "kind", "model", "version", "from_version", "state", "devices", "waiting", "created_by", "approved_by")
_ENDED = {"FINISHED": Exit.OK, "ROLLED_BACK": Exit.PROBLEMS, "ABORTED": Exit.PROBLEMS}
_HELD = {"PAUSED"}
_VERBS = {
    "pause": "No further orders until resumed.",
    "resume": "Go on, accepting what is known until now.",
    "abort": "End here: who committed keeps the release, who is on the way returns.",
    "rollback": "Every device returns to its own last good release.",
}


def group() -> typer.Typer:
    """``rollout plan|start|list|status|approve|pause|resume|next|abort|retry|rollback|watch|record``."""
    group = typer.Typer(help="Bring a release to the fleet in waves.", no_args_is_help=True)
    _plan(group)
    _start(group)
    _approve(group)
    _look(group)
    _steer(group)
    return group


def _plan(group: typer.Typer) -> None:
    @group.command("plan")
    def plan(
        *,
        plan: Annotated[str, typer.Option(help="The plan as JSON, or @FILE.")] = "",
        canary: Annotated[list[str] | None, typer.Option(help="A site of the first wave; the rest follows.")] = None,
        wave: Waves = None,
        after: After = None,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Check a plan and show exactly which devices each wave would take; nothing is started."""
        asked = read_plan(plan, canary or [], after or [], wave or [])
        _show_preview(connect(url, token, state).post("rollouts/preview", {"plan": asked}), output)


def _show_preview(seen: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        emit(seen, output)
        return
    emit([{"wave": n + 1, "devices": len(w), "sites": ", ".join(w)} for n, w in enumerate(seen["waves"])], output)
    for text in seen["notes"]:
        note(text)


def _start(group: typer.Typer) -> None:
    @group.command("start")
    def start(
        release: Annotated[str, typer.Argument(help="MODEL@VERSION, or a digest with --model.")],
        *,
        model: Annotated[str, typer.Option(help="The model, when the release is a digest.")] = "",
        plan: Annotated[str, typer.Option(help="The plan as JSON, or @FILE.")] = "",
        canary: Annotated[list[str] | None, typer.Option(help="A site of the first wave; the rest follows.")] = None,
        wave: Waves = None,
        after: After = None,
        force: Annotated[str, typer.Option(help="The reason to take a quarantined release.")] = "",
        preview: Annotated[bool, typer.Option("--preview", help="Only show who is in which wave.")] = False,
        queue: Annotated[bool, typer.Option("--queue", help="Wait behind a rollout of the same model.")] = False,
        why: Annotated[str, typer.Option(help="The reason, for the change record.")] = "",
        risk: Annotated[str, typer.Option(help="low, medium or high, for the change record.")] = "",
        rollback_plan: Annotated[str, typer.Option(help="How it is taken back, for the change record.")] = "",
        watch: Watch = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Propose a rollout; it runs once someone else approved it."""
        name, _, version = release.replace(":", "@", 1).partition("@")
        body = {
            "model": model or name,
            "version": version,
            "release": "" if version else release,
            "plan": read_plan(plan, canary or [], after or [], wave or []),
            "force": force,
            "preview": preview,
            "queue": queue,
            "why": why,
            "risk": risk,
            "rollback_plan": rollback_plan,
        }
        hub = connect(url, token, state)
        made = hub.post("rollouts", body)
        if preview:
            _show_preview(made, output)
            return
        if made["state"] == "AWAITING_APPROVAL":
            note(f"next, by someone else: landreeve-hub rollout approve {made['id']}")
        if watch:
            _watch(hub, made["id"], output)
        _show(made, output)


def _approve(group: typer.Typer) -> None:
    @group.command("approve")
    def approve(
        rollout: str,
        *,
        emergency: Annotated[str, typer.Option(help="Admins only: the reason to approve one's own rollout.")] = "",
        watch: Watch = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Begin the first wave. Not by whoever proposed it."""
        hub = connect(url, token, state)
        row = hub.post(f"rollouts/{rollout}/approve", {"emergency": emergency})
        if watch:
            _watch(hub, rollout, output)
        _show(row, output)


def _look(group: typer.Typer) -> None:
    @group.command("list")
    def listed(
        *, model: str = "", url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Rollouts, newest first."""
        rows = connect(url, token, state).get("rollouts", model=model)
        emit([_line(row) for row in rows] if output is Format.TABLE else rows, output, COLUMNS)

    @group.command("status")
    def status(
        rollout: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """One rollout: waves, gates, what it waits for, why."""
        _show(connect(url, token, state).get(f"rollouts/{rollout}"), output)

    @group.command("record")
    def record(
        rollout: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.JSON
    ) -> None:
        """The change record: who, why, risk, way back, approvals, timeline, outcome of every device."""
        emit(connect(url, token, state).get(f"rollouts/{rollout}/record"), output)

    @group.command("watch")
    def watch(
        rollout: str,
        *,
        timeout: Annotated[float, typer.Option(help="Give up after so many seconds; 0 is never.")] = 0.0,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Follow a rollout until it ends or is paused (exit 0 finished, 3 rolled back, aborted or paused, 8 time is
        up). A hub that is away for less than five minutes is waited for."""
        _watch(connect(url, token, state), rollout, output, timeout)


def _steer(group: typer.Typer) -> None:
    for verb, text in _VERBS.items():
        group.command(verb, help=text)(_verb(verb))

    @group.command("next")
    def advance(
        rollout: str,
        *,
        wave: Annotated[int, typer.Option(help="The wave to begin; said again, it begins no other.")] = 0,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Begin the next wave now."""
        _show(connect(url, token, state).post(f"rollouts/{rollout}/next", {"wave": wave}), output)

    @group.command("retry")
    def retry(
        rollout: str,
        *,
        device: Annotated[list[str] | None, typer.Option(help="Only this device or site; may be repeated.")] = None,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Try again where it failed, fell silent or was left out."""
        _show(connect(url, token, state).post(f"rollouts/{rollout}/retry", {"devices": device or []}), output)


def _verb(verb: str) -> Any:
    def command(
        rollout: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        _show(connect(url, token, state).post(f"rollouts/{rollout}/{verb}"), output)

    return command


def _watch(hub: Hub, rollout: str, output: Format, timeout_s: float = 0.0) -> NoReturn:
    row, code = follow(replace(hub, away_s=AWAY_S), rollout, timeout_s)
    _show(row, output)
    raise SystemExit(int(code))


def wave_of(text: str) -> dict[str, Any]:
    """A wave as people write it; what it may be is the hub's matter.

    >>> [wave_of(text) for text in ("10%", "5", "EWR,JFK", "tag:pilot", "rest")]
    [{'share': 0.1}, {'count': 5}, {'devices': ['EWR', 'JFK']}, {'query': 'tag:pilot'}, {'rest': True}]
    """
    said = text.strip()
    if said.lower() in {"rest", "everyone"}:
        return {"rest": True}
    if found := re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*%", said):
        return {"share": float(found[1]) / 100}
    if re.fullmatch(r"-?\d+", said):
        return {"count": int(said)}
    if ":" in said:
        return {"query": said}
    return {"devices": [name.strip() for name in said.split(",") if name.strip()]}


def read_plan(text: str, canary: list[str], after: Sequence[str] = (), waves: Sequence[str] = ()) -> dict[str, Any]:
    """The plan of ``--plan`` (JSON or @FILE), with the waves of ``--wave`` or ``--canary`` and the names of ``--after``
    where it has none."""
    try:
        raw = Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text
        plan = json.loads(raw) if raw else {}
    except (OSError, ValueError) as error:
        fail(Exit.USAGE, f"--plan: {error}; give a JSON object, or @FILE with one")
    if not isinstance(plan, dict):
        fail(Exit.USAGE, '--plan: must be a JSON object, such as {"waves": [{"share": 0.1}, {"rest": true}]}')
    if waves and (canary or "waves" in plan):
        fail(
            Exit.USAGE, f"--wave: the waves are given by {'--canary' if canary else '--plan'} already; give one of them"
        )
    if waves:
        plan["waves"] = [wave_of(one) for one in waves]
    if canary and "waves" not in plan:
        plan["waves"] = [{"devices": canary, "name": "Canary"}, {"rest": True}]
    if after and "after" not in plan:
        plan["after"] = list(after)
    return plan


def follow(hub: Hub, rollout: str, timeout_s: float, period_s: float = 1.0) -> tuple[dict[str, Any], Exit]:
    """Tell on standard error what moves, until the rollout ends, is paused, or the time is up."""
    began, told = time.monotonic(), ""
    while True:
        row = hub.get(f"rollouts/{rollout}")
        line = progress(row)
        if line != told:
            note(line)
            told = line
        if row["state"] in _ENDED:
            return row, _ENDED[row["state"]]
        if row["state"] in _HELD:
            return row, Exit.PROBLEMS
        if timeout_s and time.monotonic() - began > timeout_s:
            return row, Exit.TIMEOUT
        time.sleep(period_s)


def progress(row: dict[str, Any]) -> str:
    """One line: state, how far, and what it waits for."""
    done = sum(wave["committed"] for wave in row["waves"])
    total = sum(wave["total"] for wave in row["waves"])
    stages = f" · {row['on_trial']}" if row.get("on_trial") else ""  # a hub before this one does not say it
    waits = f"{stages} · waiting: {'; '.join(row['waiting'])}" if row["waiting"] else stages
    said = "" if row["waiting"] else f" · {row['sentence']}"
    return f"{row['id']} {row['state']} · {done} of {total} on {row['version']}{waits}{said}"


def _show(row: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        emit(row, output)
        return
    emit([_line(row)], output, COLUMNS)
    sites = [
        {"wave": wave["name"], "site": device["site"], "state": device["state"], "what": device["sentence"]}
        for wave in row["waves"]
        for device in wave["devices"]
    ]
    sys.stdout.write("\n")
    emit(sites, output)
    sys.stdout.write("\n")
    emit(row["gates"], output)
    if row.get("on_trial"):
        note(row["on_trial"])
    note(row["sentence"])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    done = sum(wave["committed"] for wave in row["waves"])
    total = sum(wave["total"] for wave in row["waves"])
    return {**row, "devices": f"{done}/{total}", "waiting": "; ".join(row["waiting"])}
