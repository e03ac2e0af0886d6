"""How often someone may fail to log in. Pure: time is an argument, the state is the caller's."""

from dataclasses import dataclass, field

MAX_FAILURES = 5
WINDOW_S = 300.0
MAX_KEYS = 10_000


@dataclass(slots=True)
class Limiter:
    """Failures by key (an address, a user name) within a sliding window of monotonic seconds."""

    max_failures: int = MAX_FAILURES
    window_s: float = WINDOW_S
    _failures: dict[str, list[float]] = field(default_factory=dict)

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until another attempt is accepted; 0 when now."""
        recent = self._recent(key, now_s)
        return 0.0 if len(recent) < self.max_failures else recent[-self.max_failures] + self.window_s - now_s

    def failed(self, key: str, now_s: float) -> None:
        if key not in self._failures and len(self._failures) >= MAX_KEYS:
            self._failures.pop(next(iter(self._failures)))
        self._failures[key] = [*self._recent(key, now_s), now_s][-self.max_failures :]

    def succeeded(self, key: str) -> None:
        self._failures.pop(key, None)

    def _recent(self, key: str, now_s: float) -> list[float]:
        return [at for at in self._failures.get(key, ()) if at > now_s - self.window_s]
