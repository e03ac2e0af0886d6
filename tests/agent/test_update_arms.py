"""What came of each arm of a split: from spool lines of today and of before, and labels that come late."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve_agent.intake.spool import Spool
from landreeve_agent.serving.split import unit_of
from landreeve_agent.store.database import Database
from landreeve_agent.store.migrations import migrations
from landreeve_agent.update import arms
from sqlite_utils import Database as Tables

NOW = datetime(2026, 11, 29, 3, 0, tzinfo=UTC)
A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "agent.db")
    yield database
    database.close()


def line(name: str, release: str, **more: Any) -> bytes:
    row = {"id": name, "model": "demo", "version": release[0], "release": release, "row": {"x": 1.0}, "p": 0.25}
    return msgspec.json.encode({**row, "us": 900, "t": 1_795_000_000.0, **more}) + b"\n"


def assigned(name: str, key: str, new: str, good: str, share: float, **more: Any) -> bytes:
    """A line as the worker writes it for a key."""
    unit = unit_of("demo", key)
    arm = "new" if int(unit, 16) / 2**64 < share else "good"
    release, against = (new, good) if arm == "new" else (good, new)
    return line(name, release, unit=unit, by="key", arm=arm, against=against, share=share, **more)


def spooled(folder: Path, *lines: bytes) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(list(folder.iterdir())) + 1:020d}-000000.jsonl"
    path.write_bytes(b"".join(lines))


async def drained(database: Database, folder: Path, *lines: bytes) -> None:
    spooled(folder, *lines)
    await Spool(database, folder).drain_all(NOW)


async def label(database: Database, labels: dict[str, float]) -> None:
    rows = [{"model": "demo", "id": name, "label": value, "at": "", "received": ""} for name, value in labels.items()]
    await database.write(lambda tables: tables["labels"].insert_all(rows) and None)


async def read(database: Database) -> list[arms.Split]:
    return await database.read(lambda tables: arms.splits(tables, "demo"))


async def test_outcome_of_each_arm_follows_from_late_labels_each_key_counting_once(
    database: Database, tmp_path: Path
) -> None:
    """One key asks fifty times: it is one customer, whatever it makes the mean of the rows."""
    keys = [f"k{n}" for n in range(400)]
    rows = [(f"{key}-{i}", key) for key in keys for i in range(50 if key == "k0" else 1)]
    await drained(database, tmp_path / "spool", *(assigned(name, key, B, A, 0.5) for name, key in rows))
    (before,) = await read(database)
    assert (before.difference, [arm.outcome for arm in before.arms]) == (None, [None, None])
    bought = random.Random(7)
    new = {key for key in keys if int(unit_of("demo", key), 16) / 2**64 < 0.5}
    per_key = {key: float(bought.random() < (0.6 if key in new else 0.3)) for key in keys} | {"k0": 1.0}
    await label(database, {name: per_key[key] for name, key in rows})
    (after,) = await read(database)
    ours, theirs = after.arms
    assert (ours.arm, ours.release, ours.keys, theirs.keys) == ("new", B, len(new), 400 - len(new))
    assert ours.rows + theirs.rows == 449
    assert ours.outcome == pytest.approx(sum(per_key[key] for key in new) / len(new))
    assert theirs.outcome == pytest.approx(sum(v for key, v in per_key.items() if key not in new) / (400 - len(new)))
    assert after.difference is not None
    assert after.difference_low is not None
    assert after.difference_low > 0
    assert (after.share, after.mismatch) == (0.5, False)


async def test_rows_that_no_split_chose_count_for_no_arm(database: Database, tmp_path: Path) -> None:
    spool = [line("plain", B), assigned("k", "k1", B, A, 0.5), line("asked", A)]
    await drained(database, tmp_path / "spool", *spool)
    (split,) = await read(database)
    assert sum(arm.rows for arm in split.arms) == 1


async def test_two_splits_with_one_version_in_common_are_told_apart(database: Database, tmp_path: Path) -> None:
    first = [assigned(f"a{n}", f"k{n}", B, A, 0.5) for n in range(20)]
    second = [assigned(f"b{n}", f"k{n}", B, C, 0.5, t=1_796_000_000.0) for n in range(20)]
    await drained(database, tmp_path / "spool", *first, *second)
    newest, older = await read(database)
    assert [arm.release for arm in newest.arms] == [B, C]
    assert [arm.release for arm in older.arms] == [B, A]
    assert sum(arm.rows for arm in newest.arms) == sum(arm.rows for arm in older.arms) == 20


async def test_arms_of_another_size_than_was_asked_for_are_called_out(database: Database, tmp_path: Path) -> None:
    lines = [assigned(f"a{n}", f"k{n}", B, A, 0.5) for n in range(600)]
    lost = [one for n, one in enumerate(lines) if b'"arm":"good"' in one or n % 2]  # half of one arm is not captured
    await drained(database, tmp_path / "whole", *lines)
    assert [split.mismatch for split in await read(database)] == [False]
    other = Database(tmp_path / "other.db")
    await drained(other, tmp_path / "lost", *lost)
    assert [split.mismatch for split in await read(other)] == [True]
    other.close()


async def test_growing_share_has_no_proportion_to_be_held_to(database: Database, tmp_path: Path) -> None:
    lines = [assigned(f"{s}-{n}", f"k{n}", B, A, s) for s in (0.1, 0.5) for n in range(100)]
    await drained(database, tmp_path / "spool", *lines)
    (split,) = await read(database)
    assert (split.share, split.mismatch) == (None, False)


async def test_answer_after_a_failed_run_brings_its_own_assignment(database: Database, tmp_path: Path) -> None:
    failed = assigned("r", "k1", B, A, 0.999, p=None, err="no luck")
    again = assigned("r", "k1", B, A, 0.0001)
    await drained(database, tmp_path / "spool", failed, again)
    (split,) = await read(database)
    assert [(arm.arm, arm.rows) for arm in split.arms] == [("new", 0), ("good", 1)]


def test_store_of_before_takes_the_columns_and_keeps_its_rows(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "agent.db")
    migrations.apply(tables, stop_before="arms")
    old = {"model": "demo", "id": "s1", "at": "", "row": "{}", "p": 0.5, "captured": "2026"}
    tables["samples"].insert(old)
    assert "unit" not in tables["samples"].columns_dict
    tables.close()
    database = Database(tmp_path / "agent.db")
    database.close()
    reopened = Tables(tmp_path / "agent.db")
    assert [(row["id"], row["unit"], row["arm"]) for row in reopened["samples"].rows] == [("s1", None, None)]
    assert arms.splits(reopened, "demo") == []
    reopened.close()
