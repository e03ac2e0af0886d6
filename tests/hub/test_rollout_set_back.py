"""A hub whose clock was ahead and is right again: nothing waits for moments that only the wrong clock knew."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.rollout.machine import decide, watch_end
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.roster import Member, Outcome, Roster
from landreeve_hub.rollout.state import DeviceFact, Rollout, State

from tests.hub.hub_without_broker import Hub, push, release

NOW = datetime(2026, 3, 1, 10, tzinfo=UTC)
AHEAD = NOW + timedelta(hours=26)
FLEET = {"d-1": DeviceFact("d-1", "EWR"), "d-2": DeviceFact("d-2", "JFK")}


@pytest.fixture
async def ann(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    async with await hub.person("ann", Role.ADMIN) as client:
        yield client


def ahead(first: Member, *, state: State = State.RUNNING, **plan: Any) -> Rollout:
    """A rollout all of whose moments were noted by the clock that was ahead."""
    parsed = parse_plan({"waves": [{"count": 1}, {"rest": True}], **plan})
    return Rollout(
        id="r-000001", model="m", digest="1" * 64, version="v2", plan=parsed, state=state, wave_since=AHEAD,
        finished=AHEAD if state is State.FINISHED else None, members=Roster([first, Member("d-2", "JFK", 1)]),
    )  # fmt: skip


def test_a_wave_that_is_through_is_watched_for_its_soak_and_no_longer() -> None:
    done = Member("d-1", "EWR", 0, Outcome.COMMITTED, stage="COMMITTED", ordered_at=AHEAD, heard=AHEAD)
    first = decide(ahead(done, gate={"soak_s": 600}), FLEET, NOW)
    assert first.wake == NOW + timedelta(seconds=600)
    second = decide(first.rollout, FLEET, NOW + timedelta(seconds=600))
    assert [order.device for order in second.orders] == ["d-2"]  # type: ignore[union-attr]


def test_a_device_that_is_silent_is_called_so_and_not_before_it_had_its_time_anew() -> None:
    flying = Member("d-1", "EWR", 0, Outcome.ORDERED, ordered_at=AHEAD, heard=AHEAD, due_since=AHEAD)
    first = decide(ahead(flying, gate={"deadline_s": 3600}), FLEET, NOW)
    assert first.rollout.members["d-1"].outcome is Outcome.ORDERED
    assert first.wake == NOW + timedelta(hours=1)
    late = decide(first.rollout, FLEET, NOW + timedelta(hours=1, seconds=1))
    assert late.rollout.members["d-1"].outcome is Outcome.SILENT


def test_a_spread_and_a_watch_begin_with_the_right_clock() -> None:
    spread = decide(ahead(Member("d-1", "EWR", 0), jitter_s=300), FLEET, NOW)
    assert spread.wake is not None
    assert spread.wake <= NOW + timedelta(seconds=300)
    done = Member("d-1", "EWR", 0, Outcome.COMMITTED, ordered_at=AHEAD, heard=AHEAD)
    watched = decide(ahead(done, state=State.FINISHED, watch={"for_s": 3600, "max_drifted": 0}), FLEET, NOW)
    assert watch_end(watched.rollout) == NOW + timedelta(hours=1)


def test_a_clock_that_is_right_changes_nothing() -> None:
    done = Member("d-1", "EWR", 0, Outcome.COMMITTED, stage="COMMITTED", ordered_at=AHEAD, heard=AHEAD)
    rollout = ahead(done, gate={"soak_s": 600})
    assert decide(rollout, FLEET, AHEAD).rollout is rollout


async def test_a_hub_notices_by_itself_that_its_clock_was_set_back(hub: Hub, ann: httpx2.AsyncClient) -> None:
    """Nothing is heard meanwhile, and the look that was to come next is most of a day away."""
    await hub.enrol()
    digest = await push(ann, release())
    assert (await ann.post(f"/api/v1/releases/{digest}/approve", json={"emergency": "alone"})).status_code == 200
    plan = {"waves": [{"devices": ["EWR"]}, {"rest": True}], "gate": {"soak_s": 600}}
    made = (await ann.post("/api/v1/rollouts", json={"model": "delay", "release": digest, "plan": plan})).json()
    right = hub.now
    hub.now += timedelta(hours=20)  # a day, and the token would be over
    assert (await ann.post(f"/api/v1/rollouts/{made['id']}/approve", json={"emergency": "alone"})).status_code == 200
    await hub.report("d-1", "COMMITTED", digest, made["id"])
    for minutes, wave in ((1, 0), (10, 0), (12, 1)):
        hub.now = right + timedelta(minutes=minutes)
        await hub.runner.tick(hub.now)
        row = (await ann.get(f"/api/v1/rollouts/{made['id']}")).json()
        assert row["wave"] == wave, (minutes, row["waiting"])
    assert {device for device, *_ in (topic.split("/")[4:] for topic, *_ in hub.published)} == {"d-1", "d-2", "d-3"}
