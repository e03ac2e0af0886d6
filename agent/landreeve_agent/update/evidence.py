"""The evidence of a probation, read from the samples and labels this site has captured.

Three ways to compare, by what the candidate does (`landreeve_agent.update.directing.Role`): it answers and the last
good version listens; the last good version answers and it listens; or each answers a part. In the first two both saw
the same rows. In the third the rows differ: the first labelled row of one is compared with the first of the other, and
so on, which keeps every test exact and costs some power, since nothing cancels.
"""

import math
from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment
from landreeve_agent.update.bounded import spread
from landreeve_agent.update.directing import Role
from landreeve_agent.update.probation import Moments, ProbationStats, log_loss, moments
from landreeve_agent.update.shift import distance

MAX_ROWS = 20_000
MIN_TIMED_ROWS = 50

_ROWS = """
SELECT s.p, s.shadow, s.shadow_release, s.us, s.err, l.label
FROM samples s LEFT JOIN labels l ON l.model = s.model AND l.id = s.id
WHERE s.model = ? AND s.release = ? AND s.captured >= ? ORDER BY s.captured LIMIT ?
"""
_LISTENED = """
SELECT s.shadow, s.p, NULL, s.shadow IS NULL, l.label
FROM samples s LEFT JOIN labels l ON l.model = s.model AND l.id = s.id
WHERE s.model = ? AND s.release = ? AND s.shadow_release = ? AND s.captured >= ? AND s.err IS NULL
ORDER BY s.captured LIMIT ?
"""
_TIMES_BEFORE = """
SELECT us FROM samples WHERE model = ? AND release = ? AND captured < ? AND us IS NOT NULL AND err IS NULL
ORDER BY captured DESC LIMIT 2000
"""


@dataclass(frozen=True, slots=True)
class _Row:
    p: float | None
    shadow: float | None
    us: int | None
    failed: bool
    label: float | None


class Evidence:
    """Reads `ProbationStats` from the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(
        self,
        model: str,
        release: str,
        since: str,
        *,
        good: str | None,
        claimed_loss: float | None,
        now: datetime,
        role: Role = Role.ANSWERS,
    ) -> ProbationStats:
        """What was captured of ``release`` since a moment, against ``good`` where there is one."""
        elapsed_s = (now - moment(since)).total_seconds()
        if role is Role.STANDS_BY:
            return ProbationStats(elapsed_s=elapsed_s)
        read = {Role.LISTENS: _read_listening, Role.SHARES: _read_sharing}.get(role, _read_answering)
        seen = await self._database.read(lambda db: read(db, model, release, since, good))
        return _summarise(seen, good, claimed_loss, elapsed_s)

    async def rows_since(self, model: str, release: str, since: str, role: Role) -> int:
        """Rows it answered, or as a shadow was compared on, since then."""
        column = "shadow_release" if role is Role.LISTENS else "release"
        query = f"SELECT count(*) FROM samples WHERE model = ? AND {column} = ? AND captured >= ?"  # noqa: S608
        count = await self._database.read(lambda db: db.conn.execute(query, (model, release, since)).fetchone())
        return int(count[0])


@dataclass(frozen=True, slots=True)
class _Seen:
    """The candidate's rows, those of the last good version to compare with, and its service times (µs)."""

    rows: list[_Row]
    others: list[_Row] | None
    times: list[int]


def _read_answering(db: SqliteDatabase, model: str, release: str, since: str, good: str | None) -> _Seen:
    rows = [
        _Row(p, shadow if shadow_release == good else None, us, err is not None, label)
        for p, shadow, shadow_release, us, err, label in db.conn.execute(_ROWS, (model, release, since, MAX_ROWS))
    ]
    before = [us for (us,) in db.conn.execute(_TIMES_BEFORE, (model, good, since))] if good else []
    return _Seen(rows, None, before)


