"""Drift of one model over the fleet: features by site, and the sites' sketches merged.

Sketches are most of a report. They are read of the newest windows alone, and of one release; of everything else the
engine leaves them out before it answers.
"""

from collections.abc import Collection, Iterable
from typing import Any

from landreeve.sketch.document import merge
from landreeve.sketch.errors import BadSketchError
from sqlalchemy import JSON, ColumnElement, Connection, Row, Subquery, and_, case, cast, func, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from landreeve_hub.api.views import window_row
from landreeve_hub.store import tables

MOST_WINDOWS = 2_000
"""So many windows are listed, the newest ones: forty years of weeks of one site, or one week of a large fleet."""
HISTORY = 12
"""Quality over time goes back by at least so many windows of each device; by more where the fleet is small."""


def drift(connection: Connection, model: str) -> dict[str, Any]:
    """``matrix[column][site]`` is the newest window's score; ``merged`` the sketches of all sites' newest windows.

    ``windows`` are the newest ``MOST_WINDOWS`` without sketches, ``quality`` the log loss of each day on which windows
    with labels ended, over the fleet. Sketches merge only within one release: another release may have been trained
    with other bins.
    """
    newest = {row.site: row for row in _newest(connection, model)}
    columns = sorted({column for row in newest.values() for column in row.report.get("scores") or {}})
    return {
        "model": model,
        "columns": columns,
        "sites": sorted(newest),
        "matrix": {column: {site: _score(row, column) for site, row in newest.items()} for column in columns},
        "thresholds": {site: row.report.get("thresholds") or {} for site, row in newest.items()},
        "verdicts": {site: _verdict(row) for site, row in newest.items()},
        "windows": [{**window_row(row), "site": row.site} for row in _listed(connection, model)],
        "quality": _quality(connection, model, len(newest)),
        "merged": _merged(connection, model, newest.values()),
    }


def _last(model: str) -> Subquery:
    """The newest window of each device."""
    w = tables.windows.c
    return select(w.device, func.max(w.window).label("window")).where(w.model == model).group_by(w.device).subquery()


def _same(model: str, keys: Subquery) -> ColumnElement[bool]:
    w = tables.windows.c
    return and_(w.model == model, w.device == keys.c.device, w.window == keys.c.window)


def _newest(connection: Connection, model: str) -> list[Row[Any]]:
    return _brief(connection, model, _last(model))


def _listed(connection: Connection, model: str) -> list[Row[Any]]:
    """The keys are bounded first: sorting whole reports would read them all."""
    w, d = tables.windows.c, tables.devices.c
    keys = select(w.device, w.window).join(tables.devices, d.id == w.device).where(w.model == model, ~d.revoked)
    return _brief(connection, model, keys.order_by(w.window.desc(), w.device).limit(MOST_WINDOWS).subquery())


def _brief(connection: Connection, model: str, keys: Subquery) -> list[Row[Any]]:
    """These windows without their sketches, the oldest first."""
    w, d = tables.windows.c, tables.devices.c
    query = (
        select(w.device, w.window, w.release, w.version, _without_sketches(connection).label("report"), d.site)
        .join(keys, _same(model, keys))
        .join(tables.devices, d.id == w.device)
        .where(~d.revoked)
        .order_by(w.window, w.device)
    )
    return [*connection.execute(query)]


def _without_sketches(connection: Connection) -> ColumnElement[Any]:
    report = tables.windows.c.report
    if connection.dialect.name == "postgresql":
        return type_coerce(cast(report, JSONB).op("-")("sketches"), JSONB)
    return type_coerce(func.json_remove(report, "$.sketches"), JSON)


def _quality(connection: Connection, model: str, devices: int) -> list[dict[str, Any]]:
    """Log loss measured and expected (``reference_log_loss``, None where no window claims any), by the day on which
    windows ended, weighted by labelled rows."""
    w, d = tables.windows.c, tables.devices.c
    place = func.row_number().over(partition_by=w.device, order_by=w.window.desc()).label("place")
    numbered = select(w.device, w.window, place).join(tables.devices, d.id == w.device)
    keys = numbered.where(w.model == model, ~d.revoked).subquery()
    loss, expected, labelled = (
        w.report["quality"][name].as_float() for name in ("log_loss", "reference_log_loss", "labelled")
    )
    told = (
        select(
            func.substr(w.last, 1, 10).label("day"), loss.label("loss"), expected.label("expected"),
            func.coalesce(func.nullif(labelled, 0.0), 1.0).label("weight"),
        )
        .join(keys, _same(model, keys))
        .where(keys.c.place <= max(HISTORY, MOST_WINDOWS // max(1, devices)))
        .subquery()
    )  # fmt: skip
    t = told.c
    claimed = func.sum(case((t.expected.is_not(None), t.weight)))
    query = (
        select(
            t.day,
            (func.sum(t.loss * t.weight) / func.sum(t.weight)).label("log_loss"),
            (func.sum(t.expected * t.weight) / claimed).label("reference_log_loss"),
        )
        .where(t.loss.is_not(None))
        .group_by(t.day)
        .order_by(t.day)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _score(row: Row[Any], column: str) -> float | None:
    score = (row.report.get("scores") or {}).get(column)
    return None if score is None else float(score)


def _verdict(row: Row[Any]) -> dict[str, Any]:
    report = row.report
    return {"verdict": report.get("verdict"), "sentence": report.get("sentence"), "version": row.version}


def _merged(connection: Connection, model: str, rows: Collection[Row[Any]]) -> dict[str, Any]:
    """The fleet's sketch of each column, for the release most sites run, with the sites it holds."""
    by_release: dict[str, dict[str, str]] = {}
    for row in rows:
        by_release.setdefault(row.release, {})[row.device] = row.site
    if not by_release:
        return {"release": "", "sites": [], "sketches": {}, "left_out": {}}
    release, sites = max(by_release.items(), key=lambda item: len(item[1]))
    sketches: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for device, documents in _sketches(connection, model, release):
        for column, document in documents.items() if device in sites else ():
            try:
                sketches[column] = merge(sketches[column], document) if column in sketches else document
            except BadSketchError as error:
                left_out[f"{sites[device]}: {column}"] = str(error)
    return {"release": release, "sites": list(sites.values()), "sketches": sketches, "left_out": left_out}


def _sketches(connection: Connection, model: str, release: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """What each device's newest window holds, where it is of the release."""
    w, keys = tables.windows.c, _last(model)
    query = select(w.device, w.report["sketches"].label("sketches")).join(keys, _same(model, keys))
    for row in connection.execute(query.where(w.release == release).order_by(w.device)):
        yield row.device, row.sketches or {}
