"""What the local API reads from the store: rows as plain documents, newest first."""

from typing import Any

import msgspec
from landreeve.wire.messages import PlanReport
from sqlite_utils import Database as Tables

_MOST = 1000
_JSON_COLUMNS = {"request", "result", "report", "data"}


def transitions(tables: Tables, model: str | None, limit: int, before: int | None) -> list[dict[str, Any]]:
    """Transitions of updates, of one model or of all, each with the version it was about."""
    return _rows(
        tables,
        # The version stands in the log line that the same transaction wrote.
        "SELECT t.*, (SELECT json_extract(e.data, '$.version') FROM events AS e WHERE e.name = 'update.transition' "
        "AND e.subject = t.model AND e.at = t.at AND json_extract(e.data, '$.state') = t.state) AS version "
        "FROM transitions AS t WHERE (?1 IS NULL OR t.model = ?1) AND (?2 IS NULL OR t.n < ?2) "
        "ORDER BY t.n DESC LIMIT ?3",
        (model, before, min(limit, _MOST)),
    )


def events(tables: Tables, limit: int, before: int | None) -> list[dict[str, Any]]:
    """The site's log."""
    return _rows(
        tables,
        "SELECT * FROM events WHERE (?1 IS NULL OR n < ?1) ORDER BY n DESC LIMIT ?2",
        (before, min(limit, _MOST)),
    )


def runs(tables: Tables, limit: int) -> list[dict[str, Any]]:
    """Training runs."""
    return _rows(tables, "SELECT * FROM runs ORDER BY at DESC, id LIMIT ?", (min(limit, _MOST),))


def run(tables: Tables, name: str) -> dict[str, Any] | None:
    """One training run."""
    found = _rows(tables, "SELECT * FROM runs WHERE id = ?", (name,))
    return found[0] if found else None


def windows(tables: Tables, model: str, limit: int) -> list[dict[str, Any]]:
    """Closed windows of a model."""
    return _rows(
        tables, "SELECT * FROM windows WHERE model = ? ORDER BY window DESC LIMIT ?", (model, min(limit, _MOST))
    )


def plan(tables: Tables, model: str, release: str) -> dict[str, Any] | None:
    """What preflight found for that release, or None: it came with an agent of before."""
    sql = "SELECT at, report FROM plans WHERE model = ? AND release = ?"
    row = tables.conn.execute(sql, (model, release)).fetchone()
    if row is None:
        return None
    report = msgspec.json.decode(row[1], type=PlanReport)
    return {**msgspec.to_builtins(report), "at": row[0], "name": report.plan.name}


def _rows(tables: Tables, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    cursor = tables.conn.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [{name: _value(name, value) for name, value in zip(names, row, strict=True)} for row in cursor]


def _value(name: str, value: Any) -> Any:
    if name in _JSON_COLUMNS and isinstance(value, str):
        return msgspec.json.decode(value)
    return value
