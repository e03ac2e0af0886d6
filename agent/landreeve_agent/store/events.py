"""What happened on this site, for the local console's log."""

from datetime import datetime

import msgspec
from landreeve.wire.messages import Event
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.stamps import stamp


def record(db: SqliteDatabase, event: Event, now: datetime) -> None:
    """Adds the event to the site's log; call it in the write that makes the event true."""
    db.conn.execute(
        "INSERT INTO events (at, name, subject, severity, sentence, data) VALUES (?, ?, ?, ?, ?, ?)",
        (
            stamp(now),
            event.name,
            event.subject,
            event.severity,
            event.sentence,
            msgspec.json.encode({"cause": event.cause, **event.data}).decode(),
        ),
    )
