"""What a site holds back by its windows, in the nights in which its clocks change."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from landreeve.wire.schedule import DayWindow, Schedule
from landreeve_agent.update.holding import held
from landreeve_agent.update.machine import Effect

from tests.agent.test_update_machine import order

SPRING, AUTUMN = datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def free(evening: datetime, start: str, end: str, zone: str) -> list[str]:
    """The spans (UTC) of the night in which a version may be activated, each minute asked; until one opens the sentence
    names its local time."""
    windows = (DayWindow(start=start, end=end),)
    wanted = replace(order("b", 2), schedule=Schedule(zone=zone, activate=windows))
    found: list[list[datetime]] = []
    told = ""
    for number in range(12 * 60):
        now = evening + number * MINUTE
        said = held(Effect.ACTIVATE, wanted, now)
        assert held(Effect.FETCH, wanted, now) == ""
        if said:
            told = told or said
        elif found and found[-1][1] == now:
            found[-1][1] += MINUTE
        else:
            found.append([now, now + MINUTE])
    return [told.partition(" from ")[2].partition(" on ")[0], *(f"{a:%H:%M}-{b:%H:%M}" for a, b in found)]


@pytest.mark.parametrize(
    ("evening", "zone", "window", "said", "kept"),
    [
        (SPRING, "Europe/Berlin", "02:15-02:45", "Sun 03:15", "01:15-01:45"),
        (SPRING, "Europe/Berlin", "02:30-03:15", "Sun 03:00", "01:00-01:15"),
        (AUTUMN, "Europe/Berlin", "02:15-02:45", "Sun 02:15", "00:15-00:45"),
        (SPRING, "Asia/Dubai", "02:15-02:45", "Sun 02:15", "22:15-22:45"),
        (SPRING, "UTC", "02:15-02:45", "Sun 02:15", "02:15-02:45"),
    ],
)
def test_a_version_is_activated_once_in_the_night_and_at_the_time_that_was_told(
    evening: datetime, zone: str, window: str, said: str, kept: str
) -> None:
    start, end = window.split("-")
    assert free(evening, start, end, zone) == [said, kept]
