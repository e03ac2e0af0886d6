"""How far a model's event time has come."""

from datetime import datetime

from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.stamps import stamp

STRAYS = 5
"""So many samples may lie ahead of event time: one row with a wrong clock, or one tried by hand today while a year
is replayed, must not close a window that still fills or make retention delete everything before it."""


def watermark(db: SqliteDatabase, model: str, until: datetime | None = None) -> str | None:
    """The `at` of the newest sample but ``STRAYS``, read from the index's end; None with fewer samples.

    ``until`` leaves out samples of a later time.
    """
    limit = "" if until is None else " AND at <= ?"
    row = db.conn.execute(
        f"SELECT at FROM samples WHERE model = ?{limit} ORDER BY at DESC LIMIT 1 OFFSET {STRAYS}",  # noqa: S608
        (model,) if until is None else (model, stamp(until)),
    ).fetchone()
    return None if row is None else str(row[0])
