"""One-off commands to devices: kept until answered or expired, and sent again until then."""

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from landreeve.wire.codec import encode
from landreeve.wire.messages import Command, Event
from landreeve.wire.topics import Down, DownTopic, format_topic
from sqlalchemy import Connection, insert, select, update

from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

ANSWERS = frozenset({"command.done", "command.refused"})
RESEND_S = 30.0
VALID = timedelta(hours=24)

Publish = Callable[[str, bytes, bool], None]


class Commands:
    """Issues commands; ``publish`` is (topic, payload, retain). Devices ignore a repeated id."""

    def __init__(self, store: Store, fleet: str, publish: Publish) -> None:
        self._store = store
        self._fleet = fleet
        self._publish = publish
        self._sent: dict[str, datetime] = {}

    def issue_in(self, connection: Connection, now: datetime, device: str, name: str, args: Mapping[str, Any]) -> str:
        """Write the command down; `resend` carries it. The id of the command."""
        command = f"c-{secrets.token_hex(8)}"
        row = {
            "id": command,
            "device": device,
            "name": name,
            "args": dict(args),
            "at": rfc3339(now),
            "expires": rfc3339(now + VALID),
        }
        connection.execute(insert(tables.commands).values(row))
        return command

    async def resend(self, now: datetime) -> None:
        """Publish what is neither answered nor expired, each at most every `RESEND_S` seconds."""
        for row in await self._store.read(lambda c: _unanswered(c, now)):
            sent = self._sent.get(row["id"])
            if sent is None or (now - sent).total_seconds() >= RESEND_S:
                self._sent[row["id"]] = now
                self._send(row)

    def forget_sent(self) -> None:
        """A new connection to the broker: what waits is due at the next `resend`."""
        self._sent.clear()

    def answer_in(self, connection: Connection, device: str, event: Event) -> None:
        """An event of a device that answers a command of its own; the first answer stays."""
        answer = {"name": event.name, "cause": event.cause, "sentence": event.sentence, "data": event.data}
        commands = tables.commands
        where = (commands.c.id == event.subject) & (commands.c.device == device) & commands.c.answer.is_(None)
        connection.execute(update(commands).where(where).values(answer=answer))
        self._sent.pop(event.subject, None)

    def _send(self, row: Mapping[str, Any]) -> None:
        message = Command(id=row["id"], name=row["name"], args=row["args"], expires=row["expires"])
        topic = format_topic(DownTopic(self._fleet, row["device"], Down.COMMAND))
        self._publish(topic, encode(message), False)


def _unanswered(connection: Connection, now: datetime) -> list[Mapping[str, Any]]:
    commands = tables.commands
    query = select(commands).where(commands.c.answer.is_(None), commands.c.expires > rfc3339(now))
    return [dict(row) for row in connection.execute(query).mappings()]
