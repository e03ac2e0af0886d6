"""The box's clock, watched: jumps are told, and what was refused for the clock is looked at again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import time_machine
from landreeve.trust.anchor import install
from landreeve.trust.floor import raise_floor
from landreeve.wire.messages import Event
from landreeve_agent.commands.checks import examine
from landreeve_agent.config import StateFolder
from landreeve_agent.console.status import HubView, doubts_of_time
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update.clock import ClockWatch
from landreeve_agent.update.stopwatch import Stopwatch

from tests.fakes.tuf_repository import TufRepository

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


class Box:
    def __init__(self) -> None:
        self.clock, self.uptime_s = NOW, 0.0
        self.told: list[Event] = []
        self.looked = 0
        self.watch = ClockWatch(lambda: self.clock, self.reconsider, self.tell, lambda: self.uptime_s)

    async def reconsider(self) -> None:
        self.looked += 1

    async def tell(self, event: Event) -> None:
        self.told.append(event)

    async def after(self, seconds: float, *, jump_s: float = 0.0) -> None:
        self.uptime_s += seconds
        self.clock += timedelta(seconds=seconds + jump_s)
        await self.watch.tick()


async def test_jump_is_told_once_and_makes_the_box_look_again() -> None:
    box = Box()
    for _ in range(20):
        await box.after(5)
    assert (box.told, box.looked) == ([], 0)
    await box.after(5, jump_s=2e9)
    await box.after(5)
    await box.after(5, jump_s=-2e9)
    assert [event.cause for event in box.told] == ["jumped_forwards", "jumped_back"]
    assert box.told[0].data == {"seconds": 2e9}
    assert box.looked == 2


async def test_small_corrections_are_no_jump_and_refused_orders_are_looked_at_every_ten_minutes() -> None:
    box = Box()
    for _ in range(121):
        await box.after(5, jump_s=1.0)
    assert box.told == []
    assert box.looked == 1


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    """A member of a fleet that believed metadata which holds until the end of 2026."""
    folder = StateFolder(tmp_path)
    folder.identity.write_text("{}")
    repository = TufRepository(NOW)
    install(folder.trust, dict.fromkeys(("director", "targets"), repository.roots[0]), NOW)
    raise_floor(folder.trust, NOW, NOW)
    cache = folder.trust / "current" / "director"
    cache.mkdir(parents=True)
    (cache / "timestamp.json").write_text(repository.publish()["timestamp.json"])
    return folder


@pytest.mark.parametrize(
    ("clock", "clock_state", "metadata_state"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "fail", "ok"),
        (NOW, "ok", "ok"),
        (datetime(2090, 1, 1, tzinfo=UTC), "ok", "warn"),
    ],
)
def test_doctor_judges_the_clock_by_the_floor(
    state: StateFolder, clock: datetime, clock_state: str, metadata_state: str
) -> None:
    with time_machine.travel(clock, tick=False):
        found = {check.check: check for check in examine(state, {})}
    assert (found["clock"].state, found["signed metadata"].state) == (clock_state, metadata_state)
    if clock.year == 2090:
        assert "set the clock if it is wrong" in found["signed metadata"].fix


def test_offset_to_the_hub_and_expired_metadata_are_shown() -> None:
    def texts(hub: HubView) -> list[str]:
        return [finding.sentence for finding in doubts_of_time(hub)]

    assert texts(HubView(clock_ahead_s=59.0, metadata_days=0.5)) == []
    assert texts(HubView(clock_ahead_s=-7300.0)) == [
        "This box's clock is 2 hours behind the hub's; one of them is wrong."
    ]
    assert texts(HubView(clock_ahead_s=9e8)) == [
        "This box's clock is 10417 days ahead of the hub's; one of them is wrong."
    ]
    assert texts(HubView(metadata_days=-1.0))[0].startswith("What the hub signed has expired")
    assert texts(HubView(metadata_days=-1.0, clock="The clock says 1970.")) == ["The clock says 1970."]


@pytest.mark.parametrize("jump", [timedelta(days=365), timedelta(days=-20_000)], ids=["a year ahead", "back to 1970"])
def test_probation_lasts_as_long_as_it_lasts_when_the_clock_jumps(jump: timedelta) -> None:
    ran = [100.0]
    watch, began = Stopwatch(lambda: ran[0]), stamp(NOW)
    assert watch.since("r", began, NOW + timedelta(seconds=2)) == 2.0
    ran[0] += 5.0
    assert watch.since("r", began, NOW + timedelta(seconds=7) + jump) == 7.0
    ran[0] += 5.0
    assert watch.since("r", began, NOW + timedelta(seconds=12)) == 12.0


def test_after_a_restart_the_wall_clock_tells_how_long_it_was_before_and_never_less_than_nothing() -> None:
    assert Stopwatch(lambda: 0.0).since("r", stamp(NOW), NOW + timedelta(hours=3)) == 3 * 3600.0
    assert Stopwatch(lambda: 0.0).since("r", stamp(NOW), NOW - timedelta(days=20_000)) == 0.0
