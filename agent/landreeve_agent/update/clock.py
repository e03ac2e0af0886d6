"""The box's clock, watched: a jump is told, and orders refused for the clock are looked at again."""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from landreeve.wire.messages import Event

WATCH_EVERY_S = 5.0
JUMP_S = 60.0
AGAIN_S = 600.0
"""An order refused because of the clock, the disk or expiry is tried again at least so often."""


class ClockWatch:
    """Compares the clock's progress with the monotonic one: `tick` every few seconds.

    ``reconsider`` takes up what was refused; ``tell`` reports an event; ``monotonic`` counts seconds; ``on_jump``
    is called at each jump.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        reconsider: Callable[[], Awaitable[None]],
        tell: Callable[[Event], Awaitable[None]],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        on_jump: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._reconsider = reconsider
        self._tell = tell
        self._monotonic = monotonic
        self._on_jump = on_jump
        self._seen = (clock(), monotonic())
        self._tried = monotonic()

    async def tick(self) -> None:
        """One look."""
        now, ran = self._clock(), self._monotonic()
        (before, since), self._seen = self._seen, (now, ran)
        jump_s = (now - before).total_seconds() - (ran - since)
        jumped = abs(jump_s) >= JUMP_S
        if jumped:
            self._on_jump()
            await self._tell(_jumped(jump_s, before, now))
        if jumped or ran - self._tried >= AGAIN_S:
            self._tried = ran
            await self._reconsider()


def _jumped(jump_s: float, before: datetime, now: datetime) -> Event:
    way = "forwards" if jump_s > 0 else "back"
    return Event(
        name="clock.jumped",
        subject="clock",
        cause=f"jumped_{way}",
        severity="warning",
        sentence=f"The clock jumped {way} from {before:%Y-%m-%d %H:%M:%S} to {now:%Y-%m-%d %H:%M:%S} UTC.",
        data={"seconds": round(jump_s, 1)},
    )
