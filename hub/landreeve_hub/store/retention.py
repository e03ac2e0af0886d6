"""What the hub forgets in time, a piece at a time so that nothing waits long behind it.

A fact's row guards against counting it twice only while it lies above the high-water mark: at or below, the mark
itself does. Rows above it are never forgotten, however old.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Table, delete, exists, select, tuple_

from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

PIECE = 2000


@dataclass(frozen=True, slots=True)
class Keep:
    """Days to keep; 0 keeps for ever."""

    facts_days: float
    metrics_days: float
    log_days: float


async def forget(store: Store, keep: Keep, now: datetime) -> int:
    """Delete what is older than it has to be kept; how many rows that were."""
    return sum([await _all_of(store, one) for one in _old(keep, now)])


async def _all_of(store: Store, piece: Callable[[Connection], int]) -> int:
    total = 0
    while count := await store.write(piece):
        total += count
    return total


def _old(keep: Keep, now: datetime) -> list[Callable[[Connection], int]]:
    facts, metrics, lines = tables.facts, tables.metrics, tables.log_lines
    mark = tables.highwater
    passed = exists().where(mark.c.device == facts.c.device, mark.c.epoch == facts.c.epoch, mark.c.seq >= facts.c.seq)
    found: list[Callable[[Connection], int]] = []
    if keep.facts_days:
        since = rfc3339(now - timedelta(days=keep.facts_days))
        found.append(_piece(facts, (facts.c.received < since) & passed))
    if keep.metrics_days:
        minute = int((now - timedelta(days=keep.metrics_days)).timestamp() // 60)
        found.append(_piece(metrics, metrics.c.minute < minute))
    if keep.log_days:
        found.append(_piece(lines, lines.c.at < rfc3339(now - timedelta(days=keep.log_days))))
    return found


def _piece(table: Table, old: ColumnElement[bool]) -> Callable[[Connection], int]:
    """Deletes some of the old rows; how many."""
    key = tuple_(*table.primary_key.columns)
    some = select(*table.primary_key.columns).where(old).limit(PIECE)
    return lambda connection: connection.execute(delete(table).where(key.in_(some))).rowcount
