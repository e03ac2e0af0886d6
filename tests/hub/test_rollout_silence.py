"""When a device counts as silent: never while it waits for a window of its own."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from landreeve.wire.schedule import FEATURE
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.roster import Member, Outcome, Roster
from landreeve_hub.rollout.state import DeviceFact, Report, Rollout, State

MORNING = datetime(2026, 3, 1, 6, 10, tzinfo=UTC)  # the night's windows have just closed
NIGHT = [{"start": "20:00", "end": "06:00"}]
LATE = [{"start": "22:00", "end": "23:00"}]
HALF = timedelta(minutes=30)
AT_20, AT_22 = MORNING.replace(hour=20, minute=0), MORNING.replace(hour=22, minute=0)


def called_silent(stage: str, windows: dict[str, Any], *, keeps: bool = True) -> datetime:
    """When a device that was heard last in the morning is given up, by the moments at which the hub itself looks."""
    plan = parse_plan({"gate": {"deadline_s": 1800, "max_silent": 9}, "windows": windows, "probation": {"max_s": 3600}})
    member = Member("d-1", "EWR", 0, Outcome.ORDERED, stage=stage, ordered_at=MORNING, heard=MORNING)
    rollout = Rollout(
        id="r-000001", model="m", digest="1" * 64, version="v2", plan=plan, state=State.RUNNING,
        members=Roster([member, Member("d-2", "JFK", 1)]), wave_since=MORNING,
    )  # fmt: skip
    report = Report("r-000001", 1, "1" * 64, stage) if stage else None
    fact = DeviceFact("d-1", "EWR", report=report, features=(FEATURE,) if keeps else ())
    fleet = {"d-1": fact, "d-2": DeviceFact("d-2", "JFK")}
    now = MORNING
    while rollout.members["d-1"].outcome is Outcome.ORDERED:
        decision = decide(rollout, fleet, now)
        rollout = decision.rollout
        assert decision.wake is not None or rollout.members["d-1"].outcome is Outcome.SILENT
        now = max(decision.wake or now, now) + timedelta(seconds=1)
    return now - timedelta(seconds=1)


@pytest.mark.parametrize("stage", ["", "RECEIVED", "VERIFIED", "DOWNLOADING"])
def test_a_device_that_may_not_fetch_before_the_night_has_until_then(stage: str) -> None:
    assert called_silent(stage, {"download": NIGHT}) == pytest.approx(AT_20 + HALF, abs=timedelta(seconds=2))
    both = {"download": NIGHT, "activate": LATE}
    assert called_silent(stage, both) == pytest.approx(AT_22 + HALF, abs=timedelta(seconds=2))


@pytest.mark.parametrize("stage", ["STAGED", "PREFLIGHT", "ACTIVATING"])
def test_what_is_fetched_waits_for_no_window_of_downloads(stage: str) -> None:
    soon = pytest.approx(MORNING + HALF, abs=timedelta(seconds=2))
    assert called_silent(stage, {"download": NIGHT}) == soon
    assert called_silent(stage, {"activate": LATE}) == pytest.approx(AT_22 + HALF, abs=timedelta(seconds=2))


def test_a_device_that_keeps_to_no_windows_and_one_on_probation_are_given_no_time_for_them() -> None:
    both = {"download": NIGHT, "activate": NIGHT}
    assert called_silent("DOWNLOADING", both, keeps=False) == pytest.approx(MORNING + HALF, abs=timedelta(seconds=2))
    probation = MORNING + HALF + timedelta(hours=1)
    assert called_silent("PROBATION", both) == pytest.approx(probation, abs=timedelta(seconds=2))
