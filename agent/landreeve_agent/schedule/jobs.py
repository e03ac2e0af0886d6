"""Scheduled work, made from settings: nothing of it is stored, so a changed setting is a changed schedule.

APScheduler counts up every time that was missed, one after another, on the event loop. A box without a clock of its own
starts in 1970: set right, a job of every minute would have missed thirty million times, and the site would stand still
for minutes and run out of memory. So triggers here leave out what lies further back than the grace.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

logger = logging.getLogger(__name__)

Job = Callable[[], Awaitable[object]]
# A box that slept catches up once instead of never (APScheduler's own grace is one second).
_GRACE_S = 3600
_GRACE = timedelta(seconds=_GRACE_S)


class BadScheduleError(ValueError):
    """A schedule that cannot be understood; the text says which setting and what is expected."""


class _Every(IntervalTrigger):  # type: ignore[misc]  # APScheduler has no types
    """At an interval from now on, whenever now is."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        every: timedelta = self.interval
        if previous is None:
            return now + every
        missed = max(0, (now - previous - _GRACE) // every)
        return previous + (missed + 1) * every


class _Cron(CronTrigger):  # type: ignore[misc]
    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        found: datetime | None = super().get_next_fire_time(previous and max(previous, now - _GRACE), now)
        return found


@dataclass
class Schedule:
    """Jobs by name. ``on_failure`` and ``on_success`` make a failing job visible; its next time comes all the same."""

    on_failure: Callable[[str, Exception, int], Awaitable[None]]
    on_success: Callable[[str], None]
    _scheduler: AsyncIOScheduler = field(
        default_factory=lambda: AsyncIOScheduler(
            timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": _GRACE_S}
        )
    )
    _failures: dict[str, int] = field(default_factory=dict)

    def every(self, name: str, seconds: float, job: Job) -> None:
        """Run it at this interval."""
        self._scheduler.add_job(self._run, _Every(seconds=seconds), args=(name, job), id=name, name=name)

    def cron(self, name: str, expression: str, job: Job) -> None:
        """Run it at five cron fields in UTC; `BadScheduleError` when they are none."""
        try:
            trigger = _Cron.from_crontab(expression, timezone="UTC")
        except ValueError as error:
            raise BadScheduleError(
                f"{name} = {expression!r}: {error}; five cron fields, such as '0 3 * * 0'"
            ) from error
        self._scheduler.add_job(self._run, trigger, args=(name, job), id=name, name=name)

    def again(self) -> None:
        """The clock has jumped: count all times anew from what it says now. A job that was set in 2090 would else come
        next in 2090."""
        for job in self._scheduler.get_jobs():
            job.reschedule(job.trigger)

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._scheduler.start()

    def stop(self) -> None:
        """End; a job that runs is cancelled with its loop."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    async def _run(self, name: str, job: Job) -> None:
        try:
            await job()
        except Exception as error:
            self._failures[name] = self._failures.get(name, 0) + 1
            logger.exception("scheduled job %s failed", name)
            await self.on_failure(name, error, self._failures[name])
        else:
            if self._failures.pop(name, 0):
                self.on_success(name)
