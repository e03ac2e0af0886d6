"""The fleet and its devices as the API shows them."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from landreeve_hub.api.rollout_views import active_rows, waiting_by_device
from landreeve_hub.fleet import health
from landreeve_hub.incidents.incidents import CLOSED
from landreeve_hub.ingest.minutes import decode_minute
from landreeve_hub.learning import known_plans
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339


def fleet(connection: Connection, now: datetime, version: str) -> dict[str, Any]:
    """Counts, what is waited for, one row for each device, and the rollouts under way."""
    rows = devices(connection, now)
    counts = {state.value: sum(row["state"] == state.value for row in rows) for state in health.Level}
    running = active_rows(connection, now)
    waiting = [sentence for rollout in running for sentence in rollout["waiting"]]
    return {
        "counts": {**counts, "total": len(rows)},
        "waiting": waiting,
        "devices": rows,
        "rollouts": running,
        "hub": {"version": version, "time": now.isoformat()},
    }


def devices(connection: Connection, now: datetime) -> list[dict[str, Any]]:
    """A `DeviceRow` for each device of the fleet, by site."""
    table = tables.devices
    waiting = waiting_by_device(connection, now)
    found = connection.execute(select(table).where(~table.c.revoked).order_by(table.c.site)).all()
    return [_device(connection, row, waiting.get(row.id, ""), now) for row in found]


def device(connection: Connection, name: str, now: datetime) -> dict[str, Any] | None:
    """One device by id or site name, with its updates, windows and events; None when there is none."""
    table = tables.devices
    row = connection.execute(select(table).where((table.c.id == name) | (table.c.site == name))).first()
    if row is None:
        return None
    waiting = waiting_by_device(connection, now)
    return {
        **_device(connection, row, waiting.get(row.id, ""), now),
        "enrolled": row.enrolled,
        "incarnation": row.incarnation,
        "replaces": row.replaces,
        "replaced_by": row.replaced_by,
        "ended": row.ended,
        "ended_reason": row.ended_reason,
        "revoked": row.revoked,
        "hardware_full": row.hardware,
        "box_class": row.box_class,
        "plans": known_plans.of_device(connection, row.id),
        "updates": _plain(connection, tables.updates, row.id),
        "windows": _windows(connection, row.id),
        "events": events(connection, device=row.id, limit=50),
        "metrics": metrics(connection, row.id, 60),
    }


def _device(connection: Connection, row: Row[Any], waiting: str, now: datetime) -> dict[str, Any]:
    latest = latest_metrics(connection, row.id)
    windows = _newest_windows(connection, row.id)
    models = list(row.doc.get("models") or ())
    verdict = _health(connection, row, windows, now)
    expires = _certificate_expires(connection, row)
    days = (parse_rfc3339(expires) - now).total_seconds() / 86_400 if expires else None
    return {
        "id": row.id,
        "site": row.site,
        "state": verdict.level.value,
        "sentence": verdict.sentence,
        "online": row.online,
        "last_seen": row.last_seen,
        "agent": row.agent,
        "hardware": _hardware(row.hardware),
        "models": models,
        "p95_ms": latest.get("p95_ms"),
        "psi": max((s for w in windows for s in _scores(w)), default=None),
        "waiting": waiting,
        "certificate_days": days,
        "metadata_days": row.doc.get("metadata_days"),
        "clock_ahead_s": row.doc.get("clock_ahead_s"),
        "predictions": latest.get("predictions"),
        "generation": row.generation,
        "labels": row.labels,
    }


def _certificate_expires(connection: Connection, row: Row[Any]) -> str:
    """When the certificate ends that the device itself says it uses; what was last issued, where it says nothing."""
    used = str(row.doc.get("certificate_serial") or "")
    if not used or used == row.certificate_serial:
        return str(row.certificate_expires)
    table = tables.certificates
    query = select(table.c.expires).where(table.c.serial == used, table.c.device == row.id)
    return connection.execute(query).scalar_one_or_none() or str(row.certificate_expires)


def _health(connection: Connection, row: Row[Any], windows: list[Row[Any]], now: datetime) -> health.Verdict:
    """The judgement of `landreeve_hub.fleet.health` on what the tables hold."""
    newest = {(w.model, w.release): w.report for w in windows}
    models = []
    for model in row.doc.get("models") or ():
        report = newest.get((model.get("model"), model.get("release")), {})
        named = {name: str(model.get(name, "")) for name in ("model", "version", "state", "reason")}
        said = {"window": str(report.get("verdict", "")), "window_sentence": str(report.get("sentence", ""))}
        models.append(health.Serving(**named, **said))
    last_seen = parse_rfc3339(row.last_seen) if row.last_seen else None
    return health.judge(health.Signs(row.online, last_seen, tuple(models), _open_error(connection, row.id)), now)


def _open_error(connection: Connection, device: str) -> str:
    """The sentence of an open incident of severity error about the device; empty without one."""
    incidents = tables.incidents
    query = select(incidents.c.subject, incidents.c.sentence)
    found = connection.execute(query.where(incidents.c.state != CLOSED, incidents.c.severity == "error"))
    return next((row.sentence for row in found if row.subject.get("device") == device), "")


def _hardware(hardware: dict[str, Any]) -> dict[str, str]:
    """The box in a word and in a line, from whatever the agent's inventory holds."""
    kind = str(hardware.get("kind") or "CPU")
    cpu = hardware.get("cpu")
    model = cpu.get("model", "") if isinstance(cpu, dict) else cpu or hardware.get("cpu_model", "")
    return {"kind": kind, "text": str(hardware.get("text") or model or "unknown")}


