"""Samples and labels are kept for a while, by their own time.

The age of a sample is measured from the newest sample of its model, not from the wall clock: a replay of an
old year keeps what the year itself would have kept. Times in the future do not count as newest.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlite_utils import Database as Tables

from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment, stamp
from landreeve_agent.store.watermark import watermark

BATCH_ROWS = 5000


@dataclass(frozen=True)
class Retention:
    """Deletes what is older than ``keep_days`` (0 keeps everything)."""

    database: Database
    keep_days: float

    async def run(self, now: datetime) -> int:
        """The number of samples and labels deleted."""
        if self.keep_days <= 0:
            return 0
        newest = await self.database.read(lambda tables: _newest(tables, now))
        deleted = 0
        for model, at in newest.items():
            cutoff = stamp(moment(at) - timedelta(days=self.keep_days))
            deleted += await self._delete("samples", model, cutoff)
            deleted += await self._delete("labels", model, cutoff)
        return deleted

    async def _delete(self, table: str, model: str, cutoff: str) -> int:
        deleted = 0
        while True:
            # Small transactions: predictions are captured in between.
            count = await self.database.write(lambda tables: _delete_batch(tables, table, model, cutoff))
            deleted += count
            if count < BATCH_ROWS:
                return deleted


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
