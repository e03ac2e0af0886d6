"""The hub's store: grouped commits that fail alone, and migrations that match the tables."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store, StoreClosedError
from landreeve_hub.store.upsert import add_many, insert_new, upsert, upsert_many
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub 100%.db")
    yield opened
    opened.close()


def _add_model(name: str) -> Any:
    return lambda connection: connection.execute(insert(tables.models).values(name=name))


def _names(connection: Connection) -> list[str]:
    return list(connection.execute(select(tables.models.c.name).order_by(tables.models.c.name)).scalars())


def test_migrations_make_exactly_the_tables(store: Store) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))

    assert store.submit_read(differences).result() == []


async def test_what_write_answers_is_already_readable(store: Store) -> None:
    await store.write(_add_model("delay"))
    assert await store.read(_names) == ["delay"]


async def test_a_failing_write_takes_no_neighbour_with_it(store: Store) -> None:
    writes = [store.write(_add_model(name)) for name in ("a", "b", "a", "c")]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(outcome, IntegrityError) for outcome in outcomes] == [False, False, True, False]
    assert await store.read(_names) == ["a", "b", "c"]


async def test_a_failing_write_leaves_none_of_its_own_changes(store: Store) -> None:
    def half(connection: Connection) -> None:
        _add_model("half")(connection)
        raise ValueError("second half is missing")

    with pytest.raises(ValueError, match="second half"):
        await store.write(half)
    assert await store.read(_names) == []


async def test_a_read_cannot_change_anything(store: Store) -> None:
    with pytest.raises((OperationalError, InternalError), match=r"read-?only"):
        await store.read(_add_model("sneaked"))


def test_a_closed_store_refuses_work_and_keeps_what_was_queued(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    pending = [store.submit(_add_model(f"m{n}")) for n in range(200)]
    store.close()
    assert all(job.exception() is None for job in pending)
    with pytest.raises(StoreClosedError):
        store.submit(_add_model("late"))
    again = Store(tmp_path / "hub.db")
    assert (
        again.submit_read(lambda c: c.execute(select(func.count()).select_from(tables.models)).scalar()).result() == 200
    )
    again.close()


async def test_documents_come_back_as_they_went_in(store: Store) -> None:
    document = {"columns": [{"name": "wind", "low": 0.5}], "né": None}
    await store.write(lambda c: upsert(c, tables.models, {"name": "m", "definition": document}))
    await store.write(lambda c: upsert(c, tables.models, {"name": "m", "created": "later"}))
    row = await store.read(lambda c: c.execute(select(tables.models)).one())
    assert (row.definition, row.created) == (document, "later")


async def test_upsert_keeps_the_columns_it_is_told_to_keep(store: Store) -> None:
    for created in ("first", "second"):
        await store.write(
            lambda c, at=created: upsert(c, tables.models, {"name": "m", "created": at}, keep=["created"])
        )
    assert await store.read(lambda c: c.execute(select(tables.models.c.created)).scalar()) == "first"


async def test_insert_new_and_add_count_each_thing_once(store: Store) -> None:
    mark = {"device": "d-1", "epoch": 1, "seq": 1}
    assert await store.write(lambda c: insert_new(c, tables.facts, mark))
    assert not await store.write(lambda c: insert_new(c, tables.facts, mark))
    rows = [{"device": "d-1", "facts": 2}, {"device": "d-2", "facts": 1}]
    for _ in range(3):
        await store.write(lambda c: add_many(c, tables.delivery, "device", rows))
    await store.write(lambda c: add_many(c, tables.delivery, "device", []))
    counted = select(tables.delivery.c.facts).order_by(tables.delivery.c.device)
    assert await store.read(lambda c: list(c.execute(counted).scalars())) == [6, 3]


async def test_many_rows_are_inserted_or_changed_in_one_statement(store: Store) -> None:
    for seq in (1, 2):
        rows = [{"device": name, "epoch": 1, "seq": seq} for name in ("d-1", "d-2")]
        await store.write(lambda c, rows=rows: upsert_many(c, tables.highwater, rows))  # type: ignore[misc]
    await store.write(lambda c: upsert_many(c, tables.highwater, []))
    assert await store.read(lambda c: list(c.execute(select(tables.highwater.c.seq)).scalars())) == [2, 2]
