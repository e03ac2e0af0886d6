"""Rooms that must live as long as the supervisor: kept up, never silently dead.

A room that raises or returns is logged, shown in the verdict, reported, and started again with a growing pause.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn

from landreeve_agent.errors import RoomFailedError

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# A room that ran this long has recovered: its next failure is a first one again.
GOOD_AFTER_S = 60.0


@dataclass(frozen=True)
class Trouble:
    """A room that fails: since when (unix seconds), how often in a row, and its last words."""

    room: str
    sentence: str
    since: float
    failures: int


Failed = Callable[[Trouble], Awaitable[None]]


@dataclass
class Rooms:
    """Owns the tasks. ``on_failure`` reports a trouble; what it raises is logged and stops nothing."""

    on_failure: Failed
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _troubles: dict[str, Trouble] = field(default_factory=dict)
    _finishing: set[str] = field(default_factory=set)

    def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run it for ever."""
        self._tasks[name] = asyncio.create_task(self._keep(name, run), name=f"room {name}")

    def every(self, name: str, period_s: float, run: Callable[[], Awaitable[object]]) -> None:
        """Run it again and again, with a pause of ``period_s`` in between."""

        async def loop() -> None:
            while True:
                await run()
                self.recovered(name)
                await asyncio.sleep(period_s)

        self.keep(name, loop)

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What fails now, oldest first."""
        return tuple(sorted(self._troubles.values(), key=lambda trouble: trouble.since))

    async def close(self) -> None:
        """End all tasks and wait for them."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def finish(self, name: str, patience_s: float) -> None:
        """Let a room that was asked to end do so; end it after ``patience_s``."""
        self._finishing.add(name)
        task = self._tasks.pop(name, None)
        if task is not None:
            await asyncio.wait({task}, timeout=patience_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            heal = asyncio.get_running_loop().call_later(GOOD_AFTER_S, self.recovered, name)
            try:
                await run()
                if name in self._finishing:
                    return
                _complain(name)
            except Exception as error:
                failures = 1 if time.monotonic() - started > GOOD_AFTER_S else failures + 1
                logger.exception("room %s failed (%d in a row)", name, failures)
                await self.failed(name, error, failures)
            finally:
                heal.cancel()
            await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1)))

    async def failed(self, name: str, error: Exception, failures: int) -> None:
        """Show and report a failure that was logged."""
        words = str(error) or type(error).__name__
        since = self._troubles[name].since if name in self._troubles else time.time()
        trouble = Trouble(name, words, since, failures)
        self._troubles[name] = trouble
        try:
            await self.on_failure(trouble)
        except Exception:
            logger.exception("the failure of room %s could not be reported", name)

    def recovered(self, name: str) -> None:
        """The room works: what it failed with is over."""
        if self._troubles.pop(name, None) is not None:
            logger.info("room %s works again", name)


def _complain(name: str) -> NoReturn:
    raise RoomFailedError(f"the room {name} ended by itself")
