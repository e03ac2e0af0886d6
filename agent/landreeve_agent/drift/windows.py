"""Closing windows: samples and labels in the store become one drift report each, exactly once.

A window is ``window_days`` of event time, numbered from 1970; it is closed when event time has passed its end by the
definition's label delay, so a year replayed in an hour gives the windows the year would.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from landreeve.release.manifest import BadReleaseError
from landreeve.wire.messages import DriftReport, Event
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.drift import history
from landreeve_agent.drift.history import Closed
from landreeve_agent.drift.monitor import Judgement, Measured, judge, score
from landreeve_agent.drift.quality import measure
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store import events
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import moment, stamp

logger = logging.getLogger(__name__)

_SEVERITY: dict[str, Any] = {"quality_lost": "warning"}


@dataclass(frozen=True, slots=True)
class Answered:
    """Rows of one window that one release answered, in order of time; ``labels`` are null where unknown."""

    release: str
    version: str
    rows: list[dict[str, Any]]
    prediction: list[float]
    labels: list[float | None]


class Windows:
    """Closes windows of every model. ``models`` holds the materialised releases, ``clock`` the wall time."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        definitions: Mapping[str, Definition],
        *,
        models: Path,
        clock: Callable[[], datetime],
    ) -> None:
        self._database, self._outbox, self._definitions = database, outbox, definitions
        self._models, self._clock = models, clock
        self._baselines: dict[str, Baseline] = {}

    async def advance(self) -> int:
        """Close every window that is due; how many were."""
        closed = 0
        for name in list(self._definitions):
            definition = self._definitions[name]
            while (window := await self._database.read(lambda db, d=definition: _next_due(db, d))) is not None:  # type: ignore[misc]
                await self._close(definition, window)
                closed += 1
        return closed

    async def _close(self, definition: Definition, window: int) -> None:
        answered = await self._database.read(lambda db: _answered(db, definition, window))
        before = await self._database.read(lambda db: history.before(db, definition.name, window))
        closed = await asyncio.to_thread(self._judge, definition, window, answered, before)
        now = self._clock()
        await self._database.write(lambda db: self._put(db, closed, before, now))

    def _judge(
        self, definition: Definition, window: int, answered: Answered | None, before: Sequence[Closed]
    ) -> Closed:
        first, last = _bounds(definition, window)
        if answered is None:
            sentence = "No release answered in this window."
            return Closed.nothing(definition.name, window, first, last, sentence)
        try:
            baseline = self._baseline(definition.name, answered.release)
        except (OSError, BadReleaseError) as error:
            logger.warning("window %d of %s: baseline of %s: %s", window, definition.name, answered.release, error)
            sentence = f"The baseline of {answered.release[:12]} is not on this box any more: nothing to compare with."
            return Closed.nothing(definition.name, window, first, last, sentence)
        sketches = baseline.sketch(definition, answered.rows, answered.prediction)
        known = [(p, y) for p, y in zip(answered.prediction, answered.labels, strict=True) if y is not None]
        quality = measure([p for p, _ in known], [y for _, y in known])
        measured = score(definition.drift, baseline, sketches, quality, len(answered.rows))
        earlier = [item.measured for item in before if item.report.release == answered.release]
        judgement = judge(definition.drift, measured, earlier, baseline.figures)
        documents = {name: sketch.withhold(baseline.k).to_document() for name, sketch in sketches.items()}
        head = DriftReport(
            model=definition.name,
            release=answered.release,
            version=answered.version,
            window=window,
            first=first,
            last=last,
            rows=len(answered.rows),
            scores={},
            thresholds={},
            drifted=(),
            sketches=documents,
            verdict="stable",
            sentence="",
        )
        return Closed(_report(head, measured, judgement, baseline.figures), measured)

    def _baseline(self, model: str, release: str) -> Baseline:
        if release not in self._baselines:
            data = (self._models / model / release[:12] / "baseline.json").read_bytes()
            self._baselines = {**dict(list(self._baselines.items())[-3:]), release: Baseline.from_bytes(data)}
        return self._baselines[release]

    def _put(self, db: SqliteDatabase, closed: Closed, before: Sequence[Closed], now: datetime) -> None:
        """Window, fact and event in one transaction; a window that is closed already changes nothing."""
        report = closed.report
        if not history.insert(db, closed):
            return
        if report.release:
            self._outbox.enqueue(db, report, now)
        previous = before[-1].report.verdict if before else "stable"
        if report.verdict not in (previous, "too_little_data"):
            severity = _SEVERITY.get(report.verdict, "info")
            event = Event(
                name="drift.verdict",
                subject=report.model,
                cause=report.verdict,
                sentence=f"{report.model}, {report.first[:10]} to {report.last[:10]}: {report.sentence}",
                severity=severity,
            )
            events.record(db, event, now)


