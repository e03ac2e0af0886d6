"""The fleet as the broker needs to know it."""

from sqlalchemy import Connection, select

from landreeve_hub.broker.plan import Guests
from landreeve_hub.store import tables


def guests(connection: Connection) -> Guests:
    """Who may come in: every device that is enrolled, less those that were revoked."""
    rows = connection.execute(select(tables.devices.c.id, tables.devices.c.revoked)).all()
    return Guests(frozenset(row.id for row in rows), frozenset(row.id for row in rows if row.revoked))
