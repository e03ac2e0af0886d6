"""The capture spool: each line exactly once, whatever dies between any two steps."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve_agent.intake.spool import Spool
from landreeve_agent.serving.capture import Spool as Writing
from landreeve_agent.store.database import Database

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def line(name: str, **changes: Any) -> bytes:
    body = {
        "id": name, "at": "2026-03-01T11:00:00Z", "model": "m", "version": "1", "release": "r", "row": {"x": 1.0},
        "p": 0.25, "shadow": None, "shadow_release": None, "us": 800, "t": NOW.timestamp(), "err": None,
    }  # fmt: skip
    return json.dumps(body | changes).encode() + b"\n"


def append(folder: Path, name: str, *lines: bytes) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"".join(lines))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written_now(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (NOW.timestamp(), NOW.timestamp()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def database(tmp_path: Path):
    database = Database(tmp_path / "agent.db")
    yield database
    database.close()


async def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    return await database.read(lambda tables: tables.conn.execute(sql).fetchall())


async def test_every_line_becomes_one_sample_and_one_prediction(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a"), line("b"))
    spool = Spool(database, folder)
    assert await spool.drain_all(NOW) == 2
    assert await spool.drain_all(NOW) == 0
    assert await rows(database, "SELECT id, p FROM samples ORDER BY id") == [("a", 0.25), ("b", 0.25)]
    assert await rows(database, "SELECT day, predictions, errors FROM counters") == [("2026-03-01", 2, 0)]


async def test_half_a_line_waits_for_its_rest(database: Database, folder: Path) -> None:
    whole = line("a")
    append(folder, "1-0.jsonl", whole[:20])
    spool = Spool(database, folder)
    assert await spool.drain_all(NOW) == 0
    append(folder, "1-0.jsonl", whole[20:])
    assert await spool.drain_all(NOW) == 1


async def test_a_write_that_failed_moves_neither_rows_nor_offset(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a"), line("b"))
    await database.write(
        lambda tables: tables.conn.execute(
            "CREATE TRIGGER no_b BEFORE INSERT ON samples WHEN NEW.id = 'b' BEGIN SELECT RAISE(ABORT, 'disk'); END"
        )
    )
    with pytest.raises(Exception, match="disk"):
        await Spool(database, folder).drain(NOW)
    assert await rows(database, "SELECT * FROM samples") == []
    assert await rows(database, "SELECT * FROM spool") == []
    await database.write(lambda tables: tables.conn.execute("DROP TRIGGER no_b"))
    assert await Spool(database, folder).drain_all(NOW) == 2


async def test_another_reader_after_a_crash_goes_on_where_the_last_commit_stands(tmp_path: Path, folder: Path) -> None:
    first = Database(tmp_path / "agent.db")
    append(folder, "1-0.jsonl", line("a"))
    await Spool(first, folder).drain_all(NOW)
    first.close()
    append(folder, "1-0.jsonl", line("b"))
    second = Database(tmp_path / "agent.db")
    assert await Spool(second, folder).drain_all(NOW) == 1
    assert await rows(second, "SELECT predictions FROM counters") == [(2,)]
    second.close()


async def test_first_answer_for_an_id_stays_and_the_repeat_is_counted(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a", p=0.1), line("a", p=0.9))
    drained = await Spool(database, folder).drain(NOW)
    assert drained.repeats == 1
    assert await rows(database, "SELECT p FROM samples") == [(0.1,)]
    assert await rows(database, "SELECT predictions FROM counters") == [(1,)]
    assert await rows(database, "SELECT value FROM meta WHERE key = 'intake.repeats'") == [("1",)]


async def test_an_answer_after_a_failed_run_takes_its_place(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a", p=None, err="graph failed"), line("a", p=0.4))
    await Spool(database, folder).drain(NOW)
    assert await rows(database, "SELECT p, err FROM samples") == [(0.4, None)]
    assert await rows(database, "SELECT predictions, errors FROM counters") == [(1, 1)]


async def test_unreadable_line_is_counted_and_stops_nothing(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a"), b'{"id": 7}\n', b"\xff\n", line("b"), line("c", t=1e300))
    drained = await Spool(database, folder).drain(NOW)
    assert (drained.lines, drained.bad) == (2, 3)
    assert await rows(database, "SELECT value FROM meta WHERE key = 'intake.bad_lines'") == [("3",)]


async def test_files_are_read_in_the_order_of_generation_and_number(database: Database, folder: Path) -> None:
    append(folder, "10-0.jsonl", line("a", p=0.3))
    append(folder, "2-1.jsonl", line("a", p=0.2))
    append(folder, "2-0.jsonl", line("a", p=0.1))
    await Spool(database, folder).drain_all(NOW)
    assert await rows(database, "SELECT p FROM samples") == [(0.1,)]


async def test_only_read_files_that_are_no_longer_written_are_deleted(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a"))
    append(folder, "1-1.jsonl", line("b"))
    written_now(folder)
    spool = Spool(database, folder)
    await spool.drain_all(NOW)
    assert (folder / "1-0.jsonl").exists()
    await spool.drain_all(NOW + timedelta(minutes=5))
    assert names(folder) == ["1-1.jsonl"]
    assert await rows(database, "SELECT file FROM spool") == [("1-1.jsonl",)]


async def test_torn_last_line_of_a_dead_worker_does_not_keep_its_file_for_ever(
    database: Database, folder: Path
) -> None:
    append(folder, "1-0.jsonl", line("a"), line("b")[:30])
    append(folder, "2-0.jsonl", line("c"))
    written_now(folder)
    spool = Spool(database, folder)
    assert await spool.drain_all(NOW) == 2
    later = NOW + timedelta(minutes=5)
    await spool.drain_all(later)
    await spool.drain_all(later)
    assert names(folder) == ["2-0.jsonl"]
    assert await rows(database, "SELECT value FROM meta WHERE key = 'intake.bad_lines'") == [("1",)]


async def test_a_line_longer_than_a_chunk_is_read(database: Database, folder: Path) -> None:
    append(folder, "1-0.jsonl", line("a", row={"x": "y" * 3_000_000}), line("b"))
    assert await Spool(database, folder).drain_all(NOW) == 2


async def test_file_that_a_worker_which_is_being_replaced_still_writes_is_not_deleted(
    database: Database, folder: Path
) -> None:
    old = Writing(folder, 1)
    old.append(line("a"))
    append(folder, "2-0.jsonl", line("b"))
    spool, later = Spool(database, folder), NOW + timedelta(days=1)
    written_now(folder)
    assert await spool.drain_all(later) == 2
    old.append(line("c"))  # after an hour without a request
    assert await spool.drain_all(later) == 1
    old.close()
    written_now(folder)
    await spool.drain_all(later)
    assert names(folder) == ["2-0.jsonl"]