def _report(head: DriftReport, measured: Measured, judgement: Judgement, claimed: Mapping[str, float]) -> DriftReport:
    return msgspec.structs.replace(
        head,
        scores={name: round(value, 5) for name, value in measured.scores.items()},
        thresholds={name: round(value, 5) for name, value in measured.thresholds.items()},
        drifted=judgement.drifted,
        quality=history.quality_document(measured.quality, claimed),
        verdict=judgement.verdict,
        sentence=judgement.sentence,
    )


def _length_s(definition: Definition) -> int:
    return definition.window_days * 86_400


def _bounds(definition: Definition, window: int) -> tuple[str, str]:
    length = _length_s(definition)
    first, last = (datetime.fromtimestamp(number * length, UTC) for number in (window, window + 1))
    return stamp(first), stamp(last)


def _number(definition: Definition, at: str) -> int:
    return int(moment(at).timestamp()) // _length_s(definition)


def _next_due(db: SqliteDatabase, definition: Definition) -> int | None:
    """The next window with samples whose labels had their time, or None."""
    name = definition.name
    closed = db.conn.execute("SELECT max(window) FROM windows WHERE model = ?", (name,)).fetchone()[0]
    after = "" if closed is None else _bounds(definition, closed)[1]
    query = "SELECT min(at) FROM samples WHERE model = ? AND at >= ?"
    at = db.conn.execute(query, (name, after)).fetchone()[0]
    if at is None:
        return None
    window = _number(definition, at)
    # Event time is what the newest sample says: labels of a stalled application must not close what still fills.
    newest = db.conn.execute("SELECT max(at) FROM samples WHERE model = ?", (name,)).fetchone()[0]
    due = (window + 1) * _length_s(definition) + definition.label_delay_hours * 3600
    return window if moment(newest).timestamp() >= due else None


def _answered(db: SqliteDatabase, definition: Definition, window: int) -> Answered | None:
    """The rows of the release that answered last in the window: what happened before it no longer matters."""
    first, last = _bounds(definition, window)
    newest = db.conn.execute(
        "SELECT release, version FROM samples WHERE model = ? AND at >= ? AND at < ? AND p IS NOT NULL "
        "AND release IS NOT NULL AND release != '' ORDER BY at DESC, captured DESC LIMIT 1",
        (definition.name, first, last),
    ).fetchone()
    if newest is None:
        return None
    rows = db.conn.execute(
        'SELECT s."row", s.p, l.label FROM samples AS s LEFT JOIN labels AS l ON l.model = s.model AND l.id = s.id '
        "WHERE s.model = ? AND s.at >= ? AND s.at < ? AND s.release = ? AND s.p IS NOT NULL ORDER BY s.at, s.id",
        (definition.name, first, last, newest[0]),
    ).fetchall()
    decoded = [msgspec.json.decode(text, type=dict[str, Any]) for text, _, _ in rows]
    return Answered(newest[0], newest[1] or "", decoded, [p for _, p, _ in rows], [label for _, _, label in rows])
