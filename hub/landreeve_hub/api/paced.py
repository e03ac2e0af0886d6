"""Answers over the whole fleet that many pages ask for every second."""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import Connection

from landreeve_hub.store.database import Store

T = TypeVar("T")
LARGE = 500
"""Below so many devices an answer is made anew for everybody."""
SHARE = 20
"""Making a large one takes at most one part in so many of one core."""
OLDEST_S = 60.0


class Paced(Generic[T]):
    """What ``make`` reads, kept for a while where the fleet is large: as long as making it took, times `SHARE`.

    ``size`` tells of an answer how many devices it speaks of. Whoever asks while one is being made waits for that one.
    """

    def __init__(self, store: Store, make: Callable[[Connection], T], size: Callable[[T], int]) -> None:
        self._store = store
        self._make = make
        self._size = size
        self._kept: tuple[float, T] | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        """The answer, at most `OLDEST_S` old."""
        async with self._lock:
            if self._kept and time.monotonic() < self._kept[0]:
                return self._kept[1]
            made, cost_s = await self._store.read(self._timed)
            large = self._size(made) > LARGE
            self._kept = (time.monotonic() + min(cost_s * SHARE, OLDEST_S), made) if large else None
            return made

    def _timed(self, connection: Connection) -> tuple[T, float]:
        began = time.thread_time()
        made = self._make(connection)
        return made, time.thread_time() - began
