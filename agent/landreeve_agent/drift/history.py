"""Closed windows in the store: one row each, from which the next window's verdict is drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from landreeve.wire.messages import DriftReport
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.drift.monitor import MERGED, Measured
from landreeve_agent.drift.quality import Quality


@dataclass(frozen=True, slots=True)
class Closed:
    """A window's report, and the measurement it was drawn from."""

    report: DriftReport
    measured: Measured

    @classmethod
    def nothing(cls, model: str, window: int, first: str, last: str, sentence: str) -> "Closed":
        """A window that cannot be judged; it is kept so that it is not tried for ever."""
        report = DriftReport(
            model=model,
            release="",
            version="",
            window=window,
            first=first,
            last=last,
            rows=0,
            scores={},
            thresholds={},
            drifted=(),
            sketches={},
            verdict="too_little_data",
            sentence=sentence,
        )
        return cls(report, Measured(0, {}, {}, None))


def quality_document(quality: Quality | None, claimed: Mapping[str, float]) -> dict[str, float]:
    """The wire's figures: NaN is left out, ``reference_log_loss`` is the claimed one."""
    if quality is None:
        return {"labelled": 0.0}
    figures = {
        "labelled": float(quality.labelled),
        "log_loss": quality.log_loss,
        "entropy": quality.entropy,
        "excess": quality.excess,
        "excess_error": quality.excess_error,
        "auc": quality.auc,
        "late_rate": quality.label_mean,
        "prediction_mean": quality.prediction_mean,
        "reference_log_loss": claimed.get("log_loss", float("nan")),
    }
    return {name: round(value, 6) for name, value in figures.items() if math.isfinite(value)}


def insert(db: SqliteDatabase, closed: Closed) -> bool:
    """Keep a window; False when it is kept already."""
    report = closed.report
    cursor = db.conn.execute(
        "INSERT OR IGNORE INTO windows (model, window, release, first, last, rows, report) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            report.model,
            report.window,
            report.release,
            report.first,
            report.last,
            report.rows,
            msgspec.json.encode(report).decode(),
        ),
    )
    return bool(cursor.rowcount)


def before(db: SqliteDatabase, model: str, window: int) -> list[Closed]:
    """The windows directly before one, oldest first; a gap of empty windows ends the row."""
    query = "SELECT window, report FROM windows WHERE model = ? AND window < ? ORDER BY window DESC LIMIT ?"
    found: list[Closed] = []
    expected = window - 1
    for number, text in db.conn.execute(query, (model, window, MERGED - 1)):
        if number != expected:
            break
        expected -= 1
        report = msgspec.json.decode(text, type=DriftReport)
        found.append(Closed(report, _measured(report)))
    return found[::-1]


def _measured(report: DriftReport) -> Measured:
    return Measured(report.rows, report.scores, report.thresholds, _quality(report.quality))


def _quality(figures: dict[str, Any]) -> Quality | None:
    if not figures.get("labelled") or "excess" not in figures:
        return None
    return Quality(
        labelled=int(figures["labelled"]),
        log_loss=figures["log_loss"],
        entropy=figures["entropy"],
        excess=figures["excess"],
        excess_error=figures.get("excess_error", float("inf")),
        auc=figures.get("auc", float("nan")),
        label_mean=figures["late_rate"],
        prediction_mean=figures["prediction_mean"],
    )
