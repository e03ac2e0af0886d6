"""SQLite behind one writer thread and a few readers.

Every write is a function of the connection; it runs whole or not at all. Writes that wait at the same time
share one commit (an fsync takes about 4 ms, so single commits end near 250 a second), each inside its own
savepoint: one that fails undoes itself and nobody else. A write has returned only when it is on the disk
(WAL, ``synchronous=FULL``).
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from landreeve.sealed.errors import SealedError
from landreeve.sealed.sqlite import connect, is_sealed, key_for, module
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.migrations import migrations

logger = logging.getLogger(__name__)

T = TypeVar("T")
GROUP_LIMIT = 64
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
BUSY_TIMEOUT_S = 30.0


class StoreError(Exception):
    """The store cannot be used as it is; the text says what is wrong and what to do."""


@dataclass(slots=True)
class _Write:
    run: Callable[[SqliteDatabase], Any]
    future: Future[Any] = field(default_factory=Future)


class Database:
    """The agent's database file, created and migrated when needed. Safe to use from any task of one loop."""

    def __init__(self, path: Path, *, readers: int = 2, keys: Sequence[bytes] = ()) -> None:
        """Raises `StoreError` when the file cannot be opened, written or migrated.

        ``keys`` open a sealed store (the newest last) and seal a new one; a plain file is opened as it is.
        """
        self.path = path
        self.set_aside: Path | None = None  # the damaged store whose place this one took
        self.on_damage: Callable[[], None] = lambda: None  # called in one of its threads, once
        self.before_close: Callable[[], None] = lambda: None  # called when nobody writes any more
        self._damaged = False
        self._key = _key_for(path, keys)
        self._writer_connection = _prepare(path, self._key)
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._after_commit: list[Callable[[], None]] = []
        self._closing = threading.Lock()
        self._closed = False
        self._local = threading.local()
        self._read_connections: list[SqliteDatabase] = []
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store-read")
        self._writer = threading.Thread(target=self._write_forever, name="store-write", daemon=True)
        self._writer.start()

    async def write(self, run: Callable[[SqliteDatabase], T]) -> T:
        """What ``run(db)`` returns, after its changes are on the disk; its exception undoes them all.

        A caller cancelled before its turn leaves no trace; one cancelled later does not stop the write.
        """
        item = _Write(run)
        with self._closing:
            if self._closed:
                raise StoreError(f"{self.path} is closed: no write is possible any more")
            self._queue.put(item)
        return cast("T", await asyncio.wrap_future(item.future))

    def write_now(self, run: Callable[[SqliteDatabase], T]) -> T:
        """The same for a caller without an event loop, which it blocks."""
        item = _Write(run)
        self._queue.put(item)
        return cast("T", item.future.result())

    @property
    def connection(self) -> SqliteDatabase:
        """The writer's own: for callbacks after a commit and before the end."""
        return self._writer_connection

    async def read(self, run: Callable[[SqliteDatabase], T]) -> T:
        """What ``run(db)`` returns, seeing one moment of the database; a write inside it fails."""
        if self._closed:
            raise StoreError(f"{self.path} is closed: no read is possible any more")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, run)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Calls it in the writer's thread after each commit, before the writers of that commit go on."""
        self._after_commit.append(callback)

    @staticmethod
    def mark_of(path: Path) -> Path:
        """The file that says a run met damage in the store, for the next start to look at it."""
        return path.with_name(f"{path.name}.suspect")

    def close(self) -> None:
        """Finishes the writes that wait, then closes the file. Harmless when repeated."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        self._readers.shutdown(wait=True)
        with contextlib.suppress(sqlite3.Error):  # a damaged store must be closed as well
            self.before_close()
        for db in (*self._read_connections, self._writer_connection):
            db.conn.close()

    def _write_forever(self) -> None:
        more = True
        while more:
            group, more = self._next_group()
            if group:
                self._commit(group)

    def _next_group(self) -> tuple[list[_Write], bool]:
        """The writes that wait now, at least one unless the end was asked for."""
        group: list[_Write] = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) >= GROUP_LIMIT:
                return group, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, True
        return group, False

    def _commit(self, group: list[_Write]) -> None:
        live = [item for item in group if item.future.set_running_or_notify_cancel()]
        if not live:
            return
        done: list[tuple[_Write, Any]] = []
        try:
            with _transaction(self._writer_connection) as db:
                done = [(item, result) for item in live for result in self._run(db, item)]
        except BaseException as error:  # noqa: BLE001 - handed to every caller, whose write did not happen
            self._examine(error)
            for item in live:
                if not item.future.done():
                    item.future.set_exception(error)
            return
        self._tell()
        for item, result in done:
            item.future.set_result(result)

    def _run(self, db: SqliteDatabase, item: _Write) -> list[Any]:
        """The result as a list of one; empty when it failed, its savepoint undone and its caller told."""
        try:
            with db.atomic():
                result = item.run(db)
        except BaseException as error:
            if not db.conn.in_transaction:
                raise  # the whole group is gone with it (disk full, a RAISE(ROLLBACK), a stray COMMIT)
            self._examine(error)
            item.future.set_exception(error)
            return []
        return [result]

    def _tell(self) -> None:
        for callback in self._after_commit:
            try:
                callback()
            except Exception:
                logger.exception("after-commit callback %r failed", callback)

    def _read(self, run: Callable[[SqliteDatabase], T]) -> T:
        db = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = _connect(self.path, self._key)
            db.conn.execute("PRAGMA query_only=ON")
            self._read_connections.append(db)
        db.conn.execute("BEGIN")
        try:
            return run(db)
        except sqlite3.DatabaseError as error:
            self._examine(error)
            raise
        finally:
            db.conn.rollback()

    def _examine(self, error: BaseException) -> None:
        """Damage shows in the middle of work; nothing in this process can mend it."""
        if self._damaged or not is_damage(error):
            return
        self._damaged = True
        logger.error("store %s: %s", self.path, error)
        with contextlib.suppress(OSError):
            self.mark_of(self.path).touch()
        self.on_damage()


def is_damage(error: BaseException | None) -> bool:
    """Whether the error says that the file is no whole database, as against one that is busy or a disk that is full."""
    code = error.sqlite_errorcode if isinstance(error, sqlite3.DatabaseError) else None
    return code is not None and code & 0xFF in _DAMAGE


class _transaction:  # noqa: N801 - reads as a verb where it is used
    """``BEGIN IMMEDIATE`` to ``COMMIT``; sqlite-utils' own `atomic` then nests as savepoints."""

    def __init__(self, db: SqliteDatabase) -> None:
        self._db = db

    def __enter__(self) -> SqliteDatabase:
        self._db.conn.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._db.conn.rollback()
            return
        try:
            self._db.conn.execute("COMMIT")
        except BaseException:
            self._db.conn.rollback()
            raise


def _key_for(path: Path, keys: Sequence[bytes]) -> bytes | None:
    if not keys and not is_sealed(path):
        return None
    try:
        return key_for(path, keys)
    except SealedError as error:
        more = "" if keys else "; a damaged file can be moved away, and the agent then starts with an empty one"
        raise StoreError(f"{error}{more}") from error


def _prepare(path: Path, key: bytes | None) -> SqliteDatabase:
    troubles = sqlite3.Error if key is None else (sqlite3.Error, module().Error)
    try:
        db = _connect(path, key)
        db.conn.execute("PRAGMA journal_mode=WAL")
        db.conn.execute("PRAGMA synchronous=FULL")
        migrations.apply(db)
    except troubles as error:
        raise StoreError(
            f"store {path}: {error}. Check that the folder is writable and the disk not full; a damaged file can be "
            "moved away, and the agent then starts with an empty one"
        ) from error
    return db


def _connect(path: Path, key: bytes | None) -> SqliteDatabase:
    # Each connection is used by one thread at a time; closing happens in another.
    connection = connect(path, key, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys=ON")
    return SqliteDatabase(connection)
