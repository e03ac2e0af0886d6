"""The fleet as the rollout machine sees it, read from the store."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, select

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
        row.id: _fact(row, model, assigned.get(row.id), _report(reports.get(row.id)), desired.get(row.id, 0))
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


def _report(row: Row[Any] | None) -> Report | None:
    if row is None:
        return None
    data = getattr(row, "data", None) or {}
    return Report(
        rollout=row.rollout,
        generation=row.generation,
        release=row.release,
        state=row.state,
        cause=row.cause,
        sentence=row.sentence,
        rows=data.get("rows"),
        of=data.get("of"),
    )
