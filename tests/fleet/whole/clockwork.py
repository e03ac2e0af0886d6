"""Time and disks of a simulated fleet: an event loop whose clock jumps to what is due next, and the product's own two
stores with their tables in memory.

The stores are `landreeve_hub.store.database.Store` and `landreeve_agent.store.database.Database` without their threads
and files: the same transactions, one after another. ``image`` is the disk as it is, ``HubKilledError`` a power cut of
the hub at a commit.
"""

import asyncio
import heapq
import itertools
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from landreeve_agent.store.database import Database
from landreeve_hub.store.database import Store, _attempt, _engine, _Failed
from sqlalchemy import Connection
from sqlite_utils import Database as SqliteDatabase

T = TypeVar("T")
Do = Callable[[], Awaitable[None] | None]


class HubKilledError(BaseException):
    """The hub's process is gone, at once: nothing of it may catch this."""


class _Skipping:
    """A selector that watches nothing and lets virtual time pass instead of waiting."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen")
        self._loop.now += max(0.0, timeout)
        return []

    def register(self, *_: Any) -> None: ...
    def unregister(self, *_: Any) -> None: ...

    def get_key(self, fd: Any) -> Any:
        raise KeyError(fd)

    def get_map(self) -> dict[int, Any]:
        return {}

    def close(self) -> None: ...


class VirtualLoop(asyncio.SelectorEventLoop):
    """Work that is given to a thread is done at once."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Skipping(self))  # type: ignore[arg-type]
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self.now

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  handed to whoever awaits it
            future.set_exception(error)
        return future


class Agenda:
    """What happens when, in the order of its time and then of its making."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._queue: list[tuple[float, int, Do]] = []
        self._number = itertools.count()

    def at(self, delay: float, do: Do) -> None:
        heapq.heappush(self._queue, (self._loop.now + delay, next(self._number), do))

    async def until(self, moment: float) -> None:
        """Let everything happen that is due until then."""
        while self._queue and self._queue[0][0] <= moment:
            due = self._queue[0][0]
            if due > self._loop.now:
                await asyncio.sleep(due - self._loop.now)
            _, _, do = heapq.heappop(self._queue)
            if (more := do()) is not None:
                await more
        if moment > self._loop.now:
            await asyncio.sleep(moment - self._loop.now)


# --- the hub's disk ---


class MemoryStore(Store):
    """``deadly`` is asked before and after each commit whether the hub dies there."""

    def __init__(self, image: bytes | None = None) -> None:
        self._writer = _engine("sqlite://", None, begin="BEGIN IMMEDIATE", query_only=False)
        raw = self._writer.raw_connection()
        raw.driver_connection.deserialize(hub_image() if image is None else image)
        self._held = self._writer.connect()
        self.deadly: Callable[[str], bool] = lambda _when: False
        self.commits = 0

    @property
    def image(self) -> bytes:
        raw = self._writer.raw_connection()
        return bytes(raw.driver_connection.serialize())

    async def write(self, run: Callable[[Connection], T]) -> T:
        outcome: Any
        with self._held.begin():
            outcome = _attempt(self._held, run)
            if self.deadly("before"):
                raise HubKilledError
        self.commits += 1
        if self.deadly("after"):
            raise HubKilledError
        if isinstance(outcome, _Failed):
            raise outcome.error
        return outcome

    async def read(self, run: Callable[[Connection], T]) -> T:
        return self.look(run)

    def look(self, run: Callable[[Connection], T]) -> T:
        """`read` for whoever has no loop, also from within a write."""
        if self._held.in_transaction():
            return run(self._held)
        with self._held.begin() as transaction:
            try:
                return run(self._held)
            finally:
                transaction.rollback()

    def submit(self, run: Callable[[Connection], T]) -> Future[T]:
        raise NotImplementedError("no threads here")

    submit_read = submit

    def close(self) -> None:
        self._held.close()
        self._writer.dispose()


@cache
def hub_image() -> bytes:
    """The tables of a hub that has just been set up."""
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder) / "hub.db").close()
        connection = sqlite3.connect(Path(folder) / "hub.db")
        connection.execute("PRAGMA journal_mode=DELETE")
        image = bytes(connection.serialize())
        connection.close()
    return image


# --- a box's disk ---


class MemoryDatabase(Database):
    """Between two writes others may come, as they may between threads."""

    def __init__(self, image: bytes | None, random: Random) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.deserialize(agent_image() if image is None else image)
        self._db = SqliteDatabase(connection)
        self._after: list[Callable[[], None]] = []
        self._random = random
        self.path = Path("memory")

    @property
    def image(self) -> bytes:
        return bytes(self._db.conn.serialize())

    async def write(self, run: Callable[[SqliteDatabase], T]) -> T:
        if self._random.random() < 0.3:
            await asyncio.sleep(0)
        return self.write_now(run)

    def write_now(self, run: Callable[[SqliteDatabase], T]) -> T:
        self._db.conn.execute("BEGIN IMMEDIATE")
        try:
            result = run(self._db)
        except BaseException:
            self._db.conn.execute("ROLLBACK")
            raise
        self._db.conn.execute("COMMIT")
        for callback in self._after:
            callback()
        return result

    async def read(self, run: Callable[[SqliteDatabase], T]) -> T:
        return run(self._db)

    def look(self, run: Callable[[SqliteDatabase], T]) -> T:
        return run(self._db)

    def after_commit(self, callback: Callable[[], None]) -> None:
        self._after.append(callback)

    def close(self) -> None:
        self._db.conn.close()


@cache
def agent_image() -> bytes:
    """The store of an agent that was never started."""
    with tempfile.TemporaryDirectory() as folder:
        Database(Path(folder) / "agent.db").close()
        connection = sqlite3.connect(Path(folder) / "agent.db")
        connection.execute("PRAGMA journal_mode=DELETE")
        image = bytes(connection.serialize())
        connection.close()
    return image
