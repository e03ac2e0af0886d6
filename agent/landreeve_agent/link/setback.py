"""Whether the hub was set back to an older copy of itself and no longer has facts that it once acknowledged. Pure.

Such a hub waits for numbers that nobody has any more, and everything behind them would wait with it for ever. One low
acknowledgement proves nothing: an old one may come again with a session. A hub that answers low several times in a row,
over longer than it takes to resend, means it.
"""

from dataclasses import dataclass

LOOKS = 3


@dataclass(slots=True)
class Setback:
    """Hears every acknowledgement of the present epoch; ``least_s`` is longer than a fact takes to be sent again."""

    least_s: float
    _since: float = 0.0
    _looks: int = 0

    def restart(self) -> None:
        """A new connection: what was heard before says nothing."""
        self._looks = 0

    def heard(self, seq: int, forgotten: int, now: float) -> bool:
        """The hub says it has everything up to ``seq``; this box has forgotten everything up to ``forgotten``. True
        when the numbers between must be given up. ``now`` is monotonic seconds.

        >>> setback = Setback(6.0)
        >>> [setback.heard(4, 9, now) for now in (0.0, 3.0, 7.0, 8.0)]
        [False, False, True, False]
        """
        if seq >= forgotten:
            self._looks = 0
            return False
        if not self._looks:
            self._since = now
        self._looks += 1
        if self._looks < LOOKS or now - self._since < self.least_s:
            return False
        self._looks = 0  # the answer to what is told now takes a moment
        return True
