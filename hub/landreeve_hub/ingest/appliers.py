"""What each kind of fact changes in the hub's tables, inside the transaction that counts it.

Facts of one device may arrive out of order within its window, so an applier that replaces a row first asks
whether what it has is newer.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from landreeve.wire.messages import (
    Audit,
    Birth,
    Body,
    DriftReport,
    Event,
    Fact,
    Gap,
    LogLines,
    Metrics,
    PlanReport,
    UpdateReport,
)
from sqlalchemy import Connection, insert, select, update

from landreeve_hub.ingest.minutes import merge_rows
from landreeve_hub.learning import known_plans
from landreeve_hub.store import tables
from landreeve_hub.store.upsert import upsert

Applier = Callable[[Connection, str, Fact], None]
K = TypeVar("K", bound=Body)
MAX_DEPTH = 32
MOST_FEATURES = 400
_FAILED = {"REJECTED", "ROLLED_BACK", "ROLLBACK_FAILED", "ROLLING_BACK"}
_HARDWARE = {"hardware.changed", "hardware.proven"}
_ANSWERS = {"command.done", "command.refused"}
_INSERT_EVENT = insert(tables.events)


class UnfitFactError(ValueError):
    """A fact that is well formed but cannot be applied; the text says why. It is recorded as rejected."""


def standard_appliers(audit: Callable[[Connection, str, Fact], None]) -> dict[type[Body], Applier]:
    """An applier for each kind but `Candidate`, which learning brings; ``audit`` appends to the audit log."""
    return {
        Birth: apply_birth,
        Event: apply_event,
        UpdateReport: apply_update,
        Metrics: apply_metrics,
        Gap: apply_gap,
        DriftReport: apply_drift,
        PlanReport: apply_plan,
        Audit: audit,
        LogLines: apply_log,
    }


def check_depth(value: object, left: int = MAX_DEPTH) -> None:
    """`UnfitFactError` when free data is nested so deeply that those who show it could not write it out."""
    if left == 0:
        raise UnfitFactError(f"data nested more than {MAX_DEPTH} deep is not kept")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for one in inner:
        if isinstance(one, dict | list | tuple):
            check_depth(one, left - 1)


def applier_for(appliers: Mapping[type[Body], Applier], body: Body) -> Applier:
    """The applier of a body's kind; `UnfitFactError` when nobody here handles it."""
    found = appliers.get(type(body))
    if found is None:
        raise UnfitFactError(f"no room of this hub handles facts of type {body.__struct_config__.tag!r}")
    return found


def apply_birth(connection: Connection, device: str, fact: Fact) -> None:
    """Who the device is now; labels given at the hub win over the box's own."""
    body = _of(fact, Birth)
    row = connection.execute(select(tables.devices.c.labels).where(tables.devices.c.id == device)).one()
    changes = {
        "agent": body.agent,
        "hardware": body.hardware,
        "certificate_expires": body.certificate_expires,
        "labels": {**body.labels, **row.labels},
        "box_class": body.box_class[: known_plans.MOST_CLASS],
        "features": " ".join(body.features)[:MOST_FEATURES],
    }
    connection.execute(update(tables.devices).where(tables.devices.c.id == device).values(changes))
    names = {"device": device, "set": body.metric_set, "names": list(body.metric_names)}
    upsert(connection, tables.metric_sets, names)
    sentence = f"{body.site}: agent {body.agent} started."
    data = {"started": body.started}
    started = Event(name="agent.started", subject=body.site, cause="agent_started", sentence=sentence, data=data)
    _keep_event(connection, device, fact.at, started)


def apply_event(connection: Connection, device: str, fact: Fact) -> None:
    """Keep the event; the answer to a command also closes that command, news of the hardware renew what is shown."""
    body = _of(fact, Event)
    hardware = body.data.get("hardware")
    if body.name in _HARDWARE and isinstance(hardware, dict):
        connection.execute(update(tables.devices).where(tables.devices.c.id == device).values(hardware=hardware))
        # The inventory is kept once, with the device.
        body = msgspec.structs.replace(body, data={k: v for k, v in body.data.items() if k != "hardware"})
    _keep_event(connection, device, fact.at, body)
    if body.name in _ANSWERS:
        answer = {"name": body.name, "cause": body.cause, "sentence": body.sentence, "at": fact.at, "data": body.data}
        own = (tables.commands.c.id == body.subject) & (tables.commands.c.device == device)
        connection.execute(update(tables.commands).where(own).values(answer=answer))


