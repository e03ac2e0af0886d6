"""The agent's audit tables as `landreeve.audit` reaches them."""

from collections.abc import Sequence
from typing import Any

import msgspec
from landreeve.audit.entry import Entry
from landreeve.audit.shelf import Shelf
from sqlite_utils import Database as Tables

_COLUMNS = "seq, at, actor, action, object, decision, data, prev, hash, format"
_SEQ, _DATA = 0, 6


class SiteShelf(Shelf):
    """Within a write or a read of the agent's store."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def run(self, sql: str, **values: Any) -> Sequence[Sequence[Any]]:
        return self._tables.conn.execute(sql, values).fetchall()

    def add(self, entry: Entry) -> None:
        row = [getattr(entry, name) for name in _COLUMNS.split(", ")]
        row[_DATA] = msgspec.json.encode(entry.data).decode()
        self._tables.conn.execute(f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608

    def page(self, first: int, last: int) -> list[Entry]:
        rows = self.run(
            f"SELECT {_COLUMNS} FROM audit WHERE seq BETWEEN :first AND :last ORDER BY seq",  # noqa: S608
            first=first,
            last=last,
        )
        named = (dict(zip(_COLUMNS.split(", "), row, strict=True)) for row in rows)
        return [Entry(**{**row, "data": msgspec.json.decode(row["data"])}) for row in named]
