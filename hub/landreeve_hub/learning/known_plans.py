"""Plans told by devices, as they are kept: in by `apply`, out as hints for a device and as a table for people."""

import math
from collections import defaultdict
from typing import Any

import msgspec
from landreeve.wire.messages import PlanReport
from landreeve.wire.plans import MOST_TRIALS, RunPlan
from sqlalchemy import Connection, Row, delete, select, update

from landreeve_hub.learning.plans import Standing, Vote, hints, standings
from landreeve_hub.store import tables
from landreeve_hub.store.upsert import upsert

KEPT_RELEASES = 8
"""Reports kept of each model on a device: those of older releases can win nothing any more."""
MOST_BYTES = 32 * 1024
MOST_CLASS = 80


def fault(body: PlanReport) -> str:
    """Why a report cannot be kept; empty when it can."""
    figures = (body.ratio, body.cpu_ratio, body.p50_us, body.cpu_us, body.seconds)
    if not body.box_class or len(body.box_class) > MOST_CLASS:
        return f"plan.box_class: 1 to {MOST_CLASS} characters, got {len(body.box_class)}"
    if any(figure is not None and not (math.isfinite(figure) and figure >= 0) for figure in figures):
        return "plan: a ratio or a time is no figure from 0 up"
    if len(body.trials) > MOST_TRIALS or len(msgspec.json.encode(body)) > MOST_BYTES:
        return f"plan: more than {MOST_TRIALS} trials or {MOST_BYTES} bytes"
    return ""


def keep(connection: Connection, device: str, body: PlanReport, at: str, number: tuple[int, int]) -> None:
    """The device's newest report on the release; ``number`` is the fact's (epoch, seq)."""
    table = tables.plans
    own = (table.c.device == device) & (table.c.release == body.release)
    newest = connection.execute(select(table.c.epoch, table.c.seq).where(own)).first()
    if newest is not None and (newest.epoch, newest.seq) >= number:
        return
    named = {name: getattr(body, name) for name in ("release", "model", "version", "box_class")}
    row = {"device": device, **named, "at": at, "epoch": number[0], "seq": number[1]}
    upsert(connection, table, {**row, "report": msgspec.to_builtins(body)})
    devices = tables.devices
    connection.execute(update(devices).where(devices.c.id == device).values(box_class=body.box_class))
    _forget(connection, device, body.model)


def _forget(connection: Connection, device: str, model: str) -> None:
    table = tables.plans
    own = (table.c.device == device) & (table.c.model == model)
    old = select(table.c.release).where(own).order_by(table.c.at.desc()).offset(KEPT_RELEASES)
    found = list(connection.execute(old).scalars())
    if found:
        connection.execute(delete(table).where(own & table.c.release.in_(found)))


def hints_for(connection: Connection, device: str, release: str) -> tuple[RunPlan, ...]:
    """What won with that release on boxes of the device's class, best first; nothing while the class is unknown."""
    devices = tables.devices
    own = connection.execute(select(devices.c.box_class).where(devices.c.id == device)).scalar_one_or_none()
    if not own:
        return ()
    table = tables.plans
    rows = connection.execute(_trusted().where(table.c.release == release, table.c.box_class == own))
    return hints(_vote(row) for row in rows)


def listed(connection: Connection, *, release: str = "", model: str = "") -> list[dict[str, Any]]:
    """One row for each release and box class, newest release first: the winner, who agrees, and each box's report.

    ``release`` is a digest or its beginning.
    """
    table = tables.plans
    query = _trusted().order_by(table.c.at.desc())
    if release:
        query = query.where(table.c.release.startswith(release, autoescape=True))
    if model:
        query = query.where(table.c.model == model)
    groups: dict[tuple[str, str], list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        groups[row.release, row.box_class].append(row)
    return [_class_row(rows) for rows in groups.values()]


def of_device(connection: Connection, device: str) -> list[dict[str, Any]]:
    """The device's own reports, newest first."""
    table = tables.plans
    query = _trusted().where(table.c.device == device).order_by(table.c.at.desc())
    return [report_row(row) for row in connection.execute(query)]


def _trusted() -> Any:
    """Reports of devices that are not revoked, with their sites."""
    table, devices = tables.plans, tables.devices
    joined = select(table, devices.c.site).join(devices, devices.c.id == table.c.device)
    return joined.where(~devices.c.revoked)


def _vote(row: Row[Any]) -> Vote:
    report = row.report
    return Vote(msgspec.convert(report["plan"], RunPlan), report.get("ratio"), bool(report.get("hinted")))


def _class_row(rows: list[Row[Any]]) -> dict[str, Any]:
    newest, found = rows[0], standings(_vote(row) for row in rows)
    return {
        **{name: getattr(newest, name) for name in ("model", "version", "release", "box_class")},
        "box": newest.report.get("box") or {},
        "boxes": len(rows),
        "winner": _standing(found[0]),
        "others": [_standing(one) for one in found[1:]],
        "at": newest.at,
        "reports": [report_row(row) for row in sorted(rows, key=lambda row: str(row.at))],
    }


def _standing(standing: Standing) -> dict[str, Any]:
    plan = msgspec.to_builtins(standing.plan)
    told = {"boxes": standing.boxes, "found": standing.found, "ratio": standing.ratio}
    return {"name": standing.plan.name, "plan": plan, **told}


def report_row(row: Row[Any]) -> dict[str, Any]:
    """A report as the API shows it."""
    report = {name: value for name, value in row.report.items() if name != "type"}
    name = msgspec.convert(report["plan"], RunPlan).name
    return {"device": row.device, "site": row.site, "at": row.at, "name": name, **report}
