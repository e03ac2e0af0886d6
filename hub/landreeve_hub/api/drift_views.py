"""Drift of one model over the fleet: features by site, and the sites' sketches merged."""

from collections.abc import Iterable
from typing import Any

from landreeve.sketch.document import merge
from landreeve.sketch.errors import BadSketchError
from sqlalchemy import Connection, Row, select

from landreeve_hub.api.views import window_row
from landreeve_hub.store import tables


def drift(connection: Connection, model: str) -> dict[str, Any]:
    """``matrix[column][site]`` is the newest window's score; ``merged`` the sketches of all sites' newest windows.

    Sketches merge only within one release: another release may have been trained with other bins.
    """
    windows, devices = tables.windows, tables.devices
    query = (
        select(windows, devices.c.site)
        .join(devices, devices.c.id == windows.c.device)
        .where(windows.c.model == model, ~devices.c.revoked)
        .order_by(windows.c.window)
    )
    rows = list(connection.execute(query).all())
    newest = {row.site: row for row in rows}
    columns = sorted({column for row in newest.values() for column in row.report.get("scores") or {}})
    return {
        "model": model,
        "columns": columns,
        "sites": sorted(newest),
        "matrix": {column: {site: _score(row, column) for site, row in newest.items()} for column in columns},
        "thresholds": {site: row.report.get("thresholds") or {} for site, row in newest.items()},
        "verdicts": {site: _verdict(row) for site, row in newest.items()},
        "windows": [{**window_row(row), "site": row.site} for row in rows],
        "merged": _merged(newest.values()),
    }


def _score(row: Row[Any], column: str) -> float | None:
    score = (row.report.get("scores") or {}).get(column)
    return None if score is None else float(score)


def _verdict(row: Row[Any]) -> dict[str, Any]:
    report = row.report
    return {"verdict": report.get("verdict"), "sentence": report.get("sentence"), "version": row.version}


def _merged(rows: Iterable[Row[Any]]) -> dict[str, Any]:
    """The fleet's sketch of each column, for the release most sites run, with the sites it holds."""
    by_release: dict[str, list[Row[Any]]] = {}
    for row in rows:
        by_release.setdefault(row.release, []).append(row)
    if not by_release:
        return {"release": "", "sites": [], "sketches": {}, "left_out": {}}
    release, members = max(by_release.items(), key=lambda item: len(item[1]))
    sketches: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for row in members:
        for column, document in (row.report.get("sketches") or {}).items():
            try:
                sketches[column] = merge(sketches[column], document) if column in sketches else document
            except BadSketchError as error:
                left_out[f"{row.site}: {column}"] = str(error)
    return {"release": release, "sites": [row.site for row in members], "sketches": sketches, "left_out": left_out}
