"""When the metadata a box believes expires: for ``doctor`` and the heartbeat. Reads the caches without TUF."""

import json
from datetime import datetime
from pathlib import Path

from landreeve.trust.document import REPOSITORIES

_ROLES = ("root", "timestamp", "snapshot", "targets")
_SECONDS_PER_DAY = 86_400.0


def first_expiry(trust_dir: Path) -> tuple[str, datetime] | None:
    """What expires first (``director timestamp``) and when; None before the first document was believed."""
    found = []
    for repository in REPOSITORIES:
        for role in _ROLES:
            try:
                signed = json.loads((trust_dir / "current" / repository / f"{role}.json").read_bytes())["signed"]
                found.append((f"{repository} {role}", datetime.fromisoformat(signed["expires"])))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a cache that cannot be read is made anew with the next document
    return min(found, key=lambda one: one[1], default=None)


def days_left(trust_dir: Path, now: datetime) -> float | None:
    """Days until the first of it expires; negative when it has."""
    first = first_expiry(trust_dir)
    return (first[1] - now).total_seconds() / _SECONDS_PER_DAY if first else None
