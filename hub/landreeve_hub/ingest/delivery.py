"""How delivery stands, device by device."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from landreeve_hub.store import tables
from landreeve_hub.store.database import Store


class Delivery:
    """Counts of facts since the hub's beginning."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def view(self) -> list[dict[str, Any]]:
        """For each device: facts that counted, the newest epoch's high-water mark, metrics dropped on the site,
        repeats suppressed, and messages rejected."""
        return await self._store.read(_view)


def _view(connection: Connection) -> list[dict[str, Any]]:
    device, delivery = tables.devices, tables.delivery
    dropped = dict(
        connection.execute(select(tables.gaps.c.device, func.sum(tables.gaps.c.count)).group_by(tables.gaps.c.device))
        .tuples()
        .all()
    )
    marks: dict[str, int] = {}
    for row in connection.execute(select(tables.highwater).order_by(tables.highwater.c.epoch)):
        marks[row.device] = row.seq
    query = select(device.c.id, device.c.site, delivery).outerjoin(delivery, delivery.c.device == device.c.id)
    return [
        {
            "device": row.id,
            "site": row.site,
            "facts": row.facts or 0,
            "highwater": marks.get(row.id, 0),
            "gaps": int(dropped.get(row.id, 0)),
            "duplicates_suppressed": row.duplicates or 0,
            "rejected": row.rejected or 0,
        }
        for row in connection.execute(query.order_by(device.c.site))
    ]
