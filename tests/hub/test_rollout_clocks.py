"""Maintenance windows in the night in which a site's clocks change: when the hub orders, and when it calls silent."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from landreeve.wire.schedule import FEATURE
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.roster import Member, Outcome, Roster
from landreeve_hub.rollout.state import Assign, DeviceFact, Report, Rollout, State
from landreeve_hub.rollout.waiting import words

BERLIN, DUBAI = "Europe/Berlin", "Asia/Dubai"
SPRING, AUTUMN = datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)
DEADLINE = timedelta(minutes=30)


def played(evening: datetime, window: str, zone: str, *, keeps: bool) -> list[tuple[str, str]]:
    """What the hub does through the night, by the moments at which it itself wakes; UTC. A device that ``keeps`` to its
    windows has fetched the version in the evening, and is heard no more."""
    start, end = window.split("-")
    gate = {"deadline_s": DEADLINE.total_seconds(), "max_silent": 9}
    plan = parse_plan({"gate": gate, "windows": {"activate": [{"start": start, "end": end}]}})
    stage = "ACTIVATING" if keeps else ""
    member: dict[str, Any] = {"outcome": Outcome.ORDERED, "stage": stage, "ordered_at": evening, "heard": evening}
    rollout = Rollout(
        id="r-000001", model="m", digest="1" * 64, version="v2", plan=plan, state=State.RUNNING, wave_since=evening,
        members=Roster([Member("d-1", "EWR", 0, **(member if keeps else {}))]),
    )  # fmt: skip
    report = Report("r-000001", 1, "1" * 64, stage) if keeps else None
    fact = DeviceFact("d-1", "EWR", labels={"timezone": zone}, features=(FEATURE,) if keeps else (), report=report)
    now, done = evening, list[tuple[str, str]]()
    while rollout.state is State.RUNNING:
        decision = decide(rollout, {"d-1": fact}, now)
        rollout = decision.rollout
        at = f"{now:%d %H:%M}"
        done += [("ordered", at) for order in decision.orders if isinstance(order, Assign)]
        if rollout.members["d-1"].outcome is Outcome.SILENT:
            return [*done, ("silent", at)]
        waits = [words(one) for one in decision.waiting if "outside the maintenance windows" in words(one)]
        assert decision.wake is not None, waits
        if waits:
            assert f"the next opens at {decision.wake:%Y-%m-%d %H:%M} UTC" in waits[0]
        now = max(decision.wake, now + timedelta(seconds=1))
    raise AssertionError(rollout.sentence)


NIGHTS = [
    (SPRING, BERLIN, "02:15-02:45", "29 01:15"),  # does not exist: as far after the hour that is skipped, 03:15
    (SPRING, BERLIN, "02:30-03:15", "29 01:00"),  # of it a quarter of an hour exists
    (SPRING, BERLIN, "02:00-03:00", "29 01:00"),
    (SPRING, BERLIN, "04:00-05:00", "29 02:00"),
    (AUTUMN, BERLIN, "02:15-02:45", "25 00:15"),  # comes twice: the first counts
    (AUTUMN, BERLIN, "03:15-03:45", "25 02:15"),
    (SPRING, DUBAI, "02:15-02:45", "28 22:15"),
    (AUTUMN, DUBAI, "02:15-02:45", "24 22:15"),
]


@pytest.mark.parametrize(("evening", "zone", "window", "opens"), NIGHTS)
def test_a_site_is_ordered_when_its_window_opens_in_that_night_and_given_its_time_from_then(
    evening: datetime, zone: str, window: str, opens: str
) -> None:
    begun = datetime.strptime(f"2026-{evening.month} {opens} +0000", "%Y-%m %d %H:%M %z")
    late = f"{begun + DEADLINE:%d %H:%M}"
    assert played(evening, window, zone, keeps=False) == [("ordered", opens), ("silent", late)]
    assert played(evening, window, zone, keeps=True) == [("silent", late)]
