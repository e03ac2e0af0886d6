"""Which blobs no release needs any more, and since when. Pure; a doubt keeps.

A blob goes only after it was found needless at every look for the whole time it is kept. That time is counted in what
the hub itself saw pass between two looks, never by the clock on the wall: neither a clock that jumps nor a hub that
was off for a year brings a removal nearer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HOUR_S, DAY_S = 3600.0, 86_400.0
# More than this is never counted for one look: a machine that slept has seen nothing.
MOST_STEP_S = 2 * HOUR_S


@dataclass(frozen=True, slots=True)
class Keep:
    """Seconds for which what nothing needs is kept: blobs of releases that were withdrawn, quarantined or refused, and
    blobs of no release (an interrupted push or upload). None keeps for ever."""

    withdrawn_s: float | None
    orphans_s: float


@dataclass(frozen=True, slots=True)
class Needless:
    """One blob that nothing needs: why, for how long that has been seen, and after how long it goes."""

    digest: str
    why: str
    age_s: float
    after_s: float | None

    @property
    def ripe(self) -> bool:
        return self.after_s is not None and self.age_s >= self.after_s


def needless(  # noqa: PLR0917  what is here, who needs it, since when
    here: frozenset[str],
    needed: Mapping[str, frozenset[str]],
    gone: Mapping[str, frozenset[str]],
    busy: frozenset[str],
    ages: Mapping[str, float],
    keep: Keep,
) -> list[Needless]:
    """Every blob of ``here`` that is of none of the ``needed`` releases and not ``busy``, by digest.

    ``needed`` and ``gone`` map releases to all of their blobs; of a blob that both have, nothing happens. ``ages`` are
    the seconds for which each was seen needless so far.

    >>> keep = Keep(withdrawn_s=50.0, orphans_s=5.0)
    >>> found = needless(
    ...     frozenset("abc"), {"r": frozenset("a")}, {"w": frozenset("ab")}, frozenset(), {"b": 40.0, "c": 6.0}, keep
    ... )
    >>> [(one.digest, one.why, one.ripe) for one in found]
    [('b', 'w', False), ('c', '', True)]
    """
    kept = busy.union(*needed.values())
    owner = {digest: release for release, parts in gone.items() for digest in parts}
    found = []
    for digest in sorted(here - kept):
        why = owner.get(digest, "")
        after_s = keep.withdrawn_s if why else keep.orphans_s
        found.append(Needless(digest, why, ages.get(digest, 0.0), after_s))
    return found


def older(former: Mapping[str, float], now: frozenset[str], step_s: float) -> dict[str, float]:
    """The ages after another look, ``step_s`` after the one before: whoever was needed in between begins anew.

    >>> older({"a": 5.0, "b": 5.0}, frozenset("ac"), 3.0)
    {'a': 8.0, 'c': 0.0}
    """
    step_s = min(max(step_s, 0.0), MOST_STEP_S)
    return {digest: former[digest] + step_s if digest in former else 0.0 for digest in sorted(now)}