def apply_update(connection: Connection, device: str, fact: Fact) -> None:
    """The newest transition of a model on the device, and each one as an event."""
    body = _of(fact, UpdateReport)
    table = tables.updates
    own = (table.c.device == device) & (table.c.model == body.model)
    newest = connection.execute(select(table).where(own)).first()
    if newest is None or (newest.epoch, newest.seq) < (fact.epoch, fact.seq):
        told = _told(body, newest)
        upsert(connection, table, {"device": device, **_update_row(fact, body), "told": told})
    elif not newest.told and (told := _told(body, None)) and newest.generation == body.generation:
        connection.execute(update(table).where(own).values(told=told))  # an earlier report that came late
    _keep_event(connection, device, fact.at, _transition(body))


def _told(body: UpdateReport, before: Any) -> dict[str, Any]:
    """What probation showed; the reports that follow the verdict no longer carry it."""
    shown = body.data.get("probation")
    if isinstance(shown, dict):
        return shown
    same = before is not None and (before.generation, before.release) == (body.generation, body.release)
    return dict(before.told) if same else {}


def _transition(body: UpdateReport) -> Event:
    names = ("state", "previous", "rollout", "release", "version", "generation")
    return Event(
        name="update.transition",
        subject=body.model,
        cause=body.cause,
        sentence=body.sentence,
        severity="warning" if body.state in _FAILED else "info",
        data={**body.data, **{name: getattr(body, name) for name in names}},
    )


def _update_row(fact: Fact, body: UpdateReport) -> dict[str, Any]:
    names = ("model", "generation", "state", "version", "release", "rollout", "cause", "sentence")
    good = {name: str(body.data.get(name, "")) for name in ("good", "good_version")}
    own = {name: getattr(body, name) for name in names}
    stage = {} if body.stage is msgspec.UNSET else msgspec.to_builtins(body.stage)
    return {**own, **good, "stage": stage, "at": fact.at, "epoch": fact.epoch, "seq": fact.seq}


def apply_metrics(connection: Connection, device: str, fact: Fact) -> None:
    """Add the rows to their device-minutes."""
    body = _of(fact, Metrics)
    merge_rows(connection, device, body.metric_set, body.rows)


def apply_gap(connection: Connection, device: str, fact: Fact) -> None:
    """Keep which metrics the device had to drop."""
    body = _of(fact, Gap)
    row = {"device": device, "epoch": fact.epoch, "seq": fact.seq, "at": fact.at}
    upsert(connection, tables.gaps, {**row, "first": body.first, "last": body.last, "count": body.count})


def apply_drift(connection: Connection, device: str, fact: Fact) -> None:
    """Keep the closed window; a window reported again (a site restored from a backup) is replaced."""
    body = _of(fact, DriftReport)
    row = {name: getattr(body, name) for name in ("model", "window", "release", "version", "first", "last", "rows")}
    upsert(connection, tables.windows, {"device": device, **row, "report": msgspec.to_builtins(body)})


def apply_plan(connection: Connection, device: str, fact: Fact) -> None:
    """Keep how a release runs best on the device; other boxes of its class may start from it."""
    body = _of(fact, PlanReport)
    if fault := known_plans.fault(body):
        raise UnfitFactError(fault)
    known_plans.keep(connection, device, body, fact.at, (fact.epoch, fact.seq))


def apply_log(connection: Connection, device: str, fact: Fact) -> None:
    """Keep the log lines."""
    rows = [{"device": device, "at": fact.at, "line": line} for line in _of(fact, LogLines).lines]
    if rows:
        connection.execute(insert(tables.log_lines), rows)


def _keep_event(connection: Connection, device: str, at: str, event: Event) -> None:
    row = {"at": at, "device": device, "name": event.name, "subject": event.subject, "severity": event.severity}
    data = {**event.data, "cause": event.cause}
    connection.execute(_INSERT_EVENT, {**row, "sentence": event.sentence, "data": data})


def _of(fact: Fact, kind: type[K]) -> K:
    if not isinstance(fact.body, kind):
        raise TypeError(f"applier of {kind.__name__} was given {type(fact.body).__name__}")
    return fact.body
