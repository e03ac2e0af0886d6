"""What the link costs on the wire: payload and topic of every message, each way, since the box was set up.

Kept in memory and put into the store with the metrics, so counting costs no write of its own; a kill forgets at
most what one interval carried. Framing and TLS come on top, some 5 to 10 % for facts.
"""

from dataclasses import dataclass

from sqlite_utils import Database as SqliteDatabase

_UP, _DOWN = "link.bytes_up", "link.bytes_down"


@dataclass(slots=True)
class Meter:
    """Totals in bytes. `load` comes first: it adds what earlier lives of the supervisor counted."""

    up: int = 0
    down: int = 0

    def sent(self, topic: str, payload: bytes) -> None:
        """A message was handed to the connection, repeats included."""
        self.up += len(topic.encode()) + len(payload)

    def received(self, topic: str, payload: bytes) -> None:
        """A message arrived, whatever became of it."""
        self.down += len(topic.encode()) + len(payload)

    def load(self, db: SqliteDatabase) -> None:
        """Go on from the totals of the store; once, before `save`."""
        self.up += _read(db, _UP)
        self.down += _read(db, _DOWN)

    def save(self, db: SqliteDatabase) -> None:
        """Put the totals into the store, inside a write of the caller's."""
        db.conn.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(_UP, str(self.up)), (_DOWN, str(self.down))])


def _read(db: SqliteDatabase, key: str) -> int:
    row = db.conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return int(row[0]) if row else 0
