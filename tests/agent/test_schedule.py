"""Schedules on boxes whose clock is set: nothing is caught up for decades, nothing waits for a time that was wrong."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from landreeve_agent.schedule.jobs import Schedule

EPOCH = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)
NOW = datetime(2026, 12, 1, 12, 0, 30, tzinfo=UTC)


async def nothing() -> None:
    """A job."""


async def failed(*_: object) -> None:
    raise AssertionError("no job is to fail")


def made() -> Schedule:
    schedule = Schedule(failed, lambda _name: None)
    schedule.every("metrics", 5.0, nothing)
    schedule.cron("training", "0 * * * *", nothing)
    return schedule


@pytest.mark.parametrize("name", ["metrics", "training"])
async def test_clock_that_is_set_right_after_decades_brings_no_storm_of_missed_times(name: str) -> None:
    with time_machine.travel(EPOCH, tick=False) as clock:
        schedule = made()
        schedule.start()
        job = schedule._scheduler.get_job(name)
        clock.move_to(NOW)
        missed = job._get_run_times(NOW)
        assert len(missed) < 1000
        assert NOW - missed[-1] < timedelta(hours=1)  # the box catches up once
        schedule.stop()


async def test_clock_that_was_a_year_ahead_stops_no_job_for_a_year() -> None:
    with time_machine.travel(NOW + timedelta(days=365), tick=False) as clock:
        schedule = made()
        schedule.start()
        clock.move_to(NOW)
        schedule.again()
        due = {job.id: job.next_run_time - NOW for job in schedule._scheduler.get_jobs()}
        assert due["metrics"] == timedelta(seconds=5)
        assert timedelta(0) < due["training"] <= timedelta(hours=1)
        schedule.stop()


async def test_interval_keeps_its_beat_over_a_short_sleep() -> None:
    with time_machine.travel(NOW, tick=False):
        schedule = made()
        schedule.start()
        trigger = schedule._scheduler.get_job("metrics").trigger
        assert trigger.get_next_fire_time(NOW, NOW + timedelta(seconds=12)) == NOW + timedelta(seconds=5)
        schedule.stop()
