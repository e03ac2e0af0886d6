"""Training runs as the hub knows them: asked for, under way, rejected, or turned into a draft release.

States: ``requested`` → ``running`` → ``candidate`` → ``registered``; ``rejected`` (the gate, with its reason),
``refused`` (the site would not), ``failed``, ``expired`` (no answer in time).
"""

from datetime import datetime
from typing import Any

from landreeve.wire.messages import Candidate, Event
from sqlalchemy import Connection, select, update

from landreeve_hub.learning.retrain import RunSeen, Train, WindowSeen
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.upsert import insert_new, upsert

OPEN = frozenset({"requested", "running", "candidate"})
_EVENTS = {
    "training.started": "running",
    "training.rejected": "rejected",
    "training.failed": "failed",
    "training.finished": "running",  # the Candidate fact that follows moves it on
}
_RANK = {"requested": 0, "running": 1, "candidate": 2}


def key_of(device: str, request: str, run: str) -> str:
    """A run is known by the hub's request, or, begun on site, by device and its own number."""
    return request or f"{device}.{run}"


def requested(connection: Connection, run: str, model: str, train: Train, now: datetime) -> None:
    request = {"first": rfc3339(train.first), "last": rfc3339(train.last), "reason": train.reason, "command": ""}
    row = {"id": run, "model": model, "device": train.device, "request": request, "state": "requested"}
    insert_new(connection, tables.runs, {**row, "at": rfc3339(now)})


def candidate(connection: Connection, device: str, body: Candidate, now: datetime) -> None:
    """A site offers a challenger: what is needed to fetch it is kept with the run."""
    run = key_of(device, body.request, body.run)
    held = _own(connection, run, device)
    if held is not None and held.state == "registered":
        return
    offer = {"manifest": body.manifest, "manifest_bytes": body.manifest_bytes, "run": body.run, "reason": body.reason}
    row = {
        "id": run,
        "model": body.model,
        "device": device,
        "request": {**(held.request if held is not None else {}), **offer},
        "state": "candidate",
        "metrics": body.metrics,
        "at": rfc3339(now),
    }
    upsert(connection, tables.runs, row)


def event(connection: Connection, device: str, body: Event, now: datetime) -> None:
    """What a site says of a training; a late word never takes a run back."""
    state = _EVENTS.get(body.name)
    if state is None:
        return
    data = body.data
    run = key_of(device, str(data.get("request") or ""), str(data.get("run") or body.subject))
    held = _own(connection, run, device)
    if held is not None and (held.state not in OPEN or _RANK.get(state, 9) <= _RANK[held.state]):
        return
    request = {**(held.request if held is not None else {}), "sentence": body.sentence, "cause": body.cause}
    model = held.model if held is not None else str(data.get("model") or body.subject)
    row = {"id": run, "model": model, "device": device, "request": request, "state": state, "at": rfc3339(now)}
    metrics = data.get("metrics")
    upsert(connection, tables.runs, {**row, "metrics": metrics} if isinstance(metrics, dict) else row)


def close(connection: Connection, run: str, state: str, sentence: str, digest: str = "") -> None:
    """The run ended so."""
    held = _held(connection, run)
    if held is None:
        return
    values = {"state": state, "request": {**held.request, "sentence": sentence}, "digest": digest}
    connection.execute(update(tables.runs).where(tables.runs.c.id == run).values(values))


def note(connection: Connection, run: str, sentence: str) -> None:
    """Why it does not go on for now."""
    held = _held(connection, run)
    if held is not None and held.request.get("sentence") != sentence:
        request = {**held.request, "sentence": sentence}
        connection.execute(update(tables.runs).where(tables.runs.c.id == run).values(request=request))


def settle_commands(connection: Connection, now: datetime) -> bool:
    """Requests whose command was refused or ran out of time are closed, so that learning may go on."""
    commands, changed = tables.commands, False
    for run in connection.execute(select(tables.runs).where(tables.runs.c.state == "requested")).all():
        row = connection.execute(select(commands).where(commands.c.id == run.request.get("command", ""))).first()
        if row is None:
            continue
        if row.answer and row.answer["name"] == "command.refused":
            close(connection, run.id, "refused", str(row.answer["sentence"]))
            changed = True
        elif row.answer is None and parse_rfc3339(row.expires) <= now:
            close(connection, run.id, "expired", "The site did not answer before the request expired.")
            changed = True
    return changed


def set_command(connection: Connection, run: str, command: str) -> None:
    held = _held(connection, run)
    request = {**(held.request if held is not None else {}), "command": command}
    connection.execute(update(tables.runs).where(tables.runs.c.id == run).values(request=request))


def offered(connection: Connection) -> list[dict[str, Any]]:
    """Runs whose challenger waits to be fetched, oldest first."""
    query = select(tables.runs).where(tables.runs.c.state == "candidate").order_by(tables.runs.c.at)
    return [dict(row) for row in connection.execute(query).mappings()]


def seen(connection: Connection, model: str) -> list[RunSeen]:
    """The hub's own requests for a model, and trainings under way on site."""
    found = []
    for row in connection.execute(select(tables.runs).where(tables.runs.c.model == model)):
        last = row.request.get("last")
        if last and row.state != "expired":  # nobody trained on that
            found.append(RunSeen(row.id, row.device, parse_rfc3339(last), row.state in OPEN))
    return found


def newest_windows(connection: Connection, model: str) -> list[WindowSeen]:
    """The newest closed window of each site."""
    windows = tables.windows
    rows = connection.execute(select(windows).where(windows.c.model == model).order_by(windows.c.window)).all()
    newest = {row.device: row for row in rows}
    return [_window(row) for row in newest.values()]


def _window(row: Any) -> WindowSeen:
    report = row.report
    return WindowSeen(
        device=row.device,
        release=row.release,
        first=parse_rfc3339(row.first),
        last=parse_rfc3339(row.last),
        verdict=str(report.get("verdict", "")),
        sentence=str(report.get("sentence", "")),
    )


def _own(connection: Connection, run: str, device: str) -> Any:
    """What is kept of the run; `ValueError` when it is another device's, whatever this one calls it."""
    held = _held(connection, run)
    foreign = "." in run and not run.startswith(f"{device}.") if held is None else held.device != device
    if foreign:
        raise ValueError(f"run {run[:80]!r} is not one of this device")
    return held


def _held(connection: Connection, run: str) -> Any:
    return connection.execute(select(tables.runs).where(tables.runs.c.id == run)).first()
