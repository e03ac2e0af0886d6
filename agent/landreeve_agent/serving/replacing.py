"""When a worker with a run that never comes back may be replaced by a new one. Pure.

A thread cannot be ended, only its process. So that a model which hangs again and again does not keep a site busy with
replacing, each replacement of the last day doubles the pause before the next.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """At once the first time in ``within_s``, then after ``first_s``, twice that, and so on up to ``most_s``."""

    first_s: float = 60.0
    most_s: float = 3600.0
    within_s: float = 86_400.0

    def may(self, past: tuple[float, ...], now: float) -> bool:
        """Whether it may be tried now; ``past`` are the moments of former tries, the latest last (monotonic seconds).

        >>> [Pace().may((100.0, 160.0), now) for now in (279.0, 280.0)]
        [False, True]
        """
        recent = self.recent(past, now)
        if not recent:
            return True
        return now - recent[-1] >= min(self.first_s * 2.0 ** (len(recent) - 1), self.most_s)

    def recent(self, past: tuple[float, ...], now: float) -> tuple[float, ...]:
        """The tries that still count."""
        return tuple(moment for moment in past if now - moment < self.within_s)


def fits_beside(rss_bytes: float, available_bytes: float) -> bool:
    """Whether a second worker has room beside the first, with half as much again for its loading.

    >>> fits_beside(200e6, 299e6), fits_beside(200e6, 301e6)
    (False, True)
    """
    return available_bytes >= 1.5 * rss_bytes
