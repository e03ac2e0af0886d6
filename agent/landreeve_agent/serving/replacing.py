"""When a worker with a run that never comes back may be replaced by a new one, and when one that has the simpler plans
of a crash loop may have its own again. Pure.

A thread cannot be ended, only its process. So that a model which hangs again and again does not keep a site busy with
replacing, each replacement of the last day doubles the pause before the next.
"""

from dataclasses import dataclass, replace


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


@dataclass(frozen=True, slots=True)
class Falls:
    """How often the worker fell back to simpler plans: what broke its own may have been a passing thing (a driver that
    was being updated, a neighbour that took the memory), so they are tried again, ever more seldom.

    ``past`` are the moments of the last day's falls, ``simple`` whether it runs so now, ``tried`` when its own plans
    were last tried again (monotonic seconds).
    """

    past: tuple[float, ...] = ()
    simple: bool = False
    tried: float | None = None

    def fallen(self, pace: Pace, now: float) -> "Falls":
        """The same after another fall."""
        return Falls((*pace.recent(self.past, now), now), simple=True, tried=self.tried)

    def again(self, now: float) -> "Falls":
        """The same with its own plans tried again."""
        return replace(self, simple=False, tried=now)

    def may_try(self, pace: Pace, now: float) -> bool:
        """Whether its own plans may be tried again.

        >>> pace, fallen = Pace(first_s=600.0), Falls().fallen(Pace(), 0.0)
        >>> [fallen.may_try(pace, 599.0), fallen.may_try(pace, 600.0), fallen.fallen(pace, 600.0).may_try(pace, 1799.0)]
        [False, True, False]
        """
        return self.simple and pace.may(self.past, now)

    def relapsed(self, now: float, within_s: float) -> bool:
        """Whether a death now comes so soon after its own plans were tried again that they are to blame."""
        return self.tried is not None and now - self.tried <= within_s


def fits_beside(rss_bytes: float, available_bytes: float) -> bool:
    """Whether a second worker has room beside the first, with half as much again for its loading.

    >>> fits_beside(200e6, 299e6), fits_beside(200e6, 301e6)
    (False, True)
    """
    return available_bytes >= 1.5 * rss_bytes
