"""Which version answers a request when several share a model's traffic. Pure.

The share is decided by a hash of the model's name and the request's key, so one customer always meets the same
version, on every box, and a version whose share grows keeps everyone it had. Source: Kohavi, Longbotham 2017, "Online
controlled experiments and A/B testing", on assignment by hashing.
"""

import hashlib
from collections.abc import Sequence

_SPACE = float(1 << 64)


def point(model: str, key: str) -> float:
    """Where a key lies in [0, 1), evenly and always the same.

    >>> point("delay", "customer-7") == point("delay", "customer-7") != point("price", "customer-7")
    True
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=model.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / _SPACE


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