def _scores(window: Row[Any]) -> list[float]:
    return [float(score) for score in (window.report.get("scores") or {}).values()]


def _newest_windows(connection: Connection, device: str) -> list[Row[Any]]:
    windows = tables.windows
    newest = (
        select(windows.c.model, func.max(windows.c.window).label("window"))
        .where(windows.c.device == device)
        .group_by(windows.c.model)
        .subquery()
    )
    on = (windows.c.model == newest.c.model) & (windows.c.window == newest.c.window) & (windows.c.device == device)
    return list(connection.execute(select(windows).join(newest, on)).all())


def _windows(connection: Connection, device: str) -> list[dict[str, Any]]:
    windows = tables.windows
    query = select(windows).where(windows.c.device == device).order_by(windows.c.window.desc()).limit(60)
    return [window_row(row) for row in connection.execute(query)]


def window_row(row: Row[Any]) -> dict[str, Any]:
    """A closed window without its sketches."""
    report = {k: v for k, v in row.report.items() if k not in {"sketches", "type"}}
    return {**report, "device": row.device, "window": row.window, "release": row.release, "version": row.version}


def _plain(connection: Connection, table: Any, device: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(select(table).where(table.c.device == device)).mappings()]


def events(connection: Connection, *, device: str = "", before: int = 0, limit: int = 100) -> list[dict[str, Any]]:
    """What happened, newest first; ``before`` pages on by ``n``."""
    table = tables.events
    query = select(table).order_by(table.c.n.desc()).limit(limit)
    if device:
        query = query.where(table.c.device == device)
    if before:
        query = query.where(table.c.n < before)
    return [dict(row) for row in connection.execute(query).mappings()]


# --- metrics ---


def latest_metrics(connection: Connection, device: str) -> dict[str, float | None]:
    """The newest value of each metric by name; empty before the first."""
    points = metrics(connection, device, 1)
    return {name: values[-1] for name, values in points.items() if values}


def metrics(connection: Connection, device: str, minutes: int) -> dict[str, list[float | None]]:
    """The last minutes of a device's metrics as columns, ``t`` (unix seconds) first."""
    table = tables.metrics
    query = select(table).where(table.c.device == device).order_by(table.c.minute.desc()).limit(minutes)
    rows = list(connection.execute(query).mappings())[::-1]
    if not rows:
        return {}
    newest = rows[-1]["set"]
    sets = tables.metric_sets
    names = connection.execute(
        select(sets.c.names).where(sets.c.device == device, sets.c.set == newest)
    ).scalar_one_or_none()
    points = [point for row in rows if row["set"] == newest for point in decode_minute(row["values"])]
    heads = ["t", *(names or [])]
    return {name: [p[i] if i < len(p) else None for p in points] for i, name in enumerate(heads)}
