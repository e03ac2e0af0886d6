"""What came of each arm of a split of the traffic, from rows that say how they were assigned and labels as they come.

A row counts for an arm when the split chose it, not when the caller asked for that version. Rows of one key are alike,
so a key counts once, by its mean: the interval of the outcome is over keys (Deng, Knoblich, Lu 2018, "Applying the
delta method in metric analytics"). It is for one look at the end; what may be looked at all the time is the probation.
Fewer or more keys in an arm than its share says (a chance below 1 in 1,000) mean that the split or the capture is not
what it should be, and the figures nothing (Fabijan et al. 2019, "Diagnosing sample ratio mismatch").
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlite_utils import Database as Tables

from landreeve_agent.serving.split import GOOD, NEW
from landreeve_agent.update.probation import log_loss

MOST_ROWS = 200_000
MOST_TESTS = 10
_Z = 1.959963984540054
_MISMATCH = 3.290526731491926  # a chance of 1 in 1,000, two-sided

_TESTS = """
SELECT iif(arm = 'new', release, against) AS new, iif(arm = 'new', against, release) AS good,
  min(captured), max(captured), max(share), min(share)
FROM samples WHERE model = ? AND unit IS NOT NULL GROUP BY new, good ORDER BY max(captured) DESC LIMIT ?
"""
_ROWS = """
SELECT s.unit, s.version, s.p, s.err IS NOT NULL, l.label
FROM samples s LEFT JOIN labels l ON l.model = s.model AND l.id = s.id
WHERE s.model = ? AND s.unit IS NOT NULL AND s.arm = ? AND s.release = ? AND s.against = ?
ORDER BY s.captured DESC LIMIT ?
"""


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One arm. ``outcome`` is the mean label, each key counting once, with its 95 % interval; ``log_loss`` is over
    rows (nats); None where nothing is known."""

    arm: str
    release: str
    version: str = ""
    keys: int = 0
    rows: int = 0
    errors: int = 0
    mean_answer: float | None = None
    labelled_keys: int = 0
    labelled_rows: int = 0
    outcome: float | None = None
    outcome_low: float | None = None
    outcome_high: float | None = None
    log_loss: float | None = None


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A split of the traffic between two releases: what each arm came to, and the new one's outcome minus the other's.
    ``share`` is the new one's part of the keys, None when it was raised meanwhile."""

    first: str
    last: str
    share: float | None
    arms: tuple[Arm, ...]
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    mismatch: bool = False


def splits(tables: Tables, model: str, most: int = MOST_TESTS) -> list[Split]:
    """Every split of the model's traffic that rows are kept of, newest first."""
    found = tables.conn.execute(_TESTS, (model, most)).fetchall()
    return [_split(tables, model, row) for row in found]


def _split(tables: Tables, model: str, row: tuple[Any, ...]) -> Split:
    new, good, first, last, most, least = row
    ours, theirs = (
        _read(tables, (model, arm, release, against)) for arm, release, against in ((NEW, new, good), (GOOD, good, new))
    )
    share = float(most) if most == least else None
    low, difference, high = _difference(ours, theirs)
    return Split(
        first=first,
        last=last,
        share=share,
        arms=(_arm(NEW, new, ours), _arm(GOOD, good, theirs)),
        difference=difference,
        difference_low=low,
        difference_high=high,
        mismatch=share is not None and is_mismatch(len(ours.rows), len(theirs.rows), share),
    )


@dataclass
class _Read:
    """Rows of one arm: how many each key has, and its labels' sum and count."""

    version: str = ""
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    labels: dict[str, tuple[float, int]] = field(default_factory=dict)
    errors: int = 0
    answers: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def _read(tables: Tables, which: tuple[str, str, str, str]) -> _Read:
    read = _Read()
    for unit, version, p, failed, label in tables.conn.execute(_ROWS, (*which, MOST_ROWS)):
        read.version = read.version or version
        read.rows[unit] += 1
        read.errors += failed
        if p is not None:
            read.answers.append(p)
        if label is not None:
            total, count = read.labels.get(unit, (0.0, 0))
            read.labels[unit] = (total + label, count + 1)
            if p is not None and 0.0 <= p <= 1.0:
                read.losses.append(log_loss(p, label))
    return read


def _arm(arm: str, release: str, read: _Read) -> Arm:
    outcome, spread = mean_of(_outcomes(read))
    return Arm(
        arm=arm,
        release=release,
        version=read.version,
        keys=len(read.rows),
        rows=sum(read.rows.values()),
        errors=read.errors,
        mean_answer=_mean(read.answers),
        labelled_keys=len(read.labels),
        labelled_rows=sum(count for _, count in read.labels.values()),
        outcome=outcome,
        outcome_low=None if outcome is None or spread is None else outcome - _Z * spread,
        outcome_high=None if outcome is None or spread is None else outcome + _Z * spread,
        log_loss=_mean(read.losses),
    )


def _outcomes(read: _Read) -> list[float]:
    return [total / count for total, count in read.labels.values()]


def _difference(ours: _Read, theirs: _Read) -> tuple[float | None, float | None, float | None]:
    (a, a_spread), (b, b_spread) = mean_of(_outcomes(ours)), mean_of(_outcomes(theirs))
    if a is None or b is None:
        return None, None, None
    if a_spread is None or b_spread is None:
        return None, a - b, None
    spread = math.hypot(a_spread, b_spread)
    return a - b - _Z * spread, a - b, a - b + _Z * spread


def mean_of(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error; None for none, no error for one.

    >>> mean_of([0.0, 1.0, 0.0, 1.0])
    (0.5, 0.28867513459481287)
    """
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def is_mismatch(new: int, good: int, share: float) -> bool:
    """Whether so many keys in each arm are too unlikely under that share.

    >>> is_mismatch(480, 520, 0.5), is_mismatch(400, 600, 0.5)
    (False, True)
    """
    n = new + good
    if not n or not 0 < share < 1:
        return False
    return abs(new - n * share) > _MISMATCH * math.sqrt(n * share * (1 - share)) + 0.5


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
