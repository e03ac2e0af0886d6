"""The update machine's states on disk: state, transition, report and log line in the caller's one transaction."""

from datetime import datetime
from typing import Any

import msgspec
from landreeve.wire.messages import Event, UpdateReport
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store import events
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update.directing import told
from landreeve_agent.update.machine import quarantines
from landreeve_agent.update.standing import Phase, State

_SEVERITIES = {
    Phase.REJECTED: "warning",
    Phase.ROLLING_BACK: "warning",
    Phase.ROLLED_BACK: "warning",
    Phase.ROLLBACK_FAILED: "error",
}
_SAVE = """
INSERT INTO updates VALUES (?, ?, ?, ?)
ON CONFLICT (model) DO UPDATE SET generation = excluded.generation, state = excluded.state, at = excluded.at
"""
_TRANSITION = (
    "INSERT INTO transitions (model, rollout, generation, previous, state, cause, sentence, at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def load(db: SqliteDatabase, model: str) -> State:
    """The model's state; IDLE when none was ever saved."""
    row = db.conn.execute("SELECT state FROM updates WHERE model = ?", (model,)).fetchone()
    return decode_state(row[0]) if row else State(model)


def load_all(db: SqliteDatabase) -> dict[str, State]:
    """Every saved state by model."""
    return {model: decode_state(data) for model, data in db.conn.execute("SELECT model, state FROM updates")}


def encode_state(state: State) -> bytes:
    return msgspec.json.encode(state)


def decode_state(data: bytes) -> State:
    return msgspec.json.decode(data, type=State)


def save(
    db: SqliteDatabase,
    outbox: Outbox,
    before: State,
    after: State,
    now: datetime,
    *,
    data: dict[str, Any] | None = None,
) -> None:
    """Keeps the new state; a change of phase also leaves a transition, a report to the hub and a log line."""
    if after == before:
        return
    db.conn.execute(_SAVE, (after.model, after.generation, encode_state(after), stamp(now)))
    if after.phase is before.phase and after.step == before.step:
        return
    report = _report(before, after, data or {})
    outbox.enqueue(db, report, now)
    values = (report.model, report.rollout, report.generation, report.previous, report.state)
    db.conn.execute(_TRANSITION, (*values, report.cause, report.sentence, stamp(now)))
    events.record(db, _log_line(report), now)
    if quarantines(before, after):
        _quarantine(db, report, now)


def quarantined(db: SqliteDatabase, release: str) -> str | None:
    """The rollout under which the release was found bad here, if any."""
    row = db.conn.execute("SELECT rollout FROM quarantine WHERE digest = ?", (release,)).fetchone()
    return None if row is None else str(row[0])


def _report(before: State, after: State, data: dict[str, Any]) -> UpdateReport:
    order = after.order
    return UpdateReport(
        model=after.model,
        rollout=order.rollout if order else "",
        generation=order.generation if order else after.generation,
        release=order.release if order else "",
        version=order.version if order else "",
        state=after.phase.value,
        previous=before.phase.value,
        cause=after.cause,
        sentence=after.sentence,
        data={**data, **_running(after)},
        stage=told(after) if after.phase is Phase.PROBATION else msgspec.UNSET,
    )


def _running(state: State) -> dict[str, Any]:
    """What is proven here, so that the hub knows where this device returns to."""
    return {"good": state.good.release, "good_version": state.good.version} if state.good else {}


def _log_line(report: UpdateReport) -> Event:
    severity = _SEVERITIES.get(Phase(report.state), "info")
    return Event(
        name="update.transition",
        subject=report.model,
        cause=report.cause,
        sentence=report.sentence,
        severity=severity,  # type: ignore[arg-type]
        data={"state": report.state, "previous": report.previous, "version": report.version},
    )


def _quarantine(db: SqliteDatabase, report: UpdateReport, now: datetime) -> None:
    db.conn.execute(
        "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?)",
        (report.release, report.model, report.rollout, report.cause, report.sentence, stamp(now)),
    )