def _read_listening(db: SqliteDatabase, model: str, release: str, since: str, good: str | None) -> _Seen:
    """A shadow that did not answer, or not in time, would not have answered its caller either."""
    found = db.conn.execute(_LISTENED, (model, good, release, since, MAX_ROWS))
    return _Seen([_Row(p, other, us, bool(failed), label) for p, other, us, failed, label in found], None, [])


def _read_sharing(db: SqliteDatabase, model: str, release: str, since: str, good: str | None) -> _Seen:
    ours, theirs = (
        [
            _Row(p, None, us, err is not None, label)
            for p, _, _, us, err, label in db.conn.execute(_ROWS, (model, name, since, MAX_ROWS))
        ]
        for name in (release, good)
    )
    return _Seen(ours, theirs, [row.us for row in theirs if row.us is not None and not row.failed])


def _valid(rows: list[_Row]) -> list[_Row]:
    return [row for row in rows if not row.failed and row.p is not None and 0.0 <= row.p <= 1.0]


def _summarise(seen: _Seen, good: str | None, claimed_loss: float | None, elapsed_s: float) -> ProbationStats:
    answered = [row for row in seen.rows if not row.failed]
    valid = _valid(seen.rows)
    pairs = _pairs(valid, seen.others)
    others = [other for _, other in pairs]
    p95, p95_before = _p95([row.us for row in answered if row.us is not None]), _p95(seen.times)
    return ProbationStats(
        rows=len(answered),
        errors=len(seen.rows) - len(answered),
        invalid=len(answered) - len(valid),
        distinct=len({round(row.p, 6) for row in valid if row.p is not None}),
        distinct_before=len({round(p, 6) for p in others}),
        difference=moments(_differences(valid, seen.others)) if good else _against_base_rate(valid),
        loss=moments(_losses(valid)),
        reference="last_good" if good else "base_rate",
        p95_ms=p95 / 1000 if p95 is not None else None,
        p95_ratio=p95 / p95_before if p95 is not None and p95_before else None,
        claimed_loss=claimed_loss,
        elapsed_s=elapsed_s,
        shift=distance([p for p, _ in pairs], others),
        compared=len(pairs),
        confidence=spread(abs(2 * p - 1) - abs(2 * other - 1) for p, other in pairs),
    )


def _pairs(rows: list[_Row], others: list[_Row] | None) -> list[tuple[float, float]]:
    """Answers to compare: on the same rows, or on as many rows of each."""
    if others is None:
        return [(row.p, row.shadow) for row in rows if row.p is not None and row.shadow is not None]
    theirs = [row.p for row in _valid(others) if row.p is not None]
    return list(zip((row.p for row in rows if row.p is not None), theirs, strict=False))


def _differences(rows: list[_Row], others: list[_Row] | None) -> list[float]:
    """Log loss of the candidate minus that of the last good version."""
    if others is None:
        known = [(row.p, row.label, row.shadow) for row in rows if row.label is not None and row.p is not None]
        return [log_loss(p, y) - log_loss(shadow, y) for p, y, shadow in known if shadow is not None]
    return [ours - theirs for ours, theirs in zip(_losses(rows), _losses(_valid(others)), strict=False)]


def _losses(rows: list[_Row]) -> list[float]:
    return [log_loss(row.p, row.label) for row in rows if row.label is not None and row.p is not None]


def _against_base_rate(rows: list[_Row]) -> Moments:
    """Against the best constant forecast in hindsight, which is a little stricter than any real one."""
    labelled = [(row.p, row.label) for row in rows if row.label is not None and row.p is not None]
    if not labelled:
        return Moments()
    rate = sum(y for _, y in labelled) / len(labelled)
    return moments(log_loss(p, y) - log_loss(rate, y) for p, y in labelled)


def _p95(times: list[int]) -> float | None:
    if len(times) < MIN_TIMED_ROWS:
        return None
    return float(sorted(times)[math.ceil(0.95 * len(times)) - 1])
