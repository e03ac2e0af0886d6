"""One closed window: its rows from the store, judged against the release's baseline, and kept with its fact.

Apart from `windows`, which only looks whether one is due: sketches and scores need numpy, 11 MB that a site without
a model does without.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.manifest import BadReleaseError
from landreeve.wire.messages import DriftReport, Event
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.drift import history
from landreeve_agent.drift.bounds import bounds
from landreeve_agent.drift.history import Closed
from landreeve_agent.drift.monitor import Judgement, Measured, judge, score
from landreeve_agent.drift.quality import measure
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store import events

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


@dataclass
class Judging:
    """Judges windows; ``models`` holds the materialised releases, whose baselines are kept in memory."""

    models: Path
    files: Files = PLAIN
    _baselines: dict[str, Baseline] = field(default_factory=dict)

    def judge(self, definition: Definition, window: int, answered: Answered | None, before: Sequence[Closed]) -> Closed:
        """The verdict on a window, from its rows and the windows before it."""
        first, last = bounds(definition, window)
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
            data = self.files.read(self.models / model / release[:12] / "baseline.json")
            self._baselines = {**dict(list(self._baselines.items())[-3:]), release: Baseline.from_bytes(data)}
        return self._baselines[release]


def put(db: SqliteDatabase, outbox: Outbox, closed: Closed, before: Sequence[Closed], now: datetime) -> None:
    """Window, fact and event in one transaction; a window that is closed already changes nothing."""
    report = closed.report
    if not history.insert(db, closed):
        return
    if report.release:
        outbox.enqueue(db, report, now)
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


def answered_rows(db: SqliteDatabase, definition: Definition, window: int) -> Answered | None:
    """The rows of the release that answered last in the window: what happened before it no longer matters."""
    first, last = bounds(definition, window)
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
