"""The hub's database: one writer thread that groups commits, and reads beside it.

A commit costs an fsync (about 4 ms on a small disk), so writes that wait together are committed together,
each behind its own savepoint: one that fails takes no other with it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from landreeve.sealed.sqlite import is_sealed, key_for, module, unlock
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from landreeve_hub.store import changes
from landreeve_hub.store.migrate import migrate

T = TypeVar("T")
MAX_GROUP = 64
READERS = 4
WRITERS = 0x6C72
"""The number of PostgreSQL's advisory lock that whoever writes holds."""
PASSING = (OperationalError, InterfaceError, InternalError)
"""The database's own trouble (a full disk, a lock, a lost connection), which passes."""


class StoreClosedError(RuntimeError):
    """The store was asked to work after `Store.close`."""


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[Connection], Any]
    done: Future[Any]


class Store:
    """The hub's tables behind one writer.

    ``url_or_path`` is a file (SQLite, WAL, ``synchronous=FULL``) or an SQLAlchemy URL. Opening migrates the
    tables to this version; ``keys`` open a sealed SQLite file (the newest last) and seal a new one
    (`landreeve.sealed.errors.SealedError`). Functions given to `write` and `read` run in a thread and get a
    `sqlalchemy.Connection` inside a transaction; `write` returns only once that is committed.
    """

    def __init__(self, url_or_path: str | Path, keys: Sequence[bytes] = ()) -> None:
        url = url_or_path if isinstance(url_or_path, str) and "://" in url_or_path else f"sqlite:///{url_or_path}"
        key = _key_for(url, keys)
        self._writer = _engine(url, key, begin="BEGIN IMMEDIATE", query_only=False)
        self._reader = _engine(url, key, begin="BEGIN", query_only=True)
        migrate(self._writer)
        changes.install(self._writer)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._thread = threading.Thread(target=self._work, name="store-write", daemon=True)
        self._thread.start()

    async def write(self, run: Callable[[Connection], T]) -> T:
        """What ``run`` answers, after its changes are on disk; what it raises undoes its changes alone."""
        return await asyncio.wrap_future(self.submit(run))

    def submit(self, run: Callable[[Connection], T]) -> Future[T]:
        """`write` for a thread without an event loop."""
        job = _Job(run, Future())
        with self._lock:
            if self._closed:
                raise StoreClosedError("the hub's store is closed; nothing more can be written")
            self._jobs.put(job)
        return job.done

    async def read(self, run: Callable[[Connection], T]) -> T:
        """What ``run`` answers from one consistent snapshot; it cannot change anything."""
        return await asyncio.wrap_future(self.submit_read(run))

    def submit_read(self, run: Callable[[Connection], T]) -> Future[T]:
        """`read` for a thread without an event loop."""
        return self._readers.submit(self._read, run)

    def close(self) -> None:
        """Finish what is queued and close; safe to call twice."""
        with self._lock:
            already, self._closed = self._closed, True
            if not already:
                self._jobs.put(None)
        self._thread.join()
        self._readers.shutdown()
        self._writer.dispose()
        self._reader.dispose()

    def _read(self, run: Callable[[Connection], T]) -> T:
        with self._reader.connect() as connection, connection.begin():
            return run(connection)

    def _work(self) -> None:
        with self._writer.connect() as connection:
            while (group := self._next_group()) is not None:
                _commit(connection, group)

    def _next_group(self) -> list[_Job] | None:
        """Everything waiting, up to `MAX_GROUP`; None when closed and empty."""
        first = self._jobs.get()
        if first is None:
            return None
        group = [first]
        while len(group) < MAX_GROUP:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            group.append(job)
        return group


def _commit(connection: Connection, group: list[_Job]) -> None:
    """Run the group in one transaction, then tell each caller; a failed commit fails all of them."""
    outcomes: list[tuple[Future[Any], Any]] = []
    try:
        with connection.begin():
            wanted = (job for job in group if job.done.set_running_or_notify_cancel())
            outcomes.extend((job.done, _attempt(connection, job.run)) for job in wanted)
    except Exception as error:  # noqa: BLE001  every caller gets it; the writer must outlive a full disk
        for job in group:
            if not job.done.done():
                job.done.set_exception(error)
        return
    for done, outcome in outcomes:
        if isinstance(outcome, _Failed):
            done.set_exception(outcome.error)
        else:
            done.set_result(outcome)


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


def _attempt(connection: Connection, run: Callable[[Connection], Any]) -> Any:
    savepoint = connection.begin_nested()
    try:
        answer = run(connection)
    except Exception as error:  # noqa: BLE001  handed to the caller, who alone can judge it
        savepoint.rollback()
        return _Failed(error)
    savepoint.commit()
    return answer


def _key_for(url: str, keys: Sequence[bytes]) -> bytes | None:
    """The key of an SQLite file; PostgreSQL is sealed by its own means."""
    path = url.removeprefix("sqlite:///")
    if path == url or path in ("", ":memory:"):
        return None
    return key_for(Path(path), keys) if keys or is_sealed(Path(path)) else None


def _engine(url: str, key: bytes | None, *, begin: str, query_only: bool) -> Engine:
    engine = create_engine(
        url,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        pool_pre_ping="://" in url and not url.startswith("sqlite"),  # a server may have been restarted meanwhile
        **({"module": module()} if key else {}),
    )
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, key, begin, query_only)
    elif query_only:
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    else:
        _take_turns(engine)
    return engine


def _take_turns(engine: Engine) -> None:
    """One writer at a time over all processes, as SQLite's BEGIN IMMEDIATE has it: the audit log, ids and high-water
    marks are read and then written."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")


def _prepare_sqlite(engine: Engine, key: bytes | None, begin: str, query_only: bool) -> None:
    """Pragmas for each connection, and transactions that really begin (sqlite3 delays BEGIN, which breaks
    savepoints: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#pysqlite-serializable)."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        if key is not None:
            unlock(connection, key)
        # Some builds of SQLite alone overwrite what is deleted by default, and an erased person's key must be gone.
        pragmas = ["busy_timeout=10000", "foreign_keys=ON", "synchronous=FULL", "secure_delete=ON"]
        pragmas.append("query_only=ON" if query_only else "journal_mode=WAL")
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
