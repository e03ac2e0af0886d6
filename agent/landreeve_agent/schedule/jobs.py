"""Scheduled work, made from settings: nothing of it is stored, so a changed setting is a changed schedule."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

logger = logging.getLogger(__name__)

Job = Callable[[], Awaitable[object]]
# A box that slept catches up once instead of never (APScheduler's own grace is one second).
_GRACE_S = 3600


class BadScheduleError(ValueError):
    """A schedule that cannot be understood; the text says which setting and what is expected."""


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
    _intervals: dict[str, float] = field(default_factory=dict)

    def every(self, name: str, seconds: float, job: Job) -> None:
        """Run it at this interval."""
        self._intervals[name] = seconds
        self._scheduler.add_job(self._run, IntervalTrigger(seconds=seconds), args=(name, job), id=name, name=name)

    def cron(self, name: str, expression: str, job: Job) -> None:
        """Run it at five cron fields in UTC; `BadScheduleError` when they are none."""
        try:
            trigger = CronTrigger.from_crontab(expression, timezone="UTC")
        except ValueError as error:
            raise BadScheduleError(
                f"{name} = {expression!r}: {error}; five cron fields, such as '0 3 * * 0'"
            ) from error
        self._scheduler.add_job(self._run, trigger, args=(name, job), id=name, name=name)

    def again(self) -> None:
        """The clock has jumped: count all times anew from what it says now. An interval runs from a date, so one that
        was set in 2090 would come next in 2090."""
        for job in self._scheduler.get_jobs():
            seconds = self._intervals.get(job.id)
            job.reschedule(trigger=job.trigger if seconds is None else IntervalTrigger(seconds=seconds))

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
