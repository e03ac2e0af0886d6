"""The hub's audit tables as `landreeve.audit` reaches them."""

from collections.abc import Sequence
from typing import Any

import msgspec
from landreeve.audit.entry import Entry
from landreeve.audit.shelf import Shelf
from sqlalchemy import Connection, insert, select, text

from landreeve_hub.store import tables


class HubShelf(Shelf):
    """Within the transaction of ``connection``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(self, sql: str, **values: Any) -> Sequence[Sequence[Any]]:
        result = self._connection.execute(text(sql), values)
        return result.all() if result.returns_rows else ()

    def add(self, entry: Entry) -> None:
        self._connection.execute(insert(tables.audit).values(msgspec.to_builtins(entry)))

    def page(self, first: int, last: int) -> list[Entry]:
        query = select(tables.audit).where(tables.audit.c.seq.between(first, last)).order_by(tables.audit.c.seq)
        return [Entry(**row) for row in self._connection.execute(query).mappings()]
