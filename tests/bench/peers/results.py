"""What the rounds gave: figures by case, and what could not be measured."""

import statistics
from dataclasses import dataclass, field

Key = tuple[str, str, str, int]  # server, model, form, clients


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one case."""

    requests: int
    failures: int
    seconds: float
    cpu_s: float
    p50_us: float
    p99_us: float
    rss_mb: float = 0.0
    pss_mb: float = 0.0

    @property
    def rps(self) -> float:
        """Answered requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU of all the server's processes, a request."""
        return self.cpu_s * 1e6 / self.requests


@dataclass
class Results:
    """Rounds by case, what is not measured and why, and the machine's load average as the rounds began."""

    rounds: dict[Key, list[Figures]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    def median(self, key: Key, figure: str) -> float | None:
        """The median over the rounds; None when the case was not measured."""
        found = self.rounds.get(key)
        return statistics.median(getattr(one, figure) for one in found) if found else None

    def ratio(self, above: Key, below: Key, figure: str) -> float | None:
        """The median of the rounds' ratios; None when either case was not measured."""
        pairs = zip(self.rounds.get(above, ()), self.rounds.get(below, ()), strict=False)
        ratios = [getattr(a, figure) / getattr(b, figure) for a, b in pairs if getattr(b, figure)]
        return statistics.median(ratios) if ratios else None
