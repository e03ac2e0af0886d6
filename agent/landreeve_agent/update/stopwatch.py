"""How long something has lasted, whatever the wall clock does meanwhile."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from landreeve_agent.store.stamps import moment

_MOST = 64


@dataclass
class Stopwatch:
    """Seconds since a stamp in the store. Until the first look at the stamp by this process they are the wall clock's,
    since only that outlasts a restart; from then on ``monotonic`` counts: a clock that jumps a year forward makes no
    probation a year old, and one that falls back to 1970 lets none last for ever.
    """

    monotonic: Callable[[], float] = time.monotonic
    _begun: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def since(self, subject: str, stamp: str, now: datetime) -> float:
        """Seconds since ``stamp``, which belongs to ``subject``; never negative. ``now`` is the wall clock."""
        key = (subject, stamp)
        if key not in self._begun:
            while len(self._begun) >= _MOST:
                del self._begun[next(iter(self._begun))]
            self._begun[key] = (max(0.0, (now - moment(stamp)).total_seconds()), self.monotonic())
        before_s, began = self._begun[key]
        return before_s + self.monotonic() - began
