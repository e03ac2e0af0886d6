"""The last minutes of latencies, in memory: the live chart and the figures of the moment."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from landreeve_agent.intake.capture import Captured
from landreeve_agent.telemetry import latency

SLOT_S = 5
SLOTS = 60


@dataclass(frozen=True)
class Series:
    """Quantiles over time: unix seconds of each slot's begin, and milliseconds (None in an idle slot)."""

    t: tuple[int, ...]
    p50: tuple[float | None, ...]
    p95: tuple[float | None, ...]


@dataclass
class _Slot:
    begin: int
    models: dict[str, latency.Counts] = field(default_factory=dict)
    rows: int = 0


@dataclass
class Recent:
    """Five minutes in slots of five seconds. Lines are put where they were captured, not when they were read."""

    _slots: deque[_Slot] = field(default_factory=lambda: deque(maxlen=SLOTS))

    def add(self, captured: Iterable[Captured]) -> None:
        """Count answered rows."""
        for row in captured:
            slot = self._slot(int(row.t) // SLOT_S * SLOT_S)
            if slot is None or row.failed:
                continue
            counts = slot.models.setdefault(row.model, {})
            bucket = latency.bucket_of(row.us)
            counts[bucket] = counts.get(bucket, 0) + 1
            slot.rows += 1

    def quantile_ms(self, q: float, *, now_s: float, over_s: float, model: str | None = None) -> float | None:
        """The quantile over the last seconds, of one model or of all."""
        merged: latency.Counts = {}
        for slot in self._slots:
            if slot.begin + SLOT_S > now_s - over_s:
                merged = latency.merge(merged, _counts(slot, model))
        return latency.quantile_ms(merged, q)

    def series(self, now_s: float) -> Series:
        """The chart: one point a slot, the running one left out."""
        last = int(now_s) // SLOT_S * SLOT_S
        known = {slot.begin: _counts(slot, None) for slot in self._slots}
        times = tuple(range(last - SLOTS * SLOT_S, last, SLOT_S))
        counts = [known.get(t, {}) for t in times]
        return Series(
            times,
            tuple(latency.quantile_ms(c, 0.5) for c in counts),
            tuple(latency.quantile_ms(c, 0.95) for c in counts),
        )

    def _slot(self, begin: int) -> _Slot | None:
        for slot in reversed(self._slots):
            if slot.begin == begin:
                return slot
            if slot.begin < begin:
                break
        if self._slots and begin < self._slots[-1].begin:
            return None  # a line read late, after a restart: counted in the store, too old for the chart
        slot = _Slot(begin)
        self._slots.append(slot)
        return slot


def _counts(slot: _Slot, model: str | None) -> latency.Counts:
    if model is not None:
        return slot.models.get(model, {})
    merged: latency.Counts = {}
    for counts in slot.models.values():
        merged = latency.merge(merged, counts)
    return merged
