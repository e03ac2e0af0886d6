"""One-off commands of the hub: each is carried out once and answered by an event, however often it arrives."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from landreeve.wire.messages import Command, Event
from sqlite_utils import Database as Tables

from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment, stamp
from landreeve_agent.telemetry.reporter import Reporter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Carried:
    """It is done, or under way under the id that ``data`` names."""

    sentence: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Declined:
    """It is not done; the sentence says why."""

    cause: str
    sentence: str


Action = Callable[[Command], Awaitable[Carried | Declined]]


@dataclass
class Orders:
    """``actions`` by command name. An action must bear a repeat: a kill may come before its answer is stored."""

    database: Database
    reporter: Reporter
    actions: Mapping[str, Action]
    clock: Callable[[], datetime]

    async def on_command(self, command: Command) -> None:
        """Carry a command out, once."""
        if await self.database.read(lambda tables: _is_known(tables, command.id)):
            logger.info("command %s (%s) came again: it was answered already", command.id, command.name)
            return
        outcome = await self._act(command)
        now = self.clock()
        await self.database.write(lambda tables: self._answer(tables, command, outcome, now))

    async def _act(self, command: Command) -> Carried | Declined:
        try:
            if moment(command.expires) < self.clock():
                return Declined("expired", f"The command expired at {command.expires}.")
        except ValueError:
            return Declined("bad_expiry", f"The command's expiry {command.expires[:40]!r} is no time.")
        action = self.actions.get(command.name)
        if action is None:
            known = ", ".join(sorted(self.actions))
            return Declined("unknown_command", f"This agent knows no command {command.name[:40]!r}; known: {known}.")
        return await action(command)

    def _answer(self, tables: Tables, command: Command, outcome: Carried | Declined, now: datetime) -> None:
        done = isinstance(outcome, Carried)
        event = Event(
            name="command.done" if done else "command.refused",
            subject=command.id,
            cause=command.name if isinstance(outcome, Carried) else outcome.cause,
            sentence=outcome.sentence,
            severity="info" if done else "warning",
            data={"command": command.name, **(outcome.data if isinstance(outcome, Carried) else {})},
        )
        document = msgspec.json.encode({"name": event.name, "sentence": event.sentence}).decode()
        tables.conn.execute(
            "INSERT INTO commands (id, at, outcome) VALUES (?, ?, ?)", (command.id, stamp(now), document)
        )
        self.reporter.tell(tables, event, now)


def _is_known(tables: Tables, name: str) -> bool:
    return tables.conn.execute("SELECT 1 FROM commands WHERE id = ?", (name,)).fetchone() is not None
