"""What devices may have asked of them in a day, counted in the store: a hub that starts again has forgotten nothing."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, select

from landreeve_hub.errors import QuotaError
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.upsert import upsert

DAY = timedelta(days=1)


class Quota:
    """``bytes_a_day`` for each device, over any 24 hours by the hub's ``clock``."""

    def __init__(self, store: Store, bytes_a_day: int, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._bytes_a_day = bytes_a_day
        self._clock = clock

    async def charge(self, device: str, digest: str, size: int) -> None:
        """Count an artifact of ``size`` bytes, once however often it is tried within its day. `QuotaError` with what
        is used and when enough of it is free again; nothing is counted then."""
        await self._store.write(lambda connection: self._charge(connection, device, digest, size))

    def _charge(self, connection: Connection, device: str, digest: str, size: int) -> None:
        table, now = tables.upload_charges, self._clock()
        # A clock that was set back leaves moments to come: they count, and go when their day is over.
        connection.execute(delete(table).where(table.c.at <= rfc3339(now - DAY)))
        query = select(table).where(table.c.device == device, table.c.digest != digest).order_by(table.c.at)
        others = connection.execute(query).all()
        used = sum(row.bytes for row in others)
        if used + size > self._bytes_a_day:
            raise QuotaError(self._refusal(device, size, used, others))
        row = {"device": device, "digest": digest, "bytes": size, "at": rfc3339(now)}
        upsert(connection, table, row, keep=["at"])

    def _refusal(self, device: str, size: int, used: int, others: Sequence[Any]) -> str:
        said = (
            f"{device} offers {size:,} bytes on top of {used:,} within a day; its quota is "
            f"{self._bytes_a_day:,} (transfer.quota_mb)"
        )
        if size > self._bytes_a_day:
            return f"{said}, less than this alone: raise the setting to let it in"
        for row in others:
            used -= row.bytes
            if used + size <= self._bytes_a_day:
                return f"{said}; there is room again from {rfc3339(parse_rfc3339(row.at) + DAY)}"
        return said
