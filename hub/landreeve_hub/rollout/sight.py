"""The fleet as the rollout machine sees it, read from the store."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, select

from landreeve_hub.ingest.minutes import read_rows
from landreeve_hub.rollout.state import DeviceFact, Fleet, Report
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339


def fleet_sites(connection: Connection) -> dict[str, str]:
    """The site of each device that belongs to the fleet."""
    devices = tables.devices
    rows = connection.execute(select(devices.c.id, devices.c.site).where(~devices.c.revoked))
    return {row.id: row.site for row in rows}


def see(connection: Connection, model: str) -> Fleet:
    """What is known of every device with regard to one model."""
    devices = tables.devices
    rows = connection.execute(select(devices).where(~devices.c.revoked)).all()
    assigned = _by_device(connection.execute(select(tables.assignments).where(tables.assignments.c.model == model)))
    reports = _by_device(connection.execute(select(tables.updates).where(tables.updates.c.model == model)))
    desired = dict(connection.execute(select(tables.desired.c.device, tables.desired.c.generation)).all())
    return {
        row.id: _fact(
            row, model, assigned.get(row.id), _report(connection, row, reports.get(row.id)), desired.get(row.id, 0)
        )
        for row in rows
    }


def _by_device(rows: Iterable[Row[Any]]) -> dict[str, Row[Any]]:
    return {row.device: row for row in rows}


def _fact(device: Row[Any], model: str, assigned: Row[Any] | None, report: Report | None, desired: int) -> DeviceFact:
    served = serving(device.doc, model)
    return DeviceFact(
        id=device.id,
        site=device.site,
        online=device.online,
        last_seen=parse_rfc3339(device.last_seen) if device.last_seen else None,
        running=str(served.get("release", "")),
        running_version=str(served.get("version", "")),
        assigned=assigned.digest if assigned else "",
        assigned_version=assigned.version if assigned else "",
        generation=int(device.doc.get("generation", 0)),
        desired=desired,
        report=report,
    )


def serving(doc: dict[str, Any], model: str) -> dict[str, Any]:
    """The entry of a device's last state about a model; empty when it serves none."""
    return next((m for m in doc.get("models") or () if m.get("model") == model), {})


def _report(connection: Connection, device: Row[Any], row: Row[Any] | None) -> Report | None:
    if row is None:
        return None
    rows = _answered_since(connection, device, row.at) if row.state == "PROBATION" and row.at else None
    return Report(row.rollout, row.generation, row.release, row.state, row.cause, row.sentence, rows)


def _answered_since(connection: Connection, device: Row[Any], at: str) -> int | None:
    """Rows the box has answered since its probation began, from its metrics; None where they cannot tell: before
    two points, or when it serves more than one model."""
    if len(device.doc.get("models") or ()) != 1:
        return None
    sets = tables.metric_sets
    newest = connection.execute(
        select(sets.c.set, sets.c.names).where(sets.c.device == device.id).order_by(sets.c.set.desc())
    ).first()
    if newest is None or "predictions" not in newest.names:
        return None
    place = newest.names.index("predictions") + 1
    since_s = parse_rfc3339(at).timestamp()
    points = [row[place] for row in read_rows(connection, device.id, newest.set, since_s) if len(row) > place]
    known = [value for value in points if value is not None]
    return int(known[-1] - known[0]) if len(known) > 1 else None
