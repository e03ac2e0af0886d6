"""Devices as the API shows them, read for many at once: a fleet of thousands costs a few queries, not some for each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select, true

from landreeve_hub.api.rollout_views import waiting_by_device
from landreeve_hub.fleet import health
from landreeve_hub.incidents.incidents import CLOSED
from landreeve_hub.ingest.minutes import decode_minute
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339

PIECE = 400
"""So many ids at most in one query."""


@dataclass(frozen=True, slots=True)
class _Around:
    """What other tables hold about some devices, by device (certificates by serial)."""

    windows: Mapping[str, Sequence[Any]]
    errors: Mapping[str, str]
    waiting: Mapping[str, str]
    expires: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def rows(
    connection: Connection, now: datetime, ids: Sequence[str] | None = None, *, slim: bool = False
) -> list[dict[str, Any]]:
    """A `DeviceRow` for each of these devices, or of the fleet's, by site. ``slim`` ones carry no figures: what is not
    needed to judge, count and filter is left out."""
    errors, waiting = _errors(connection), waiting_by_device(connection, now)
    found: list[dict[str, Any]] = []
    for piece in _pieces(ids):
        devices = _devices(connection, piece)
        around = _Around(_windows(connection, piece), errors, waiting)
        if not slim:
            expires = _expires(connection, devices)
            around = _Around(around.windows, errors, waiting, expires, _metrics(connection, piece))
        found += [_row(row, around, now, slim=slim) for row in devices]
    return sorted(found, key=lambda row: str(row["site"]))


def _pieces(ids: Sequence[str] | None) -> Iterator[Sequence[str] | None]:
    """None for the whole fleet."""
    if ids is None:
        yield None
        return
    yield from (ids[at : at + PIECE] for at in range(0, len(ids), PIECE))


def _among(column: Any, ids: Sequence[str] | None) -> ColumnElement[bool]:
    return true() if ids is None else column.in_(ids)


def _devices(connection: Connection, ids: Sequence[str] | None) -> list[Any]:
    """Without the inventories, which are long: only what they say in a word and a line."""
    d = tables.devices.c
    box = d.hardware
    query = select(
        d.id, d.site, d.online, d.last_seen, d.agent, d.doc, d.labels, d.generation, d.certificate_serial,
        d.certificate_expires, box["kind"].as_string().label("kind"), box["text"].as_string().label("text"),
        box["cpu"].label("cpu"), box["cpu_model"].as_string().label("cpu_model"),
    ).where(~d.revoked if ids is None else d.id.in_(ids))  # fmt: skip
    return list(connection.execute(query).all())


def _windows(connection: Connection, ids: Sequence[str] | None) -> dict[str, list[Any]]:
    """The newest closed window of each device and model, without its sketches."""
    w = tables.windows.c
    newest = (
        select(w.device, w.model, func.max(w.window).label("window"))
        .where(_among(w.device, ids))
        .group_by(w.device, w.model)
        .subquery()
    )
    same = and_(w.device == newest.c.device, w.model == newest.c.model, w.window == newest.c.window)
    query = select(
        w.device, w.model, w.release, w.report["verdict"].as_string().label("verdict"),
        w.report["sentence"].as_string().label("sentence"), w.report["scores"].label("scores"),
    ).join(newest, same)  # fmt: skip
    found: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.device].append(row)
    return found


def _errors(connection: Connection) -> dict[str, str]:
    """The sentence of an open incident of severity error about each device that has one."""
    incidents = tables.incidents
    query = select(incidents.c.subject, incidents.c.sentence)
    found: dict[str, str] = {}
    for row in connection.execute(query.where(incidents.c.state != CLOSED, incidents.c.severity == "error")):
        found.setdefault(str(row.subject.get("device") or ""), row.sentence)
    return found


def _expires(connection: Connection, devices: Sequence[Any]) -> dict[str, str]:
    """When the certificates end that devices say they use, where that is not the one last issued; by serial."""
    told = {str(row.doc.get("certificate_serial") or "") for row in devices}
    wanted = sorted(told - {row.certificate_serial for row in devices} - {""})
    table = tables.certificates.c
    found: dict[str, str] = {}
    for at in range(0, len(wanted), PIECE):
        query = select(table.serial, table.expires).where(table.serial.in_(wanted[at : at + PIECE]))
        found |= {row.serial: row.expires for row in connection.execute(query)}
    return found


def _metrics(connection: Connection, ids: Sequence[str] | None) -> dict[str, dict[str, float | None]]:
    """The newest value of each metric by name, for each device that has told any."""
    d, m, sets = tables.devices.c, tables.metrics, tables.metric_sets.c
    older = m.alias()
    newest = select(func.max(older.c.minute)).where(older.c.device == d.id).correlate(tables.devices).scalar_subquery()
    query = (
        select(d.id, m.c["set"], m.c["values"])
        .select_from(tables.devices)
        .join(m, and_(m.c.device == d.id, m.c.minute == newest))
        .where(_among(d.id, ids))
        .order_by(m.c["set"])
    )
    latest = {row[0]: (row[1], row[2]) for row in connection.execute(query)}  # the newest set wins
    named = select(sets.device, sets["set"], sets.names).where(_among(sets.device, ids))
    names = {(row[0], row[1]): row[2] for row in connection.execute(named)}
    return {device: _last(names.get((device, number)) or [], values) for device, (number, values) in latest.items()}


def _last(names: Sequence[str], values: bytes) -> dict[str, float | None]:
    points = decode_minute(values)
    last = points[-1] if points else ()
    return {name: last[at] if at < len(last) else None for at, name in enumerate(["t", *names])} if last else {}


def _row(row: Any, around: _Around, now: datetime, *, slim: bool) -> dict[str, Any]:
    windows = around.windows.get(row.id, ())
    verdict = _health(row, windows, around.errors.get(row.id, ""), now)
    shown = {
        "id": row.id,
        "site": row.site,
        "state": verdict.level.value,
        "sentence": verdict.sentence,
        "online": row.online,
        "last_seen": row.last_seen,
        "agent": row.agent,
        "hardware": _hardware(row),
        "models": list(row.doc.get("models") or ()),
        "labels": row.labels,
    }
    return shown if slim else shown | _figures(row, windows, around, now)


def _figures(row: Any, windows: Sequence[Any], around: _Around, now: datetime) -> dict[str, Any]:
    latest = around.metrics.get(row.id, {})
    used = str(row.doc.get("certificate_serial") or "")
    issued = not used or used == row.certificate_serial
    expires = row.certificate_expires if issued else around.expires.get(used) or row.certificate_expires
    return {
        "p95_ms": latest.get("p95_ms"),
        "psi": max((float(score) for w in windows for score in (w.scores or {}).values()), default=None),
        "waiting": around.waiting.get(row.id, ""),
        "certificate_days": (parse_rfc3339(expires) - now).total_seconds() / 86_400 if expires else None,
        "metadata_days": row.doc.get("metadata_days"),
        "clock_ahead_s": row.doc.get("clock_ahead_s"),
        "predictions": latest.get("predictions"),
        "generation": row.generation,
    }


def _health(row: Any, windows: Sequence[Any], error: str, now: datetime) -> health.Verdict:
    """The judgement of `landreeve_hub.fleet.health` on what the tables hold."""
    newest = {(w.model, w.release): w for w in windows}
    models = []
    for model in row.doc.get("models") or ():
        window = newest.get((model.get("model"), model.get("release")))
        named = {name: str(model.get(name, "")) for name in ("model", "version", "state", "reason")}
        verdict, sentence = (str(window.verdict or ""), str(window.sentence or "")) if window else ("", "")
        models.append(health.Serving(**named, window=verdict, window_sentence=sentence))
    last_seen = parse_rfc3339(row.last_seen) if row.last_seen else None
    return health.judge(health.Signs(row.online, last_seen, tuple(models), error), now)


def _hardware(row: Any) -> dict[str, str]:
    """The box in a word and in a line, from whatever the agent's inventory holds."""
    model = row.cpu.get("model", "") if isinstance(row.cpu, dict) else row.cpu or row.cpu_model or ""
    return {"kind": str(row.kind or "CPU"), "text": str(row.text or model or "unknown")}
