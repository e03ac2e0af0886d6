"""Rollouts as they are kept: read, write, log, and the orders a decision carries into the tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.rollout.state import FINAL, Assign, Order, Quarantine, RaiseIncident, Rollout, State, Withdraw
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.upsert import upsert

FLEET_ALIAS = "fleet"
"""The alias of the release every later joiner gets: that of the newest finished rollout."""


Line = tuple[str, str, dict[str, Any]]
"""A cause, a sentence, and what else there is to say."""


class UnknownRolloutError(LookupError):
    """No rollout has that id."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A rollout with who made and who approved it."""

    rollout: Rollout
    created: str
    created_by: str
    approved_by: str


def load(connection: Connection, rollout: str) -> Kept:
    """The rollout of that id; `UnknownRolloutError`."""
    row = connection.execute(select(tables.rollouts).where(tables.rollouts.c.id == rollout)).first()
    if row is None:
        raise UnknownRolloutError(f"rollout: {rollout[:40]!r} is unknown")
    return _kept(row)


def listed(connection: Connection, *, model: str = "", active: bool = False) -> list[Kept]:
    """Rollouts, newest first."""
    query = select(tables.rollouts).order_by(tables.rollouts.c.id.desc())
    if model:
        query = query.where(tables.rollouts.c.model == model)
    if active:
        query = query.where(tables.rollouts.c.state.not_in([state.value for state in FINAL]))
    return [_kept(row) for row in connection.execute(query)]


def _kept(row: Any) -> Kept:
    return Kept(msgspec.convert(row.doc, Rollout), row.created, row.created_by, row.approved_by)


def next_id(connection: Connection) -> str:
    """Numbers that sort as they were made; a device tells a newer rollout by it."""
    return f"r-{connection.execute(select(func.count()).select_from(tables.rollouts)).scalar_one() + 1:06d}"


def insert_new(connection: Connection, rollout: Rollout, actor: str, now: datetime) -> None:
    row = {**_row(rollout), "id": rollout.id, "created": rfc3339(now), "created_by": actor}
    connection.execute(insert(tables.rollouts).values(row))


def save(connection: Connection, before: Rollout, after: Rollout, now: datetime) -> None:
    """Write the rollout, and a line in its log for each thing that changed."""
    if before == after:
        return
    connection.execute(update(tables.rollouts).where(tables.rollouts.c.id == after.id).values(_row(after)))
    for line in _changes(before, after):
        log(connection, after.id, now, line)


def _row(rollout: Rollout) -> dict[str, Any]:
    doc = msgspec.to_builtins(rollout)
    return {
        "model": rollout.model,
        "digest": rollout.digest,
        "version": rollout.version,
        "state": rollout.state.value,
        "doc": doc,
    }


def _changes(before: Rollout, after: Rollout) -> Iterable[Line]:
    for old, new in zip(before.members, after.members, strict=True):
        if (old.outcome, old.back) != (new.outcome, new.back):
            data = {"device": new.device, "site": new.site, "outcome": new.outcome.value, "back": new.back.value}
            yield new.cause or new.outcome.value, new.sentence or f"{new.site}: {new.outcome.value}.", data
    if after.wave != before.wave:
        yield "wave", f"Wave {after.wave + 1} began.", {"wave": after.wave}
    if after.state is not before.state:
        yield after.cause, after.sentence, {"state": after.state.value}


def log(connection: Connection, rollout: str, now: datetime, line: Line) -> None:
    cause, sentence, data = line
    row = {"rollout": rollout, "at": rfc3339(now), "cause": cause, "sentence": sentence, "data": data}
    connection.execute(insert(tables.rollout_log).values(row))


def log_of(connection: Connection, rollout: str) -> list[dict[str, Any]]:
    lines = tables.rollout_log
    query = select(lines.c.at, lines.c.cause, lines.c.sentence).where(lines.c.rollout == rollout).order_by(lines.c.n)
    return [dict(row) for row in connection.execute(query).mappings()]


def carry_out(
    connection: Connection, rollout: Rollout, orders: Iterable[Order], incidents: Incidents, now: datetime
) -> set[str]:
    """Bring orders into the tables; the devices whose desired document must be published again."""
    touched: set[str] = set()
    for order in orders:
        match order:
            case Assign():
                assign(connection, rollout.model, order)
                touched.add(order.device)
            case Withdraw(device):
                held = tables.assignments
                connection.execute(delete(held).where(held.c.device == device, held.c.model == rollout.model))
                touched.add(device)
            case Quarantine(digest):
                releases = tables.releases
                connection.execute(update(releases).where(releases.c.digest == digest).values(state="quarantined"))
            case RaiseIncident():
                subject = {"rollout": rollout.id, "model": rollout.model, "version": rollout.version}
                raised = Raise(order.key, order.kind, order.severity, order.cause, order.sentence, subject)
                incidents.open_in(connection, now, raised)
            case _:
                assert_never(order)
    if rollout.state is State.FINISHED:
        row = {"model": rollout.model, "alias": FLEET_ALIAS, "digest": rollout.digest}
        upsert(connection, tables.aliases, row)
    return touched


def assign(connection: Connection, model: str, order: Assign) -> None:
    row = {
        "device": order.device,
        "model": model,
        "digest": order.release,
        "version": order.version,
        "rollout": order.rollout,
        "action": order.action,
        "probation": msgspec.to_builtins(order.probation),
    }
    upsert(connection, tables.assignments, row)
