"""Whether the store is the one this box had last: a store that was set back must not use numbers twice.

The hub takes a fact for a repeat when it has seen its epoch and number. A store that lost its newest pages, was put
back from a copy, or began empty would give new facts numbers that the hub has, and they would be dropped without a
word. So a note beside the store says how far it had come; a store that is behind it, or that was doubted, begins a new
epoch.
What waits keeps its old epoch and number, under which the hub counts it once, whether it had it or not.

The note is written at the end, and at most every `NOTE_EVERY_S` in between: after a kill, numbers of the last seconds
before it may be missing in it. Then, and for a copy of the whole folder, the hub's acknowledgement tells
(`landreeve_agent.link.outbox.Outbox.acknowledge`).
"""

import logging
import time
from datetime import datetime
from pathlib import Path

import msgspec
from landreeve.blobs.durable import write_durably
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.database import Database

logger = logging.getLogger(__name__)

EPOCH = "outbox.epoch"
# The highest number the hub can know of this store's own life (`landreeve_agent.link.outbox`).
MARK = "outbox.mark"
SESSION = "link.session"
NOTE_EVERY_S = 30.0
# Sessions that a lost note may not have seen. The hub believes no state of a session below the newest it knows.
_SESSIONS_AHEAD = 1_000_000


class Note(msgspec.Struct, frozen=True):
    """The outbox's epoch, its next number, and the number of the last session with the broker; 0 for none yet."""

    epoch: int = 0
    seq: int = 0
    session: int = 0


def note_of(path: Path) -> Path:
    """The note's file beside the store."""
    return path.with_name(f"{path.name}.numbers")


def settle(database: Database, now: datetime, *, doubted: bool) -> None:
    """After the opening, before anything is told: go on with the old numbers, or begin an epoch. ``doubted``: the last
    run met damage, or this store took the place of a damaged one."""
    path = note_of(database.path)
    known = _read(path)
    database.write_now(lambda db: _settled(db, known, now, doubted=doubted))
    kept = Keeper(database)
    kept.keep()
    database.after_commit(kept.now_and_then)
    database.before_close = kept.keep


class Keeper:
    """Writes the note. Called in the store's writer thread, or while nobody writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._written: Note | None = None
        self._at = 0.0

    def now_and_then(self) -> None:
        """Write it when the last time is long ago."""
        if time.monotonic() - self._at >= NOTE_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write it if anything changed; without it the store is used on."""
        self._at = time.monotonic()
        note = read_numbers(self._database.connection)
        if note == self._written:
            return
        try:
            write_durably(note_of(self._database.path), msgspec.json.encode(note))
        except OSError as error:
            logger.warning("%s: %s", note_of(self._database.path), error)
            return
        self._written = note


def read_numbers(db: SqliteDatabase) -> Note:
    """How far the store has come."""
    meta = dict(db.conn.execute("SELECT key, value FROM meta WHERE key IN (?, ?)", (EPOCH, SESSION)).fetchall())
    row = db.conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    return Note(int(meta.get(EPOCH, 0)), 1 + int(row[0] if row else 0), int(meta.get(SESSION, 0)))


def is_behind(found: Note, known: Note) -> bool:
    """Whether a store with these numbers is older than the note.

    >>> is_behind(Note(7, 20), Note(7, 20)), is_behind(Note(7, 19), Note(7, 20)), is_behind(Note(8, 1), Note(7, 20))
    (False, True, False)
    """
    return (found.epoch, found.seq) < (known.epoch, known.seq)


def begin_epoch(db: SqliteDatabase, epoch: int) -> None:
    """Number from 1 in a new epoch. What waits keeps its epoch and number, and is sent first."""
    row = db.conn.execute("SELECT value FROM meta WHERE key = ?", (EPOCH,)).fetchone()
    if row is not None:
        db.conn.execute(
            "INSERT OR IGNORE INTO outbox_former SELECT ?, seq, kind, body, bytes, at FROM outbox", (int(row[0]),)
        )
    db.conn.execute("DELETE FROM outbox")
    db.conn.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox'")
    db.conn.execute("DELETE FROM meta WHERE key = ?", (MARK,))
    db.conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (EPOCH, str(epoch)))


def epoch_at(now: datetime) -> int:
    """The epoch that begins now: unix nanoseconds."""
    return int(now.timestamp() * 1_000_000) * 1000


def _settled(db: SqliteDatabase, known: Note, now: datetime, *, doubted: bool) -> None:
    found = read_numbers(db)
    if not doubted and not is_behind(found, known):
        return
    # Never below an earlier one: the hub takes what has the higher epoch for the newer, and this clock may be wrong.
    epoch = max(epoch_at(now), known.epoch + 1, found.epoch + 1)
    begin_epoch(db, epoch)
    session = max(found.session, known.session) + _SESSIONS_AHEAD
    db.conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (SESSION, str(max(session, int(now.timestamp())))))
    logger.warning("the store is not as it was left: facts are numbered anew from now on, in epoch %d", epoch)


def _read(path: Path) -> Note:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return Note()
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("%s: %s; the numbers of the store are believed", path, error)
        return Note()
