"""What the link keeps in the store about its connections: their number, the client id, what the hub reads."""

import secrets
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.continuity import SESSION

_CLIENT = "link.client"
_HUB_READS = "link.hub_reads"


def next_session(db: SqliteDatabase, now: datetime) -> tuple[int, str, frozenset[str]]:
    """The session's number, which grows with every connection and is never used twice, also across restarts;
    the random part of the client id, made once: brokers that do not bind ids to certificates let whoever knows an
    id evict its owner; and what the hub said that it reads.

    Not below the unix time: a box whose whole state was put back from a copy would begin below what the hub knows, and
    the hub would believe none of its states until the number had caught up.
    """
    least = int(now.timestamp())
    number = db.conn.execute(
        "INSERT INTO meta VALUES (?, max(1, ?)) ON CONFLICT (key) DO UPDATE "
        "SET value = max(CAST(value AS INTEGER) + 1, ?) RETURNING value",
        (SESSION, least, least),
    ).fetchone()
    db.conn.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (_CLIENT, secrets.token_hex(8)))
    client = db.conn.execute("SELECT value FROM meta WHERE key = ?", (_CLIENT,)).fetchone()
    reads = db.conn.execute("SELECT value FROM meta WHERE key = ?", (_HUB_READS,)).fetchone()
    return int(number[0]), str(client[0]), frozenset(str(reads[0]).split() if reads else ())


def save_hub_reads(db: SqliteDatabase, reads: frozenset[str]) -> None:
    """Keep what the hub said that it reads."""
    db.conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_HUB_READS, " ".join(sorted(reads))))
