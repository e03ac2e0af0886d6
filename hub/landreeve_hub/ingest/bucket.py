"""How much one device may say, so that it cannot drown the others: a bucket for each that fills again. Pure.

What a device is *asked* to keep to is its rate (`limits.facts_per_s`); this is what it is *held* to. It is far above
what an honest box can say: after a week without a line it sends some 2,500 facts a second for a minute or two, and what
it is not heard of it repeats, since it was not acknowledged.
"""

from dataclasses import dataclass, field

PER_S = 2_000.0
BURST = 100_000.0


@dataclass
class Buckets:
    """Messages by device: ``per_s`` for ever, ``burst`` at once."""

    per_s: float = PER_S
    burst: float = BURST
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, device: str, now: float) -> bool:
        """Whether the device may say one more at this moment (monotonic seconds).

        >>> buckets = Buckets(per_s=1.0, burst=2.0)
        >>> [buckets.take("d", 0.0), buckets.take("d", 0.0), buckets.take("d", 0.5), buckets.take("d", 1.5)]
        [True, True, False, True]
        """
        left, since = self._left.get(device, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.per_s)
        may = left >= 1.0
        self._left[device] = (left - 1.0 if may else left, now)
        return may
