"""A damaged store is set aside and an empty one takes its place: a site goes on serving without waiting for a person.

A store that was doubted and reads whole may yet have lost what was written last: it goes on in a new epoch
(`landreeve_agent.store.continuity`), as an empty one does.

What serves is written down beside the store (`landreeve_agent.update.pointer`), and what is wanted is retained at the
broker, so an agent with an empty store takes up both. Lost are facts that had not left, captured rows and labels; the
file that may still hold them is kept. A sealed store is never set aside: a wrong key looks the same as damage.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from landreeve.sealed.sqlite import is_sealed
from landreeve.wire.messages import Event

from landreeve_agent.store.continuity import settle
from landreeve_agent.store.database import Database, StoreError, is_damage

logger = logging.getLogger(__name__)

_PARTS = ("", "-wal", "-shm")


def open_store(path: Path, keys: Sequence[bytes], now: datetime) -> Database:
    """The store, or an empty one in the place of a damaged one (`Database.set_aside`). Raises `StoreError`.

    All of the file is looked at when the last run met damage, else only what opening it reads.
    """
    doubted = Database.mark_of(path).exists()
    if keys:
        database = Database(path, keys=keys)
        settle(database, now, doubted=doubted)
        Database.mark_of(path).unlink(missing_ok=True)
        return database
    gone = _set_aside(path, now) if is_sealed(path) or _found_bad(path) else None
    try:
        database = Database(path)
    except StoreError as error:
        if not is_damage(error.__cause__):
            raise
        gone = _set_aside(path, now)
        database = Database(path)
    database.set_aside = gone
    settle(database, now, doubted=doubted or gone is not None)
    Database.mark_of(path).unlink(missing_ok=True)  # only now: a kill before the new epoch is on the disk begins again
    return database


def attend(database: Database, tell: Callable[[Event], None], restart: Callable[[], None]) -> None:
    """Tell of a store that was set aside; when damage shows while it runs, ``restart``: the next start looks at it."""
    loop = asyncio.get_running_loop()

    def damaged() -> None:
        loop.call_soon_threadsafe(restart)

    database.on_damage = damaged
    if database.set_aside is not None:
        tell(_event(database.set_aside))


def _event(aside: Path) -> Event:
    sentence = (
        f"The store was damaged and an empty one took its place; what serves goes on. Rows and labels up to now are in "
        f"{aside.name}, as far as they can be read. Look at the disk."
    )
    return Event(name="store.damaged", subject=aside.name, cause="damaged", sentence=sentence, severity="error")


def _found_bad(path: Path) -> bool:
    """Whether the last run met damage that is really there."""
    return Database.mark_of(path).exists() and path.exists() and not _is_whole(path)


def _is_whole(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=30.0)) as db:
            return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        return not is_damage(error)


def _set_aside(path: Path, now: datetime) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%S%f}")
    for part in _PARTS:
        beside = path.with_name(path.name + part)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + part))
    logger.error("store %s is damaged: set aside as %s; starting with an empty one", path, aside.name)
    return aside
