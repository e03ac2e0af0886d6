"""To each device in an encoding it can read: zstd only where it said so, plain JSON elsewhere."""

import threading
from collections.abc import Callable

from landreeve.wire.codec import readable
from landreeve.wire.topics import BadTopicError, DownTopic, DownWantTopic, parse_topic
from sqlalchemy import Connection, select

from landreeve_hub.ingest.commit import Outcome
from landreeve_hub.store import tables

Publish = Callable[[str, bytes, bool], None]


class Speech:
    """Stands before the line's ``publish``. What devices read is learnt from their states, kept with them in the
    store, and may be asked for in any thread."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._lock = threading.Lock()
        self._reads: dict[str, frozenset[str]] = {}

    def load(self, connection: Connection) -> None:
        """What the devices said before this start."""
        rows = connection.execute(select(tables.devices.c.id, tables.devices.c.doc)).all()
        said = {row.id: frozenset(map(str, row.doc.get("reads") or ())) for row in rows}
        with self._lock:
            self._reads = said | self._reads

    def heard(self, outcome: Outcome) -> None:
        """A listener of the `Receiver`."""
        if outcome.reads:
            with self._lock:
                self._reads |= outcome.reads

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Hand over to the line, as the device of that topic can read it."""
        try:
            to = parse_topic(topic)
        except BadTopicError:
            to = None
        if isinstance(to, DownTopic | DownWantTopic):
            with self._lock:
                reads = self._reads.get(to.device, frozenset())
            payload = readable(payload, reads)
        self._publish(topic, payload, retain)
