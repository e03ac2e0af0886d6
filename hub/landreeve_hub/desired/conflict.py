"""Devices that obey a document this hub has never made: it was restored from an older backup.

It shows by a higher generation, or by another document under the same one.
"""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, or_, select

from landreeve_hub.store.tables import desired, devices

PIECE = 400


def conflicted(connection: Connection, names: Collection[str] | None = None) -> list[Row[Any]]:
    """Those in conflict, of all devices or of these: id, site, the generation they obey and the newest of the hub."""
    if names is None:
        return list(connection.execute(_query()))
    return [
        row for piece in _pieces(sorted(names)) for row in connection.execute(_query().where(devices.c.id.in_(piece)))
    ]


def _pieces(names: list[str]) -> Iterator[list[str]]:
    return (names[i : i + PIECE] for i in range(0, len(names), PIECE))


def _query() -> Select[Any]:
    newest = func.coalesce(desired.c.generation, 0)
    said = func.coalesce(devices.c.doc["document"].as_string(), "")
    other = and_(devices.c.generation == newest, said != "", desired.c.digest != "", said != desired.c.digest)
    return (
        select(devices.c.id, devices.c.site, devices.c.generation, newest.label("newest"))
        .outerjoin(desired, desired.c.device == devices.c.id)
        .where(~devices.c.revoked, or_(devices.c.generation > newest, other))
        .order_by(devices.c.site)
    )
