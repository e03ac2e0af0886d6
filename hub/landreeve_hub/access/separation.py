"""Proposer and approver are two people, except in an emergency, which is looked at again. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from landreeve_hub.access.roles import Permission, Role, allowed

REVIEW_WITHIN = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Approved:
    """``review_by`` is set when a second person must still look at it."""

    review_by: datetime | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    sentence: str


def judge(proposer: str, approver: str, role: Role, now: datetime, emergency: str = "") -> Approved | Denied:
    """May this person approve what that person proposed? ``emergency`` is the reason given for doing without.

    >>> judge("ann", "ann", Role.ADMIN, datetime(2026, 1, 1)).sentence[:35]
    'ann proposed this and cannot also a'
    """
    if approver != proposer:
        return Approved() if allowed(role, Permission.APPROVE) else Denied(f"the role {role} may not approve")
    if not emergency.strip():
        return Denied(
            f"{approver} proposed this and cannot also approve it; ask someone else with the role approver or admin, "
            "or, as admin in an emergency, give the reason (--emergency REASON)"
        )
    if not allowed(role, Permission.EMERGENCY):
        return Denied(f"an emergency approval of one's own proposal takes the role admin; {approver} is {role}")
    return Approved(now + REVIEW_WITHIN)
