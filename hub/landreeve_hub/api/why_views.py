"""Why a device is on the version it is on: answered from what was stored when it happened, never guessed."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from landreeve_hub.desired.conflict import conflicted
from landreeve_hub.rollout import book
from landreeve_hub.rollout.holds import Excluded, hold, waiting_of
from landreeve_hub.rollout.live import surroundings
from landreeve_hub.rollout.roster import Member, Outcome
from landreeve_hub.rollout.sight import see, serving
from landreeve_hub.rollout.state import Rollout
from landreeve_hub.rollout.waiting import words
from landreeve_hub.store import tables

STEPS = 40


def why(connection: Connection, name: str, now: datetime) -> dict[str, Any] | None:
    """For each model of a device (by id or site name): what it runs, what it should run, in one sentence why, the steps
    that led there, and what it waits for. None when there is no such device."""
    table = tables.devices
    found = (table.c.id == name) | (table.c.site == name)
    row = connection.execute(select(table).where(found).order_by(table.c.revoked)).first()
    if row is None:
        return None
    models = dict.fromkeys([str(m.get("model", "")) for m in row.doc.get("models") or ()])
    for other in (tables.assignments, tables.updates):
        rows = connection.execute(select(other.c.model).where(other.c.device == row.id)).scalars()
        models |= dict.fromkeys(rows)
    conflict = next(iter(conflicted(connection, [row.id])), None)
    return {
        "id": row.id,
        "site": row.site,
        "generation": row.generation,
        "conflict": f"obeys document {conflict.generation}; this hub made only {conflict.newest}" if conflict else "",
        "models": [_model(connection, row, model, now) for model in models if model],
    }


def _model(connection: Connection, row: Row[Any], model: str, now: datetime) -> dict[str, Any]:
    served = serving(row.doc, model)
    held, report = (_own(connection, t, row.id, model) for t in (tables.assignments, tables.updates))
    steps = _steps(connection, row.id, model)
    going = [k.rollout for k in book.listed(connection, active=True)]
    waiting = [text for r in going if r.model == model for text in _waits(connection, r, going, row.id, now)]
    return {
        "model": model,
        "running": {name: str(served.get(name, "")) for name in ("version", "release", "state")},
        "wanted": {"version": held.version, "release": held.digest, "rollout": held.rollout} if held else None,
        "sentence": _sentence(row.site, served, held, report, steps),
        "steps": steps,
        "waiting": waiting,
    }


def _own(connection: Connection, table: Any, device: str, model: str) -> Row[Any] | None:
    return connection.execute(select(table).where(table.c.device == device, table.c.model == model)).first()


def _sentence(
    site: str, served: dict[str, Any], held: Row[Any] | None, report: Row[Any] | None, steps: list[dict[str, Any]]
) -> str:
    version, release = str(served.get("version", "")), served.get("release")
    runs = f"{site} runs {version}" if release else f"{site} runs no version"
    if held is None:
        return f"{runs}; the hub wants no version there{_because(steps)}"
    if held.digest == release:
        came = report is not None and report.release == release and report.state == "COMMITTED"
        how = f" since {report.at[:16].replace('T', ' ')} UTC" if came and report is not None else ""
        by = f"rollout {held.rollout}" if held.rollout else "the hub"
        return f"{runs}{how}, as {by} ordered{_because(steps)}"
    said = f" It said: {report.sentence}" if report is not None and report.sentence else ""
    return f"{runs}; rollout {held.rollout} wants {held.version}{_because(steps)}{said}"


def _because(steps: list[dict[str, Any]]) -> str:
    """The newest thing the hub concluded about the device."""
    newest = next((step["sentence"] for step in steps if step["by"] == "hub"), "")
    return f": {newest}" if newest else "."


def _steps(connection: Connection, device: str, model: str) -> list[dict[str, Any]]:
    """What the hub concluded and what the device reported, newest first."""
    log, rollouts, events = tables.rollout_log, tables.rollouts, tables.events
    hub = (
        select(log.c.at, log.c.cause, log.c.sentence, log.c.rollout)
        .join(rollouts, rollouts.c.id == log.c.rollout)
        .where(log.c.device == device, rollouts.c.model == model)
        .order_by(log.c.n.desc())
        .limit(STEPS)
    )
    own = (
        select(events.c.at, events.c.data, events.c.sentence)
        .where(events.c.device == device, events.c.name == "update.transition", events.c.subject == model)
        .order_by(events.c.n.desc())
        .limit(STEPS)
    )
    found = [{**row, "by": "hub"} for row in connection.execute(hub).mappings()]
    for row in connection.execute(own):
        named = {name: str(row.data.get(name, "")) for name in ("cause", "rollout", "state", "version")}
        found.append({"at": row.at, "sentence": row.sentence, "by": "device", **named})
    return sorted(found, key=lambda step: str(step["at"]), reverse=True)[:STEPS]


def _waits(connection: Connection, rollout: Rollout, going: list[Rollout], device: str, now: datetime) -> list[str]:
    member = rollout.members.get(device)
    if member is None:
        return []
    if member.flying:
        doing = member.stage.lower().replace("_", " ") or "told and not answered yet"
        return [f"rollout {rollout.id}, wave {member.wave + 1}: {doing}"]
    if member.outcome is not Outcome.WAITING:
        return []
    return [f"rollout {rollout.id}: {_not_yet(connection, rollout, going, member, now)}"]


def _not_yet(connection: Connection, rollout: Rollout, going: list[Rollout], member: Member, now: datetime) -> str:
    if rollout.state.value != "RUNNING":
        return f"it is {rollout.state.value.lower().replace('_', ' ')}"
    if member.wave > rollout.wave:
        return f"it is in wave {member.wave + 1}, wave {rollout.wave + 1} is under way"
    fact = see(connection, rollout, now, [member.device]).get(member.device)
    if fact is None:
        return f"{member.site} no longer belongs to the fleet"
    around = surroundings(connection, rollout, [r for r in going if r.id != rollout.id], now)
    if around.earlier:
        return f"rollout {around.earlier} of the same model goes first"
    match hold(rollout, member, fact, around, now):
        case None:
            return f"at most {rollout.plan.gate.max_in_flight} update at the same time"
        case Excluded(_, sentence):
            return sentence
        case held:
            return words(waiting_of([held])[0])
