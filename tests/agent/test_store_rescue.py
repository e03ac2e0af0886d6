"""A damaged store is set aside and kept, an empty one serves; whole, sealed and busy ones are left as they are."""

import asyncio
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve_agent.store.database import Database, StoreError
from landreeve_agent.store.rescue import attend, open_store
from sqlite_utils import Database as SqliteDatabase

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
PAGE = 4096


def made(path: Path) -> None:
    """A store with rows on many pages."""
    database = Database(path)

    def fill(db: SqliteDatabase) -> None:
        db.conn.executemany("INSERT INTO meta VALUES (?, ?)", [(f"k{n}", "x" * 500) for n in range(500)])

    asyncio.run(database.write(fill))
    database.close()


def rows(database: Database) -> int:
    return int(asyncio.run(database.read(lambda db: db.conn.execute("SELECT count(*) FROM meta").fetchone()))[0])


def spoil(path: Path, begin: int) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(begin)
        file.write(b"\xa5" * (size - begin))


@pytest.mark.parametrize("begin", [0, PAGE], ids=["head", "pages"])
def test_damaged_store_is_set_aside_and_kept(tmp_path: Path, begin: int) -> None:
    path = tmp_path / "agent.db"
    made(path)
    spoil(path, begin)
    database = open_store(path, [], NOW)
    assert database.set_aside is not None
    assert database.set_aside.name == "agent.db.damaged-20261201T120000000000"
    assert database.set_aside.stat().st_size > 100 * PAGE
    assert rows(database) < 10
    database.close()


def test_whole_store_stays_also_when_the_last_run_doubted_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    made(path)
    Database.mark_of(path).touch()
    database = open_store(path, [], NOW)
    assert (database.set_aside, rows(database) >= 500) == (None, True)
    database.close()
    assert not Database.mark_of(path).exists()


def test_sealed_store_without_its_key_is_an_error_and_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    path.write_bytes(b"\xa5" * PAGE * 4)
    with pytest.raises(StoreError):
        open_store(path, [b"k" * 32], NOW)
    assert path.exists()


async def test_damage_that_shows_while_it_runs_asks_for_a_restart_which_looks_at_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    await asyncio.to_thread(made, path)
    with sqlite3.connect(path) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'meta'").fetchone()
    db.close()
    database, asked, told = Database(path), asyncio.Event(), []
    attend(database, told.append, asked.set)
    with path.open("r+b") as file:
        file.seek((root - 1) * PAGE)
        file.write(b"\xa5" * PAGE)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        await database.read(lambda db: db.conn.execute("SELECT sum(length(value)) FROM meta").fetchone())
    async with asyncio.timeout(5):
        await asked.wait()
    await asyncio.to_thread(database.close)
    again = await asyncio.to_thread(open_store, path, [], NOW)
    attend(again, told.append, asked.set)
    assert [(event.name, event.severity) for event in told] == [("store.damaged", "error")]
    again.close()
