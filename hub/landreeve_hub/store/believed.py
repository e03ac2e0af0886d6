"""A time to forget by, which no clock that jumps can push ahead.

Retention deletes by age. A hub whose clock says 2090 for an hour would so lose its whole history: the moment that
ages are counted from is kept in a file, and goes forward at most `DAY_AN_HOUR` as fast as time really passes. A hub
that was off for two months so catches up in two or three days.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from landreeve.blobs.durable import write_durably

from landreeve_hub.store.moment import parse_rfc3339, rfc3339

DAY_AN_HOUR = 24.0


class Believed:
    """Reads and keeps the moment in ``file``; ``monotonic`` counts seconds."""

    def __init__(self, file: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._monotonic = monotonic
        self._asked = monotonic()

    def moment(self, now: datetime) -> datetime:
        """The clock's time, or an earlier one where the clock went faster than it can."""
        before, self._asked = self._asked, self._monotonic()
        ran = timedelta(seconds=(self._asked - before) * DAY_AN_HOUR)
        kept = self._kept()
        believed = now if kept is None else min(now, kept + ran)
        write_durably(self._file, rfc3339(believed).encode())
        return believed

    def _kept(self) -> datetime | None:
        try:
            return parse_rfc3339(self._file.read_text()).astimezone(UTC)
        except (OSError, ValueError):
            return None
