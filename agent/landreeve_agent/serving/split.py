"""Which version answers a request when several share a model's traffic. Pure.

The share is decided by a hash of the model's name and the request's key, so one customer always meets the same
version, on every box, and a version whose share grows keeps everyone it had. Source: Kohavi, Longbotham 2017, "Online
controlled experiments and A/B testing", on assignment by hashing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

_SPACE = float(1 << 64)
NEW, GOOD = "new", "good"
"""The arms of a split: the version that is to take over, and the last good one."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """How the split chose who answers a request, to be kept with each of its rows.

    ``unit`` is the key's hash by which it was chosen (`unit_of`), never the key; ``by`` says what the key was: the
    request's own ``key``, a ``column``, or the ``request`` alone, which is sticky for nobody. ``arm`` is ``new`` or
    ``good``, ``against`` the release of the other arm, and ``share`` the new one's part of the keys at that moment: so
    the assignment can be made again from what was kept.
    """

    unit: str
    by: str
    arm: str
    against: str
    share: float


def unit_of(model: str, key: str) -> str:
    """The hash of a key within a model, in 16 hex digits.

    >>> unit_of("delay", "customer-7") == unit_of("delay", "customer-7") != unit_of("price", "customer-7")
    True
    """
    return hashlib.blake2b(key.encode(), digest_size=8, key=model.encode()[:64]).hexdigest()


def point_of(unit: str) -> float:
    """Where a hash lies in [0, 1).

    >>> point_of("8000000000000000")
    0.5
    """
    return int(unit, 16) / _SPACE


def point(model: str, key: str) -> float:
    """Where a key lies in [0, 1), evenly and always the same.

    >>> point("delay", "customer-7") == point("delay", "customer-7") != point("price", "customer-7")
    True
    """
    return point_of(unit_of(model, key))


def pick(shares: Sequence[float], at: float) -> int:
    """The index of the share that covers the point, or -1 for the rest, which the active version answers.

    >>> [pick([0.1, 0.2], at) for at in (0.05, 0.1, 0.29, 0.3, 0.99)]
    [0, 1, 1, -1, -1]
    """
    upper = 0.0
    for index, share in enumerate(shares):
        upper += share
        if at < upper - 1e-12:
            return index
    return -1
