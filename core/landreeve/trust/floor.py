"""The earliest moment that it can be now, for boxes whose clock starts at 1970.

An expired document looks fresh to a clock in the past (python-tuf at 1970 accepted metadata 20 days expired).
The floor is the latest of: the moment this software was built, the hub's time at enrolment, and the signing
time of the last metadata that verified. The box's own clock never raises it: a clock once wrong in the future
would otherwise refuse installs for ever.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from landreeve.blobs.durable import write_durably

TOLERANCE = timedelta(days=1)
_FILE = "floor.json"


def read_floor(trust_dir: Path, build_time: datetime) -> datetime:
    """The floor as kept, never below ``build_time``. A damaged file counts as none: it can only be lower."""
    try:
        kept = datetime.fromisoformat(json.loads((trust_dir / _FILE).read_text())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return build_time
    return max(build_time, kept) if kept.tzinfo else build_time


def raise_floor(trust_dir: Path, moment: datetime, build_time: datetime) -> None:
    """Keep ``moment`` when it is later than the floor."""
    if moment > read_floor(trust_dir, build_time):
        text = json.dumps({"time": moment.astimezone(UTC).isoformat()})
        write_durably(trust_dir / _FILE, text.encode(), 0o600)


def clock_is_behind(now: datetime, floor: datetime) -> bool:
    """Whether the clock is so far below the floor that nothing's expiry can be judged."""
    return now < floor - TOLERANCE


def believable(issued: datetime, now: datetime, floor: datetime) -> datetime:
    """The signing time as far as it may raise the floor: a signer whose clock (or intent) is wrong must not
    push the floor into the future and so stop every later install."""
    return min(issued, max(now, floor) + TOLERANCE)
