"""The hub forgets what is old, and nothing it still needs to count right."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.retention import PIECE, Keep, forget
from sqlalchemy import Table, insert, select

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
OLD, YOUNG = rfc3339(NOW - timedelta(days=40)), rfc3339(NOW - timedelta(days=2))
KEEP = Keep(facts_days=30, metrics_days=30, log_days=30)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


async def _add(store: Store, table: Table, rows: list[dict[str, object]]) -> None:
    await store.write(lambda c: c.execute(insert(table), rows).rowcount)


async def _facts(store: Store) -> list[int]:
    return await store.read(lambda c: list(c.execute(select(tables.facts.c.seq)).scalars()))


def _fact(seq: int, received: str, epoch: int = 1) -> dict[str, object]:
    return {"device": "d-1", "epoch": epoch, "seq": seq, "received": received}


async def test_a_fact_above_the_mark_is_never_forgotten(store: Store) -> None:
    await _add(store, tables.highwater, [{"device": "d-1", "epoch": 1, "seq": 4}])
    await _add(store, tables.facts, [_fact(3, OLD), _fact(4, YOUNG), _fact(7, OLD), _fact(2, OLD, epoch=2)])
    assert await forget(store, KEEP, NOW) == 1
    assert sorted(await _facts(store)) == [2, 4, 7]


async def test_old_minutes_and_log_lines_go_young_ones_stay(store: Store) -> None:
    minute = int(NOW.timestamp() // 60)
    rows = [{"device": "d-1", "set": 1, "values": b"", "minute": m} for m in (minute - 50_000, minute - 5)]
    await _add(store, tables.metrics, rows)
    await _add(store, tables.log_lines, [{"device": "d-1", "at": at, "line": at} for at in (OLD, YOUNG)])
    assert await forget(store, KEEP, NOW) == 2
    assert await store.read(lambda c: list(c.execute(select(tables.log_lines.c.line)).scalars())) == [YOUNG]
    assert await forget(store, Keep(0, 0, 0), NOW + timedelta(days=9999)) == 0


async def test_more_than_one_piece_goes_at_once(store: Store) -> None:
    await _add(store, tables.highwater, [{"device": "d-1", "epoch": 1, "seq": 10**6}])
    await _add(store, tables.facts, [_fact(seq, OLD) for seq in range(1, PIECE + 6)])
    assert await forget(store, KEEP, NOW) == PIECE + 5
