"""Captured lines into samples and counters, inside the caller's transaction.

A row is counted once: the first answer for an id is its prediction, a repeat is counted as a repeat. A sample
that came in without a prediction (collected before there was a model, or a failed run) takes the first one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby

import msgspec
from sqlite_utils import Database as Tables

from landreeve_agent.intake.event_time import BadTimeError, event_time
from landreeve_agent.intake.line import Line
from landreeve_agent.store.stamps import stamp
from landreeve_agent.telemetry import latency

REPEATS = "intake.repeats"
BAD_LINES = "intake.bad_lines"

_INSERT = """
INSERT INTO samples (model, id, at, version, release, row, p, shadow, shadow_release, us, err, captured,
  unit, unit_by, arm, against, share)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (model, id) DO UPDATE SET
  version = excluded.version, release = excluded.release, p = excluded.p, shadow = excluded.shadow,
  shadow_release = excluded.shadow_release, us = excluded.us, err = excluded.err, captured = excluded.captured,
  unit = excluded.unit, unit_by = excluded.unit_by, arm = excluded.arm, against = excluded.against,
  share = excluded.share
WHERE samples.p IS NULL AND (excluded.p IS NOT NULL OR samples.version = '')
"""
_COUNT = """
INSERT INTO counters (model, day, version, predictions, errors, us_hist) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (model, day, version) DO UPDATE SET
  predictions = predictions + excluded.predictions, errors = errors + excluded.errors, us_hist = excluded.us_hist
"""
_ADD = """
INSERT INTO meta (key, value) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET
  value = CAST(CAST(value AS INTEGER) + CAST(excluded.value AS INTEGER) AS TEXT)
"""


@dataclass(frozen=True)
class Captured:
    """What the live figures need of one line."""

    model: str
    version: str
    us: float
    t: float
    failed: bool


@dataclass
class Tally:
    """Counts of one batch for one model, day and version."""

    predictions: int = 0
    errors: int = 0
    repeats: int = 0
    us: list[float] = field(default_factory=list)


def store_lines(tables: Tables, lines: Iterable[Line], bad: int) -> tuple[tuple[Captured, ...], Tally]:
    """Insert samples, add to counters; what was captured, and the sum of the counts."""
    tallies: dict[tuple[str, str, str], Tally] = {}
    captured: list[Captured] = []
    # Lines that count alike stand together nearly always: one statement for each such run keeps their order.
    for key, alike in groupby(((_counted_as(line), line) for line in lines), lambda pair: pair[0]):
        run = [line for _, line in alike]
        _store(tables, run, tallies.setdefault(key[:3], Tally()), failed=key[3])
        captured += (Captured(line.model, line.version, line.us, line.t, line.err is not None) for line in run)
    for counter, tally in tallies.items():
        _add_counters(tables, counter, tally)
    whole = Tally(repeats=sum(tally.repeats for tally in tallies.values()))
    add_to_meta(tables, REPEATS, whole.repeats)
    add_to_meta(tables, BAD_LINES, bad)
    return tuple(captured), whole


def add_to_meta(tables: Tables, key: str, amount: int) -> None:
    """Add to a running total kept in ``meta``."""
    if amount:
        tables.conn.execute(_ADD, (key, str(amount)))


def _counted_as(line: Line) -> tuple[str, str, str, bool]:
    """Model, UTC day, version, and whether the run failed."""
    return line.model, stamp(datetime.fromtimestamp(line.t, UTC))[:10], line.version, line.err is not None


def _store(tables: Tables, run: list[Line], tally: Tally, *, failed: bool) -> None:
    changed = tables.conn.executemany(_INSERT, (_values(line) for line in run)).rowcount
    if failed:
        tally.errors += len(run)
    else:
        tally.predictions += changed
        tally.repeats += len(run) - changed
    tally.us += (line.us for line in run)


def _values(line: Line) -> tuple[object, ...]:
    captured = stamp(datetime.fromtimestamp(line.t, UTC))
    return (
        line.model, line.id, _at(line, captured), line.version, line.release,
        msgspec.json.encode(line.row).decode(), _number(line.p), _number(line.shadow), line.shadow_release,
        round(line.us), line.err, captured, line.unit, line.by, line.arm, line.against, line.share,
    )  # fmt: skip


def _at(line: Line, captured: str) -> str:
    if line.at is None:
        return captured
    try:
        return event_time(line.at)
    except BadTimeError:
        # The worker refuses such a request; a line from an older worker keeps its row at its capture time.
        return captured


def _number(value: float | list[float] | None) -> float | None:
    # A two-class output is (p of 0, p of 1): its last component is what a label is compared with.
    return (value[-1] if value else None) if isinstance(value, list) else value


def _add_counters(tables: Tables, key: tuple[str, str, str], tally: Tally) -> None:
    row = tables.conn.execute(
        "SELECT us_hist FROM counters WHERE model = ? AND day = ? AND version = ?", key
    ).fetchone()
    counts = latency.merge(latency.decode_counts(row[0] if row else None), latency.count(tally.us))
    tables.conn.execute(_COUNT, (*key, tally.predictions, tally.errors, latency.encode_counts(counts)))
