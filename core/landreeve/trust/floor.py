"""The earliest moment that it can be now, for boxes whose clock starts at 1970.

An expired document looks fresh to a clock in the past (python-tuf at 1970 accepted metadata 20 days expired).
The floor is the latest of: the moment this software was built, the hub's time at enrolment, and the signing
time of the last metadata that verified; while the process runs it rises with the monotonic clock. The box's
own clock never raises it: a clock once wrong in the future would otherwise refuse installs for ever.
"""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from landreeve.blobs.durable import write_durably

TOLERANCE = timedelta(days=1)
_KEEP_EVERY = timedelta(hours=1)
_FILE = "floor.json"


class Floor:
    """The floor kept in ``trust_dir``, never below ``build_time``; it never falls, whatever the clock does.
    ``monotonic`` counts seconds. Safe to call from several threads."""

    def __init__(self, trust_dir: Path, build_time: datetime, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._trust_dir = trust_dir
        self._build_time = build_time
        self._monotonic = monotonic
        self._one = threading.Lock()
        self._base = read_floor(trust_dir, build_time)
        self._since = monotonic()

    def earliest(self) -> datetime:
        """No clock that is right shows an earlier moment. The kept floor was true when this process began, so the
        time it has run since can be added."""
        with self._one:
            return self._earliest()

    def moment(self, now: datetime) -> datetime:
        """What expiry is judged by: the clock, or the floor where the clock is behind it."""
        return max(now, self.earliest())

    def learn(self, issued: datetime, now: datetime) -> None:
        """Verified metadata was signed at ``issued``. `OSError` when the floor cannot be kept."""
        with self._one:
            earliest = self._earliest()
            raised = max(believable(issued, now, earliest), earliest)
            self._base, self._since = raised, self._monotonic()
            if raised - read_floor(self._trust_dir, self._build_time) >= _KEEP_EVERY:  # spares the flash
                raise_floor(self._trust_dir, raised, self._build_time)

    def _earliest(self) -> datetime:
        ran = timedelta(seconds=self._monotonic() - self._since)
        return max(self._base + ran, read_floor(self._trust_dir, self._build_time))


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


def clock_problem(now: datetime, floor: datetime) -> str:
    """Why nothing can be installed by a clock that shows ``now``, in one sentence; empty when that is possible."""
    if not clock_is_behind(now, floor):
        return ""
    return (
        f"The clock says {now:%Y-%m-%d %H:%M} UTC, but it is at least {floor:%Y-%m-%d %H:%M} UTC. "
        "Nothing new is installed until the clock is set."
    )


def believable(issued: datetime, now: datetime, floor: datetime) -> datetime:
    """The signing time as far as it may raise the floor: a signer whose clock (or intent) is wrong must not push
    the floor past this box's own clock, not even a little with each document, and so stop every later install."""
    return min(issued, max(now, floor))
