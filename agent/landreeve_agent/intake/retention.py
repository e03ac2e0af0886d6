"""Samples and labels are kept for a while, by their own time.

The age of a sample is measured from the newest sample of its model, not from the wall clock: a replay of an
old year keeps what the year itself would have kept. Times in the future do not count as newest.

Nor does a time that was reached too fast: a box whose clock says 2090 gives its rows that date, and would else forget
all that it has. How far time has come is kept, and goes forward at most `DAY_AN_HOUR` as fast as it really passes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlite_utils import Database as Tables

from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment, stamp
from landreeve_agent.store.watermark import watermark

BATCH_ROWS = 5000
DAY_AN_HOUR = 24.0
_REACHED = "retention.reached."


@dataclass(frozen=True)
class Retention:
    """Deletes what is older than ``keep_days`` (0 keeps everything)."""

    database: Database
    keep_days: float
    monotonic: Callable[[], float] = time.monotonic
    _looked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._looked.append(self.monotonic())

    async def run(self, now: datetime) -> int:
        """The number of samples and labels deleted."""
        ran = timedelta(seconds=self._since_last() * DAY_AN_HOUR)
        if self.keep_days <= 0:
            return 0
        newest = await self.database.read(lambda tables: _newest(tables, now))
        deleted = 0
        for model, at in newest.items():
            believed = await self.database.write(lambda tables, m=model, a=at: _reached(tables, m, moment(a), ran))  # type: ignore[misc]
            cutoff = stamp(believed - timedelta(days=self.keep_days))
            deleted += await self._delete("samples", model, cutoff)
            deleted += await self._delete("labels", model, cutoff)
        return deleted

    def _since_last(self) -> float:
        """Seconds since this was asked last, or since it was made."""
        now, before = self.monotonic(), self._looked[0]
        self._looked[0] = now
        return now - before

    async def _delete(self, table: str, model: str, cutoff: str) -> int:
        deleted = 0
        while True:
            # Small transactions: predictions are captured in between.
            count = await self.database.write(lambda tables: _delete_batch(tables, table, model, cutoff))
            deleted += count
            if count < BATCH_ROWS:
                return deleted


def _reached(tables: Tables, model: str, at: datetime, ran: timedelta) -> datetime:
    """How far the model's time is believed to have come: as far as its rows say, and not faster than it can."""
    row = tables.conn.execute("SELECT value FROM meta WHERE key = ?", (_REACHED + model,)).fetchone()
    believed = at if row is None else min(at, moment(row[0]) + ran)
    tables.conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_REACHED + model, stamp(believed)))
    return believed


def _newest(tables: Tables, now: datetime) -> dict[str, str]:
    models = [str(row[0]) for row in tables.conn.execute("SELECT model FROM kept")]
    reached = {model: watermark(tables, model, now) for model in models}
    return {model: at for model, at in reached.items() if at is not None}


def _delete_batch(tables: Tables, table: str, model: str, cutoff: str) -> int:
    sql = (
        f"DELETE FROM {table} WHERE (model, id) IN "  # noqa: S608 - the table is one of two literals above
        f"(SELECT model, id FROM {table} WHERE model = ? AND at < ? LIMIT {BATCH_ROWS})"
    )
    return int(tables.conn.execute(sql, (model, cutoff)).rowcount)
