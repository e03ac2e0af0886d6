"""The pace of a shared stream, against a simulated fleet with lines of any speed behind a broker that buffers."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve_hub.registry.pacing import REPORT_S, Advance, Pace
from landreeve_hub.registry.serving import Demand

DIGEST = "a" * 64
STEP_S = 0.05
QUIET_S = 2.0
# What a broker holds for one connection before it drops.
BUFFER = 2000


@dataclass
class Device:
    """A line of ``speed`` blocks a second behind the broker's buffer; ``deaf_from`` on it takes nothing any more."""

    speed: float
    missing: set[int]
    starts: float = 0.0
    deaf_from: float = float("inf")
    starved: tuple[float, float] = (0.0, 0.0)
    buffer: list[int] = field(default_factory=list)
    credit: float = 0.0
    told_at: float = -1.0
    moved_at: float = -10.0
    done_at: float | None = None
    shared: bool = True
    report_s: float = REPORT_S
    most_buffered: int = 0
    carried: int = 0

    def take(self, now: float) -> None:
        self.credit = min(self.credit + self.speed * STEP_S, max(1.0, self.speed * STEP_S))
        starved = self.starved[0] <= now < self.starved[1]
        while self.credit >= 1 and self.buffer and now < self.deaf_from and not starved:
            self.credit -= 1
            self.carried += 1
            self.missing.discard(self.buffer.pop(0))
            self.moved_at = now
        if not self.missing and self.done_at is None:
            self.done_at = now

    def give(self, index: int) -> None:
        if len(self.buffer) < BUFFER:
            self.buffer.append(index)
        self.most_buffered = max(self.most_buffered, len(self.buffer))


class Fleet:
    """Devices as agents are: they want when nothing comes, report every second, leave the shared stream when told."""

    def __init__(self, devices: dict[str, Device], hub_per_s: float = 400.0) -> None:
        self.devices = devices
        self.demand = Demand()
        self.hub_per_s = hub_per_s
        self.now = 0.0
        self.sent = 0

    def run(self, until_s: float) -> None:
        while self.now < until_s and any(device.done_at is None for device in self.devices.values()):
            self.now += STEP_S
            for name, device in self.devices.items():
                self._speak(name, device)
            for name, _digest in self.demand.outcasts():
                self.devices[name].shared = False
            self._send()
            for device in self.devices.values():
                device.take(self.now)

    def _speak(self, name: str, device: Device) -> None:
        if device.done_at is not None or self.now < device.starts or self.now >= device.deaf_from:
            return
        if self.now - max(device.moved_at, device.told_at if device.told_at < 0 else device.moved_at) > QUIET_S:
            own = not device.shared
            self.demand.want(name, DIGEST, frozenset(device.missing), self.now, reports=True, own=own)
            device.report_s = self.demand.report_s(DIGEST)
            device.told_at = (
                self.now if device.told_at > 0 else self.now - (int(name[2:]) * 37 % 100) / 100 * device.report_s
            )
            device.moved_at = self.now
        elif self.now - device.told_at >= device.report_s:
            self.demand.report(name, DIGEST, frozenset(device.missing), self.now)
            device.told_at = self.now

    def _send(self) -> None:
        for _ in range(int(self.hub_per_s * STEP_S)):
            piece = self.demand.next(self.now)
            if piece is None:
                return
            self.sent += 1
            for name, device in self.devices.items():
                if name == piece.device or (not piece.device and device.shared and device.missing):
                    device.give(piece.index)


def fleet(speeds: list[float], blocks: int = 400, **changes: float) -> Fleet:
    return Fleet({f"d-{i}": Device(speed, set(range(blocks)), **changes) for i, speed in enumerate(speeds)})


def slowest(made: Fleet, names: list[str]) -> float:
    times = [made.devices[name].done_at for name in names]
    assert all(time is not None for time in times)
    return max(time for time in times if time is not None)


def test_a_slow_device_does_not_slow_the_others_and_gets_all_at_its_own_pace() -> None:
    alone, mixed = fleet([200.0] * 5, 1600), fleet([200.0] * 5 + [10.0], 1600)
    alone.run(60)
    mixed.run(400)
    fast = [f"d-{i}" for i in range(5)]
    assert slowest(mixed, fast) <= 1.3 * slowest(alone, fast)
    slow = mixed.devices["d-5"]
    assert not slow.shared
    assert slow.done_at is not None
    assert slow.done_at < 1.6 * 1600 / 10.0
    assert slow.most_buffered < 1200


def test_one_of_two_that_is_slow_does_not_hold_up_the_other() -> None:
    made = fleet([200.0, 8.0])
    made.run(300)
    assert slowest(made, ["d-0"]) < 12
    assert made.devices["d-1"].done_at is not None


@pytest.mark.parametrize("deaf_from", [0.5, 2.5])
def test_a_stuck_device_does_not_slow_the_others(deaf_from: float) -> None:
    alone, mixed = fleet([100.0] * 4), fleet([100.0] * 4)
    mixed.devices["d-9"] = Device(100.0, set(range(400)), deaf_from=deaf_from)
    alone.run(60)
    mixed.run(60)
    fast = [f"d-{i}" for i in range(4)]
    assert slowest(mixed, fast) <= 1.3 * slowest(alone, fast)
    assert mixed.devices["d-9"].most_buffered < 400


def test_the_stream_is_as_fast_as_most_lines_and_buffers_little() -> None:
    made = fleet([60.0] * 20, blocks=900)
    made.run(120)
    assert slowest(made, list(made.devices)) < 2 * 900 / 60
    assert max(device.most_buffered for device in made.devices.values()) < 400
    assert made.sent < 1.3 * 900


def test_one_who_joins_late_costs_the_others_nothing() -> None:
    alone, mixed = fleet([80.0] * 4), fleet([80.0] * 4)
    mixed.devices["d-9"] = Device(80.0, set(range(400)), starts=3.0)
    alone.run(60)
    mixed.run(60)
    fast = [f"d-{i}" for i in range(4)]
    assert slowest(mixed, fast) <= 1.3 * slowest(alone, fast)
    assert mixed.devices["d-9"].done_at is not None


def test_a_pause_that_many_share_expels_nobody_and_repeats_nothing() -> None:
    """Half of the fleet takes nothing for three seconds, then all of it goes on: one network, not slow devices."""
    made = fleet([100.0] * 10, blocks=900)
    for number in range(5):
        made.devices[f"d-{number}"].starved = (3.0, 6.0)
    made.run(120)
    assert all(device.shared for device in made.devices.values())
    assert all(device.done_at is not None for device in made.devices.values())
    assert made.sent < 1.1 * 900


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([2.0, 5.0, 20.0, 60.0, 150.0, 390.0]), min_size=1, max_size=7))
def test_everybody_gets_everything_whatever_their_lines(speeds: list[float]) -> None:
    made = fleet(speeds, blocks=120)
    made.run(600)
    for device in made.devices.values():
        assert device.done_at is not None
        assert device.done_at < 10 + 4 * 120 / device.speed
        assert device.carried <= 1.6 * 120 + 60


def test_nobody_known_changes_nothing() -> None:
    pace = Pace(10.0, 1.0, 100.0)
    pace.judge({})
    assert pace.rate == 10.0


def test_losses_slow_the_stream_even_while_blocks_arrive() -> None:
    pace = Pace(100.0, 1.0, 1000.0)
    pace.judge({"d-1": Advance(80.0, under_way=2, lost=30)})
    assert pace.rate < 80
