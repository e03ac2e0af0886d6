"""What comes first on a device when a rollout says ``after``. Pure.

The newest rollout of each component named counts. On each of its devices this rollout waits for the outcome there; a
device on which the first failed or was left out is left out here as well. A device that fell silent may still carry out
the first order later: an agent that keeps to the order by itself gets both, another none. When the first rollout as a
whole does not stand, a person is asked once; resumed, the rollout no longer waits for it.
"""

from dataclasses import dataclass
from typing import assert_never

from landreeve.wire.ordering import FEATURE

from landreeve_hub.rollout.roster import Member, Outcome
from landreeve_hub.rollout.state import Around, DeviceFact, First, Rollout, State

FALLEN = frozenset({State.ROLLING_BACK, State.ROLLED_BACK, State.ABORTED})


@dataclass(frozen=True, slots=True)
class Before:
    """The device waits for what ``what`` names."""

    what: str


@dataclass(frozen=True, slots=True)
class Never:
    """What had to come first on the device did not come and will not."""

    sentence: str


def fallen(rollout: Rollout, around: Around) -> First | None:
    """The rollout that had to come first and does not stand, unless a person has been asked about it."""
    return next((one for one in around.first if _is_fallen(rollout, one) and asked_of(one) not in rollout.asked), None)


def asked_of(first: First) -> str:
    """How it is kept that a person was asked about it.

    >>> asked_of(First("firmware", "r-000004", State.ABORTED, {}))
    'after:r-000004'
    """
    return f"after:{first.rollout}"


def before(rollout: Rollout, member: Member, fact: DeviceFact, around: Around) -> Before | Never | None:
    """What stands against ordering the device for the sake of order."""
    waits = []
    for first in around.first:
        if first.state in FALLEN:  # ended before this one was proposed, or a person went on in spite of it
            continue
        match _of(first, member, fact):
            case Never() as never:
                return never
            case Before(what):
                waits.append(what)
            case None:
                pass
    return Before(" and ".join(waits)) if waits else None


def _is_fallen(rollout: Rollout, first: First) -> bool:
    return first.state in FALLEN and not first.late and (first.rollout in rollout.ahead or first.rollout > rollout.id)


def _of(first: First, member: Member, fact: DeviceFact) -> Before | Never | None:
    other = first.members.get(member.device)
    if other is None:
        return None
    match other.outcome:
        case Outcome.COMMITTED:
            return None
        case Outcome.WAITING | Outcome.ORDERED:
            return Before(f"{first.component} (rollout {first.rollout})")
        case Outcome.SILENT if FEATURE in fact.features:
            return None
        case Outcome.SILENT:
            why = "its agent keeps to no order among components, and nobody knows whether it took"
            return Never(f"{member.site} is left out: {why} {first.component}, which had to come first.")
        case Outcome.FAILED | Outcome.EXCLUDED | Outcome.SKIPPED | Outcome.REMOVED:
            return Never(
                f"{member.site} is left out: {first.component} had to come first and did not ({first.rollout})."
            )
        case _:
            assert_never(other.outcome)
