"""The evidence of a probation, read from the samples and labels this site has captured."""

import math
from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment
from landreeve_agent.update.probation import Moments, ProbationStats, log_loss, moments
from landreeve_agent.update.shift import distance

MAX_ROWS = 20_000
MIN_TIMED_ROWS = 50

_ROWS = """
SELECT s.p, s.shadow, s.shadow_release, s.us, s.err, l.label
FROM samples s LEFT JOIN labels l ON l.model = s.model AND l.id = s.id
WHERE s.model = ? AND s.release = ? AND s.captured >= ? ORDER BY s.captured LIMIT ?
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
        self, model: str, release: str, since: str, *, good: str | None, claimed_loss: float | None, now: datetime
    ) -> ProbationStats:
        """What was captured of ``release`` since it was activated, against ``good`` where there is one."""
        rows, before = await self._database.read(lambda db: _read(db, model, release, since, good))
        return _summarise(rows, before, good, claimed_loss, (now - moment(since)).total_seconds())


def _read(db: SqliteDatabase, model: str, release: str, since: str, good: str | None) -> tuple[list[_Row], list[int]]:
    rows = [
        _Row(p, shadow if shadow_release == good else None, us, err is not None, label)
        for p, shadow, shadow_release, us, err, label in db.conn.execute(_ROWS, (model, release, since, MAX_ROWS))
    ]
    before = [us for (us,) in db.conn.execute(_TIMES_BEFORE, (model, good, since))] if good else []
    return rows, before


def _summarise(
    rows: list[_Row], before: list[int], good: str | None, claimed_loss: float | None, elapsed_s: float
) -> ProbationStats:
    answered = [row for row in rows if not row.failed]
    valid = [row for row in answered if row.p is not None and 0.0 <= row.p <= 1.0]
    labelled = [(row.p, row.label, row.shadow) for row in valid if row.label is not None and row.p is not None]
    both = [(row.p, row.shadow) for row in valid if row.p is not None and row.shadow is not None]
    times = [row.us for row in answered if row.us is not None]
    p95, p95_before = _p95(times), _p95(before)
    return ProbationStats(
        rows=len(answered),
        errors=len(rows) - len(answered),
        invalid=len(answered) - len(valid),
        distinct=len({round(row.p, 6) for row in valid if row.p is not None}),
        distinct_before=len({round(row.shadow, 6) for row in valid if row.shadow is not None}),
        difference=_against_shadow(labelled) if good else _against_base_rate(labelled),
        loss=moments(log_loss(p, label) for p, label, _ in labelled),
        reference="last_good" if good else "base_rate",
        p95_ms=p95 / 1000 if p95 is not None else None,
        p95_ratio=p95 / p95_before if p95 is not None and p95_before else None,
        claimed_loss=claimed_loss,
        elapsed_s=elapsed_s,
        shift=distance([p for p, _ in both], [shadow for _, shadow in both]),
        compared=len(both),
        confidence=moments(abs(2 * p - 1) - abs(2 * shadow - 1) for p, shadow in both),
    )


def _against_shadow(labelled: list[tuple[float, float, float | None]]) -> Moments:
    return moments(log_loss(p, y) - log_loss(shadow, y) for p, y, shadow in labelled if shadow is not None)


def _against_base_rate(labelled: list[tuple[float, float, float | None]]) -> Moments:
    """Against the best constant forecast in hindsight, which is a little stricter than any real one."""
    if not labelled:
        return Moments()
    rate = sum(y for _, y, _ in labelled) / len(labelled)
    return moments(log_loss(p, y) - log_loss(rate, y) for p, y, _ in labelled)


def _p95(times: list[int]) -> float | None:
    if len(times) < MIN_TIMED_ROWS:
        return None
    return float(sorted(times)[math.ceil(0.95 * len(times)) - 1])
