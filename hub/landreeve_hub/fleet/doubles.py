"""Whether two boxes speak under one identity: a disk was cloned. Pure.

Each start of a supervisor draws a number, its *run*, and says it with every state. One box has one run at a time, and
a run that has ended never speaks again: a restart, a lost line, a restored store, a connection that flaps are each a
run that goes on or a new one. Two boxes take turns: a run comes back after another has spoken. Brokers that hand a
session over to who came last make them take turns at each reconnect; brokers that do not, at each of their states.

What an ended process had under way may still arrive late. Such a message is older than its successor's, by the box's
clock and by its session number, so a return counts only when it is newer by both. A clock that is wrong on one of
the two boxes could hide that: many turns count as well, whatever their stamps.
"""

from dataclasses import dataclass, replace

WINDOW_S = 3600.0
QUIET_S = 1800.0
RETURNS = 2
TURNS = 8
_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Said:
    """A live state: whose run, in which of its sessions, when by the box's clock and when by ours (unix seconds)."""

    run: str
    session: int
    stamp: float
    heard: float


@dataclass(frozen=True, slots=True)
class Sight:
    """What is remembered of one identity: the run that spoke last, runs before it, when runs took turns (by our
    clock; ``returns`` are those beyond doubt), since when it counts as doubled (0: it does not), and whether the run
    ``spoke`` since the last turn."""

    run: str = ""
    session: int = 0
    stamp: float = 0.0
    former: tuple[str, ...] = ()
    turns: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    since: float = 0.0
    spoke: bool = True


def hear(sight: Sight, said: Said) -> Sight:
    """The sight after a state; an old agent that says no run changes nothing.

    >>> one = hear(Sight(), Said("a", 1, 10.0, 10.0))
    >>> two = hear(one, Said("b", 2, 20.0, 20.0))
    >>> hear(two, Said("a", 3, 30.0, 30.0)).turns
    (30.0,)
    """
    if not said.run:
        return sight
    if said.run == sight.run:
        newest = (max(sight.session, said.session), max(sight.stamp, said.stamp))
        return replace(sight, session=newest[0], stamp=newest[1], spoke=True)
    if said.run in sight.former:
        newer = said.stamp > sight.stamp and said.session >= sight.session
        if not newer:  # late, or by a wrong clock: it does not take the floor
            return _turn(sight, said, beyond_doubt=False) if sight.spoke else sight
        sight = _turn(sight, said, beyond_doubt=True)
    elif said.stamp < sight.stamp and said.session <= sight.session:
        return replace(sight, former=(*sight.former, said.run)[-_REMEMBERED:])  # heard of only after its successor
    former = tuple(run for run in (*sight.former, sight.run) if run and run != said.run)[-_REMEMBERED:]
    return replace(sight, run=said.run, session=said.session, stamp=said.stamp, former=former, spoke=True)


def _turn(sight: Sight, said: Said, *, beyond_doubt: bool) -> Sight:
    recent = [moment for moment in sight.returns if moment > said.heard - WINDOW_S]
    returns = (*recent, said.heard) if beyond_doubt else tuple(recent)
    turns = (*(moment for moment in sight.turns if moment > said.heard - WINDOW_S), said.heard)[-2 * TURNS :]
    doubled = sight.since or (said.heard if len(returns) >= RETURNS or len(turns) >= TURNS else 0.0)
    return replace(sight, turns=turns, returns=returns[-2 * TURNS :], since=doubled, spoke=False)


def settle(sight: Sight, now: float) -> Sight:
    """The sight once nothing has taken turns for `QUIET_S`: one of the two is gone, so the other may go on."""
    if sight.since and sight.turns and now - sight.turns[-1] > QUIET_S:
        return forgive(sight)
    return sight


def forgive(sight: Sight) -> Sight:
    """Begin anew: a person has dealt with it. Two that still take turns are seen again."""
    return replace(sight, turns=(), returns=(), since=0.0)
