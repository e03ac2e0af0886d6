"""What a site's line may carry: budgets by the hour and windows in the site's time, kept across kills."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.blobs.store import BlobStore
from landreeve.wire.codec import BLOCK_BYTES, decode_missing
from landreeve.wire.messages import Event
from landreeve.wire.schedule import LineRules, parse_window
from landreeve.wire.transfers import LANES
from landreeve_agent.link import gate as gates
from landreeve_agent.link.allowance import Go, Held, Spent, allowed, allowed_by, charged
from landreeve_agent.link.gate import Gate, zone_of
from landreeve_agent.link.transfer import Fetcher
from landreeve_agent.store.database import Database

from tests.agent.test_link_transfer import BLOCKS, DATA, DIGEST, Line

NOON = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)
MB = 1_000_000


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Site:
    folder: Path
    rules: LineRules
    clock: Clock = field(default_factory=Clock)
    told: list[Event] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def open(self) -> Gate:
        self.database = Database(self.folder / "agent.db")
        return Gate(self.database, self.clock, self.rules, "Asia/Dubai", self.told.append)


def test_windows_are_read_as_people_write_them() -> None:
    assert parse_window("sat,mon-tue 22:00-06:00").days == ("sat", "mon", "tue")
    assert parse_window("fri-sun 00:00-00:00").days == ("fri", "sat", "sun")
    for wrong in ("22-06", "someday 22:00-06:00", "mon 25:00-06:00", ""):
        with pytest.raises(ValueError, match=r"window|day"):
            parse_window(wrong)


def test_a_closed_window_is_said_with_the_site_s_own_time() -> None:
    rules = LineRules(windows=(parse_window("22:00-06:00"),))
    held = allowed(rules, "Asia/Dubai", Spent(), 5, NOON)
    assert isinstance(held, Held)
    assert held.until == datetime(2026, 3, 2, 18, tzinfo=UTC)
    assert held.sentence == "Transfers wait for the site's window and go on Mon 22:00 (Asia/Dubai)."
    assert allowed(rules, "Asia/Dubai", Spent(), 5, held.until) == Go(5)


def test_a_budget_that_is_used_up_waits_for_the_next_hour() -> None:
    rules = LineRules(bytes_per_hour=10 * MB)
    held = allowed(rules, "Asia/Dubai", charged(Spent(), 10 * MB, NOON), 5, NOON)
    assert isinstance(held, Held)
    assert held.sentence == "The line's budget of 10 MB an hour is used up; transfers go on Mon 17:00 (Asia/Dubai)."
    assert allowed(rules, "UTC", charged(Spent(), 10 * MB, NOON), 5, held.until) == Go(5)


@given(st.integers(1, 5 * MB), st.lists(st.tuples(st.integers(1, 2 * MB), st.integers(0, 1200)), max_size=40))
def test_no_hour_ever_carries_more_than_its_budget(budget: int, asked: list[tuple[int, int]]) -> None:
    rules, spent, now = LineRules(bytes_per_hour=budget), Spent(), NOON
    carried: dict[datetime, int] = {}
    for wanted, seconds in asked:
        verdict = allowed(rules, "UTC", spent, wanted, now)
        if isinstance(verdict, Held):
            assert verdict.until > now
            now = verdict.until
            continue
        assert 0 < verdict.bytes <= wanted
        spent = charged(spent, verdict.bytes, now)
        hour = now.replace(minute=0)
        carried[hour] = carried.get(hour, 0) + verdict.bytes
        now += timedelta(seconds=seconds)
    assert max(carried.values(), default=0) <= budget


async def test_what_was_let_through_counts_after_a_kill(tmp_path: Path) -> None:
    site = Site(tmp_path, LineRules(bytes_per_hour=3 * MB))
    gate = site.open()
    assert await gate.take(2_500_000, site.said.append) == 2_500_000
    again = site.open()
    assert await again.take(MB, site.said.append) == 500_000
    waiting = asyncio.create_task(again.take(MB, site.said.append))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert (
        again.held
        == site.said[0]
        == "The line's budget of 3 MB an hour is used up; transfers go on Mon 17:00 (Asia/Dubai)."
    )
    assert [event.name for event in site.told] == ["transfer.held"]
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_of_the_hub_s_rules_and_the_box_s_the_stricter_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "LOOK_S", 0.05)
    site = Site(tmp_path, LineRules(bytes_per_hour=3 * MB))
    gate = site.open()
    gate.add(LineRules(windows=(parse_window("03:00-04:00"),)))
    waiting = asyncio.create_task(gate.take(5, site.said.append))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    gate.add(LineRules(bytes_per_hour=MB))
    async with asyncio.timeout(5):
        assert await waiting == 5
    assert gate.held == ""
    assert await gate.take(5 * MB, site.said.append) == MB - 5
    gate.add(LineRules())  # a hub that sets no bound lifts none of the box's
    assert await gate.take(5 * MB, site.said.append) == 2 * MB
    gate.add(LineRules(windows=(parse_window("03:00-04:00"),), zone="Mars/Base"))
    gate.add(None)
    assert gate.limited


def test_of_two_waits_the_one_that_ends_last_is_said() -> None:
    night, budget = LineRules(windows=(parse_window("22:00-04:00"),)), LineRules(bytes_per_hour=MB)
    spent = charged(Spent(), MB, NOON)
    held = allowed_by([budget, night], "Asia/Dubai", spent, 5, NOON)
    assert isinstance(held, Held)
    assert held.sentence.startswith("Transfers wait for the site's window")


async def test_a_fetch_asks_for_no_more_than_the_hour_allows_and_goes_on_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "LOOK_S", 0.02)
    site, line = Site(tmp_path, LineRules(bytes_per_hour=4 * BLOCK_BYTES)), Line()
    line.connected.set()
    blobs = BlobStore(tmp_path / "blobs", margin_bytes=0)
    fetcher = Fetcher(line, blobs, repair_s=0.02, gate=site.open())
    fetching = asyncio.create_task(fetcher.fetch(DIGEST, len(DATA), BLOCKS, say=site.said.append))
    asked: list[int] = []
    async with asyncio.timeout(10):
        while not fetching.done():
            await asyncio.sleep(0.02)
            if site.said:
                asked.append(sum(len(want) for want in line.wants))
                site.said.clear()
                site.clock.now += timedelta(hours=1)
    assert (await fetching).read_bytes() == DATA
    assert asked == [4, 8]
    assert all(want.own and LANES not in want.speaks for want in line.told)
    assert all(len(decode_missing(want.missing, 10)) <= 4 for want in line.told)
    assert line.shared == []


def test_a_zone_that_is_none_is_said_and_utc_used() -> None:
    assert zone_of("Europe/Berlin") == ("Europe/Berlin", "")
    zone, doubt = zone_of("Mars/Base")
    assert zone == "UTC"
    assert "Mars/Base" in doubt
