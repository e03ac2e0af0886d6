"""Insert-or-change, spelt once for both engines."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def _insert(connection: Connection, table: Table) -> Any:
    # SQLAlchemy has no common type for the two dialects' ON CONFLICT; both answer to the same names.
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def upsert(connection: Connection, table: Table, row: Mapping[str, Any], *, keep: Collection[str] = ()) -> None:
    """Insert the row, or change the one with its primary key; columns in ``keep`` are only set at first."""
    keys = [column.name for column in table.primary_key]
    changed = {name: value for name, value in row.items() if name not in keys and name not in keep}
    statement = _insert(connection, table).values(row)
    if changed:
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=keys))


def upsert_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same for many rows of the same columns, in one statement."""
    if not rows:
        return
    keys = [column.name for column in table.primary_key]
    statement = _insert(connection, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), list(rows))


def add_many(connection: Connection, table: Table, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add amounts to counters, in one statement: each row has its ``key`` and the same amounts; what is not there is
    made."""
    if not rows:
        return
    statement = _insert(connection, table)
    changed = {name: table.c[name] + statement.excluded[name] for name in rows[0] if name != key}
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed), list(rows))


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert the row unless one with its primary key exists; whether it was new."""
    keys = [column.name for column in table.primary_key]
    statement = _insert(connection, table).values(row).on_conflict_do_nothing(index_elements=keys)
    # Not by the row count: PostgreSQL's driver knows none where SQLAlchemy asks for keys.
    return connection.execute(statement.returning(table.c[keys[0]])).first() is not None
