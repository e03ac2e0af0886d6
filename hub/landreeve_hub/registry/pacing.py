"""How fast a stream of blocks may go: as fast as the slowest healthy devices take it. Pure.

Each device says from time to time what it still lacks; what was sent and is neither there nor known to be lost is on
its way. A device that keeps up could perhaps go faster; one that falls behind shows what it can take. Devices far
behind the middle one are not counted: the stream must not wait for them, and they get one of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REPORT_S = 1.0
QUANTILE = 0.1
# Slower than this share of the middle device is no device to wait for.
HEALTHY_SHARE = 0.25
# For so long a device must be too slow before it gets a stream of its own.
PATIENCE_S = 4.0
_KEEPING_UP = 0.6
# Far from where a limit was last met the rate doubles, near it feels its way. A long queue is let run empty.
_GROWTH, _PROBE, _RELIEF, _DRAIN = 2.0, 1.15, 0.9, 0.5
# One report that came at a bad moment must not stop the stream.
_MOST_FALL = 0.4
_FEW_BLOCKS = 8
_REPORTS_PER_S = 20.0
_BURST_S = 0.1


@dataclass(frozen=True, slots=True)
class Advance:
    """How one device advanced since it last told: blocks a second that arrived, blocks on their way, blocks lost."""

    arrived_per_s: float
    under_way: int
    lost: int = 0

    @property
    def is_behind(self) -> bool:
        """Blocks were lost, or those on their way take it longer than a moment."""
        return self.lost > 0 or self.under_way > max(_FEW_BLOCKS, REPORT_S * self.arrived_per_s)


@dataclass(slots=True)
class Pace:
    """The rate of one stream, in blocks a second, between ``least`` and ``most``."""

    rate: float
    least: float
    most: float
    next_at: float = 0.0
    _limit: float = 0.0

    def judge(self, advances: Mapping[str, Advance]) -> None:
        """Adapt the rate to how devices advanced that told since it was last judged: all, or a sample."""
        if not advances:
            return
        behind = {device for device, advance in advances.items() if advance.is_behind}
        takes = {
            device: advance.arrived_per_s if device in behind else max(advance.arrived_per_s, self.rate)
            for device, advance in advances.items()
        }
        ranked = sorted(takes.values())
        healthy = [speed for speed in ranked if speed >= HEALTHY_SHARE * ranked[len(ranked) // 2]]
        slowest = healthy[int(QUANTILE * len(healthy))]
        if slowest < self.rate:
            self._limit = slowest
            wanted = slowest * (_RELIEF if self._queue_s(advances, healthy) < 2 * REPORT_S else _DRAIN)
        else:
            near = 0.7 * self._limit <= self.rate <= 1.5 * self._limit
            wanted = self.rate * (_PROBE if near else _GROWTH)
        self.rate = min(self.most, max(self.least, wanted, self.rate * _MOST_FALL))

    def may_send(self, now: float) -> bool:
        return now >= self.next_at

    def sent(self, now: float) -> None:
        """A block left; the next may after its share of a second. Of a pause no more than a moment is made up for."""
        self.next_at = max(self.next_at, now - _BURST_S) + 1.0 / self.rate

    def room(self, under_way: int) -> bool:
        """Whether one more block may be on its way to a single device: it may be deaf."""
        return under_way < max(_FEW_BLOCKS, 3 * REPORT_S * self.rate)

    def is_too_fast_for(self, advance: Advance, middle: float, *, spared: bool) -> bool:
        """Whether a device would better have a stream of its own: it is behind, and far below the middle one. With
        ``spared`` also one that is somewhat below what the others set: the few that the pace does not wait for."""
        limit = max(HEALTHY_SHARE * middle, _KEEPING_UP * self.rate if spared else 0.0)
        return advance.is_behind and advance.arrived_per_s < limit

    def _queue_s(self, advances: Mapping[str, Advance], healthy: Sequence[float]) -> float:
        """How long the queue of the slowest healthy device takes it."""
        waits = [
            advance.under_way / max(advance.arrived_per_s, self.least)
            for advance in advances.values()
            if advance.arrived_per_s >= healthy[0]
        ]
        return max(waits, default=0.0)


def middle(advances: Mapping[str, Advance]) -> float:
    """What the middle device takes, the faster one of two."""
    ranked = sorted(advance.arrived_per_s for advance in advances.values())
    return ranked[len(ranked) // 2] if ranked else 0.0


def report_s(devices: int) -> float:
    """How often each of so many devices should tell: together some twenty times a second at most."""
    return min(10.0, max(REPORT_S, devices / _REPORTS_PER_S))
