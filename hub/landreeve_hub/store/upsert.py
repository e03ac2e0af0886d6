"""Insert-or-change, spelt once for both engines."""

from collections.abc import Collection, Mapping
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


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert the row unless one with its primary key exists; whether it was new."""
    keys = [column.name for column in table.primary_key]
    statement = _insert(connection, table).values(row).on_conflict_do_nothing(index_elements=keys)
    return bool(connection.execute(statement).rowcount)


def add(connection: Connection, table: Table, key: Mapping[str, Any], amounts: Mapping[str, int]) -> None:
    """Add the amounts to a row's counters, making the row when there is none."""
    changed = {name: table.c[name] + amount for name, amount in amounts.items()}
    statement = _insert(connection, table).values({**key, **amounts})
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=changed))
