"""Closing windows: samples and labels in the store become one drift report each, exactly once.

A window is ``window_days`` of event time, numbered from 1970; it is closed when event time has passed its end by the
definition's label delay, so a year replayed in an hour gives the windows the year would.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from landreeve.blobs.files import PLAIN, Files
from landreeve_models.definition import Definition
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.drift.bounds import bounds, length_s, number
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment
from landreeve_agent.store.watermark import watermark

if TYPE_CHECKING:
    from landreeve_agent.drift.closing import Judging


class Windows:
    """Closes windows of every model. ``models`` holds the materialised releases, ``clock`` the wall time."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        definitions: Mapping[str, Definition],
        *,
        models: Path,
        clock: Callable[[], datetime],
        files: Files = PLAIN,
    ) -> None:
        self._database, self._outbox, self._definitions = database, outbox, definitions
        self._models, self._clock, self._files = models, clock, files
        self._judging: Judging | None = None

    async def advance(self) -> int:
        """Close every window that is due; how many were."""
        closed = 0
        for name in list(self._definitions):
            definition = self._definitions[name]
            while (window := await self._database.read(lambda db, d=definition: _next_due(db, d))) is not None:  # type: ignore[misc]
                await self._close(definition, window)
                closed += 1
        return closed

    async def _close(self, definition: Definition, window: int) -> None:
        from landreeve_agent.drift import closing, history  # with numpy: only when there is something to judge

        if self._judging is None:
            self._judging = closing.Judging(self._models, self._files)
        answered = await self._database.read(lambda db: closing.answered_rows(db, definition, window))
        before = await self._database.read(lambda db: history.before(db, definition.name, window))
        closed = await asyncio.to_thread(self._judging.judge, definition, window, answered, before)
        now = self._clock()
        await self._database.write(lambda db: closing.put(db, self._outbox, closed, before, now))


def _next_due(db: SqliteDatabase, definition: Definition) -> int | None:
    """The next window with samples whose labels had their time, or None."""
    name = definition.name
    closed = db.conn.execute("SELECT max(window) FROM windows WHERE model = ?", (name,)).fetchone()[0]
    after = "" if closed is None else bounds(definition, closed)[1]
    query = "SELECT min(at) FROM samples WHERE model = ? AND at >= ?"
    at = db.conn.execute(query, (name, after)).fetchone()[0]
    if at is None:
        return None
    window = number(definition, at)
    # Event time is what the samples say: labels of a stalled application must not close what still fills.
    reached = watermark(db, name)
    due = (window + 1) * length_s(definition) + definition.label_delay_hours * 3600
    return window if reached is not None and moment(reached).timestamp() >= due else None
