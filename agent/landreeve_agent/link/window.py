"""Which facts are under way, and when one is due again. Pure: the time is an argument, in monotonic seconds."""

from dataclasses import dataclass, field

from landreeve_agent.link.outbox import Pending

MAX_RESEND_S = 30.0


@dataclass(slots=True)
class _Flight:
    fact: Pending
    since: float


@dataclass(slots=True)
class Window:
    """At most ``size`` facts between being sent and the hub's acknowledgement.

    An unanswered fact is due again after ``resend_s``; without any answer that time doubles up to 30 s, so that
    a dead hub does not cost the site's line.
    """

    size: int
    resend_s: float
    last: int = 0
    _epoch: int = 0
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _patience_s: float = 0.0
    _rate: float | None = None
    _allowance: float = 0.0
    _counted_at: float = 0.0

    def restart(self, epoch: int) -> None:
        """A new connection: everything that waits is sent anew."""
        self.last = 0
        self._epoch = epoch
        self._flights.clear()
        self._patience_s = self.resend_s

    def limit(self, facts_per_s: float | None) -> None:
        """At most that many new facts a second."""
        self._rate = facts_per_s if facts_per_s and facts_per_s > 0 else None

    def room(self, now: float) -> int:
        """How many new facts may go now."""
        free = self.size - len(self._flights)
        if self._rate is None:
            return free
        burst = max(1.0, self._rate)
        self._allowance = min(burst, self._allowance + (now - self._counted_at) * self._rate)
        self._counted_at = now
        return min(free, int(self._allowance))

    def sent(self, fact: Pending, now: float) -> None:
        """That fact has just been handed to the broker for the first time on this connection."""
        self._flights[fact.seq] = _Flight(fact, now)
        self.last = max(self.last, fact.seq)
        if self._rate is not None:
            self._allowance -= 1.0

    def overdue(self, now: float) -> list[Pending]:
        """The facts to send again now; they count as sent."""
        late = [flight for flight in self._flights.values() if now - flight.since >= self._patience_s]
        for flight in late:
            flight.since = now
        if late:
            self._patience_s = min(self._patience_s * 2, max(MAX_RESEND_S, self.resend_s))
        return [flight.fact for flight in late]

    def acknowledge(self, epoch: int, seq: int) -> bool:
        """The hub has all of ``epoch`` up to ``seq``; False when that is not about this outbox."""
        if epoch != self._epoch:
            return False
        for number in [n for n in self._flights if n <= seq]:
            del self._flights[number]
        self._patience_s = self.resend_s
        return True

    def next_due(self, now: float, *, full: bool) -> float | None:
        """Seconds until something is to be done without being woken; None when there is nothing. ``full`` says
        that the last look at the outbox used all the room there was."""
        due = [max(0.0, flight.since + self._patience_s - now) for flight in self._flights.values()]
        if self._rate is not None and full and len(self._flights) < self.size:
            due.append(max(0.0, (1.0 - self._allowance) / self._rate))
        return min(due, default=None)
