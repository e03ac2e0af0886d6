"""Incidents of devices that do what harms the others: told once in a while, however often they do it."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime

from sqlalchemy import Connection, select

from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import accused
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

log = logging.getLogger(__name__)
AGAIN_S = 600.0


class Accusations:
    """Opens them; `tell` may be called from any thread and returns at once."""

    def __init__(
        self,
        store: Store,
        incidents: Incidents,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._incidents, self._clock, self._monotonic = store, incidents, clock, monotonic
        self._told: dict[tuple[str, str], float] = {}

    def tell(self, harm: Mapping[str, str]) -> "Future[None] | None":
        """Device to what it does (`landreeve_hub.incidents.rules`); the writing of it, when there is anything new."""
        now = self._monotonic()
        fresh = [one for one in harm.items() if now - self._told.get(one, -AGAIN_S) >= AGAIN_S]
        if not fresh:
            return None
        self._told.update(dict.fromkeys(fresh, now))
        writing = self._store.submit(lambda connection: self._record(connection, fresh))
        writing.add_done_callback(_log_failure)
        return writing

    def _record(self, connection: Connection, fresh: list[tuple[str, str]]) -> None:
        now = self._clock()
        for device, what in sorted(fresh):
            site = connection.execute(select(tables.devices.c.site).where(tables.devices.c.id == device)).scalar()
            self._incidents.open_in(connection, now, accused(device, site or device, what))


def _log_failure(writing: "Future[None]") -> None:
    if not writing.cancelled() and (error := writing.exception()) is not None:
        log.error("an incident could not be written down", exc_info=error)
