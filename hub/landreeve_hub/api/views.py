"""The fleet and its devices as the API shows them."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from landreeve_hub.api import device_views
from landreeve_hub.api.rollout_views import active_rows
from landreeve_hub.fleet import health
from landreeve_hub.ingest.minutes import decode_minute
from landreeve_hub.learning import known_plans
from landreeve_hub.store import tables


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
    return device_views.rows(connection, now)


def device(connection: Connection, name: str, now: datetime) -> dict[str, Any] | None:
    """One device by id or site name, with its updates, windows and events; None when there is none."""
    table = tables.devices
    row = connection.execute(select(table).where((table.c.id == name) | (table.c.site == name))).first()
    if row is None:
        return None
    return {
        **device_views.rows(connection, now, [row.id])[0],
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
