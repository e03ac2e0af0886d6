"""What the hub records, and what of it is about a person. The log itself is `landreeve.audit`. Pure."""

import msgspec
from landreeve.audit.entry import Act, Entry, Tampered, Verified

__all__ = ["Act", "Entry", "Tampered", "Verified", "with_person"]
_NO_PERSON = frozenset({"", "?", "hub", "setup", "system"})


def with_person(act: Act) -> Act:
    """The act with its actor marked as personal when it is someone's name (a program's has a colon in it).

    >>> with_person(Act("ann", "rollout.pause", "r-1")).personal
    {'actor': 'ann'}
    >>> with_person(Act("site:d-1:console", "code.make", "console")).personal
    {}
    """
    if act.actor in _NO_PERSON or ":" in act.actor or "actor" in act.personal:
        return act
    return msgspec.structs.replace(act, personal={"actor": act.actor, **act.personal})
