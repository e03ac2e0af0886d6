"""The store: whole writes, shared commits, reads of one moment."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from landreeve_agent.store.database import Database, StoreError
from sqlite_utils import Database as SqliteDatabase


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "agent.db")
    yield database
    database.close()


def put(key: str, value: str = "x"):
    def run(db: SqliteDatabase) -> str:
        db.conn.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
        return key

    return run


def keys(db: SqliteDatabase) -> list[str]:
    return [row[0] for row in db.conn.execute("SELECT key FROM meta ORDER BY key")]


async def test_write_returns_the_functions_value(database: Database) -> None:
    assert await database.write(put("a")) == "a"
    assert await database.read(keys) == ["a"]


async def test_failed_write_undoes_only_itself(database: Database) -> None:
    def bad(db: SqliteDatabase) -> None:
        put("half")(db)
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(put("a")), database.write(bad), database.write(put("b")), return_exceptions=True
    )
    assert [str(r) for r in results] == ["a", "no", "b"]
    assert await database.read(keys) == ["a", "b"]


async def test_waiting_writes_share_one_commit(database: Database) -> None:
    commits: list[int] = []
    database.after_commit(lambda: commits.append(1))
    await asyncio.gather(*(database.write(put(f"k{n:03}")) for n in range(200)))
    assert len(await database.read(keys)) == 200
    assert len(commits) < 100


async def test_write_that_ends_the_transaction_fails_its_whole_group(database: Database) -> None:
    with pytest.raises(sqlite3.Error):
        await database.write(lambda db: db.conn.rollback())
    assert await database.write(put("after")) == "after"
    assert await database.read(keys) == ["after"]


async def test_read_cannot_write(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await database.read(put("a"))
    assert await database.write(put("a")) == "a"


async def test_wrong_kind_of_value_is_refused_where_it_is_written(database: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="cannot store"):
        await database.write(lambda db: db.conn.execute("INSERT INTO spool VALUES ('f', 'far', 0)"))


async def test_cancelled_waiting_write_leaves_no_trace(database: Database) -> None:
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(_db: SqliteDatabase) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(10)

    first = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(database.write(put("never")))
    await asyncio.sleep(0)
    second.cancel()
    gate.set()
    await first
    assert await database.read(keys) == []


async def test_closed_store_says_so(tmp_path: Path) -> None:
    database = Database(tmp_path / "agent.db")
    database.close()
    database.close()
    with pytest.raises(StoreError, match="closed"):
        await database.write(put("a"))
    with pytest.raises(StoreError, match="closed"):
        await database.read(keys)


def test_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match=r"agent\.db.*moved away"):
        Database(path)


async def test_reopening_keeps_everything_and_migrates_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        database = Database(tmp_path / "agent.db")
        await database.write(put(name))
        database.close()
    database = Database(tmp_path / "agent.db")
    assert await database.read(keys) == ["a", "b"]
    mode = await database.read(lambda db: db.conn.execute("PRAGMA journal_mode").fetchone()[0])
    database.close()
    assert mode == "wal"


WRITER = """
import asyncio, sys
from pathlib import Path
from landreeve_agent.store.database import Database

async def main():
    database = Database(Path(sys.argv[1]))
    for n in range(100000):
        await database.write(lambda db: db.conn.execute("INSERT INTO meta VALUES (?, '')", (f"{n:06}",)))
        print(n, flush=True)

asyncio.run(main())
"""


def write_until_killed(path: Path) -> int:
    """The last number whose write had returned when a writing process was killed."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 20:
            break
    os.kill(child.pid, signal.SIGKILL)
    said = [int(line), *(int(rest) for rest in child.stdout)]
    child.wait()
    child.stdout.close()
    return said[-1]


async def test_returned_write_survives_kill_nine(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    last = await asyncio.to_thread(write_until_killed, path)
    database = Database(path)
    kept = await database.read(keys)
    database.close()
    assert kept[: last + 1] == [f"{n:06}" for n in range(last + 1)]
