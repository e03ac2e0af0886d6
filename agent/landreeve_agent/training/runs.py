"""Training runs in the agent's database: one row each, every change together with the facts it causes."""

from datetime import datetime
from typing import Any

import msgspec
from landreeve.wire.messages import Candidate, Event
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store import events
from landreeve_agent.store.stamps import stamp
from landreeve_agent.training.job import Outcome, RunState, TrainRequest

KEPT_CHALLENGERS = 5


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``runs``."""

    id: str
    model: str
    state: RunState
    request: TrainRequest
    result: dict[str, Any]


def known(db: SqliteDatabase, request_id: str) -> str | None:
    """The run of that request id, if there is one."""
    query = "SELECT id FROM runs WHERE json_extract(request, '$.request_id') = ?"
    row = db.conn.execute(query, (request_id,)).fetchone() if request_id else None
    return None if row is None else str(row[0])


def add(db: SqliteDatabase, run: str, request: TrainRequest, now: datetime) -> None:
    """A new run, queued."""
    db.conn.execute(
        "INSERT INTO runs (id, model, state, request, at) VALUES (?, ?, ?, ?, ?)",
        (run, request.model, RunState.QUEUED.value, msgspec.json.encode(request).decode(), stamp(now)),
    )


def oldest_open(db: SqliteDatabase) -> Run | None:
    """The run to work on: one under way first, then the oldest queued."""
    row = db.conn.execute(
        "SELECT id, model, state, request, result FROM runs WHERE state IN (?, ?) ORDER BY state DESC, at, id LIMIT 1",
        (RunState.TRAINING.value, RunState.QUEUED.value),
    ).fetchone()
    if row is None:
        return None
    request = msgspec.json.decode(row[3], type=TrainRequest)
    result = msgspec.json.decode(row[4], type=dict[str, Any]) if row[4] else {}
    return Run(id=row[0], model=row[1], state=RunState(row[2]), request=request, result=result)


def challengers(db: SqliteDatabase) -> list[str]:
    """Manifests of challengers the hub may still fetch: the newest of each model."""
    rows = db.conn.execute(
        "SELECT manifest FROM (SELECT json_extract(result, '$.manifest') AS manifest, "
        "row_number() OVER (PARTITION BY model ORDER BY at DESC, id DESC) AS place FROM runs "
        "WHERE json_extract(result, '$.manifest') <> '') WHERE place <= ?",
        (KEPT_CHALLENGERS,),
    )
    return [str(row[0]) for row in rows]


def note_start(db: SqliteDatabase, outbox: Outbox, run: Run, now: datetime) -> int:
    """The run is being worked on; how often it was begun, restarts of the supervisor among them. The first is told."""
    starts = int(run.result.get("starts", 0)) + 1
    _keep(db, run, run.result | {"starts": starts})
    if starts == 1:
        _tell(db, outbox, _event(run, "training.started", "started", f"Training {run.model} has begun."), now)
    return starts


def note_crash(db: SqliteDatabase, run: str) -> int:
    """The trainer died without an outcome while its supervisor lived; how often that happened."""
    text = db.conn.execute("SELECT result FROM runs WHERE id = ?", (run,)).fetchone()[0]
    result = msgspec.json.decode(text, type=dict[str, Any])
    crashes = int(result.get("crashes", 0)) + 1
    text = msgspec.json.encode(result | {"crashes": crashes}).decode()
    db.conn.execute("UPDATE runs SET result = ? WHERE id = ?", (text, run))
    return crashes


def _keep(db: SqliteDatabase, run: Run, result: dict[str, Any]) -> None:
    text = msgspec.json.encode(result).decode()
    db.conn.execute("UPDATE runs SET state = ?, result = ? WHERE id = ?", (RunState.TRAINING.value, text, run.id))


def finish(
    db: SqliteDatabase, outbox: Outbox, run: Run, outcome: Outcome, *, manifest_bytes: int, now: datetime
) -> None:
    """The run is over: a candidate, or the gate's reason why there is none."""
    state = RunState.FINISHED if outcome.passed else RunState.REJECTED
    name, severity = ("training.finished", "info") if outcome.passed else ("training.rejected", "warning")
    if outcome.passed:
        candidate = Candidate(
            model=run.model,
            run=run.id,
            manifest=outcome.manifest,
            manifest_bytes=manifest_bytes,
            metrics=outcome.metrics,
            reason=run.request.reason,
            request=run.request.request_id,
        )
        outbox.enqueue(db, candidate, now)
    words = "has a challenger" if outcome.passed else "gave no challenger"
    event = _event(run, name, outcome.cause, f"Training {run.model} {words}: {outcome.sentence}.", severity)
    _tell(db, outbox, msgspec.structs.replace(event, data=event.data | {"metrics": outcome.metrics}), now)
    _close(db, run, state, msgspec.to_builtins(outcome), now)


def fail(db: SqliteDatabase, outbox: Outbox, run: Run, cause: str, sentence: str, *, now: datetime) -> None:
    """The run is over without a result; the sentence says why and what to do."""
    _tell(db, outbox, _event(run, "training.failed", cause, f"Training {run.model} failed: {sentence}", "error"), now)
    _close(db, run, RunState.FAILED, {"passed": False, "cause": cause, "sentence": sentence}, now)


def _close(db: SqliteDatabase, run: Run, state: RunState, result: dict[str, Any], now: datetime) -> None:
    text = msgspec.json.encode(result).decode()
    db.conn.execute(
        "UPDATE runs SET state = ?, result = ?, finished = ? WHERE id = ?", (state.value, text, stamp(now), run.id)
    )


def _event(run: Run, name: str, cause: str, sentence: str, severity: Any = "info") -> Event:
    data = {"run": run.id, "request": run.request.request_id, "model": run.model}
    return Event(name=name, subject=run.model, cause=cause, sentence=sentence, severity=severity, data=data)


def _tell(db: SqliteDatabase, outbox: Outbox, event: Event, now: datetime) -> None:
    outbox.enqueue(db, event, now)
    events.record(db, event, now)
