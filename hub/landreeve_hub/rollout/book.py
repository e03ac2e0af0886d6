"""Rollouts as they are kept: read, write, log, and the orders a decision carries into the tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

import msgspec
from sqlalchemy import Connection, delete, func, insert, or_, select, update

from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.rollout.machine import watch_end
from landreeve_hub.rollout.roster import TOUCHED, Member, Roster
from landreeve_hub.rollout.state import (
    FINAL,
    Assign,
    Begin,
    Head,
    Order,
    Quarantine,
    RaiseIncident,
    Rollout,
    State,
    Withdraw,
)
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.upsert import upsert, upsert_many

FLEET_ALIAS = "fleet"
"""The alias of the release every later joiner gets: that of the newest finished rollout."""
HUB = "hub"
"""Who begins what nobody asked for."""
TIMELINE = 20
MOST_LOST = 1000
"""So many rollouts at most a restored hub may have forgotten."""

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
    found = find(connection, rollout)
    if found is None:
        raise UnknownRolloutError(f"rollout: {rollout[:40]!r} is unknown")
    return found


def find(connection: Connection, rollout: str) -> Kept | None:
    """The rollout of that id, if there is one."""
    row = connection.execute(select(tables.rollouts).where(tables.rollouts.c.id == rollout)).first()
    return None if row is None else _kept(connection, row)


def created(connection: Connection, rollout: str) -> str:
    """When the rollout was proposed."""
    return connection.execute(select(tables.rollouts.c.created).where(tables.rollouts.c.id == rollout)).scalar() or ""


def state_of(connection: Connection, rollout: str) -> State | None:
    """How a rollout stands, without reading the whole of it; None when there is none."""
    found = connection.execute(select(tables.rollouts.c.state).where(tables.rollouts.c.id == rollout)).scalar()
    return State(found) if found else None


def left_behind(connection: Connection) -> list[Kept]:
    """Finished rollouts of latecomers whose own rollout goes or went back without them."""
    late, parent = tables.rollouts.alias(), tables.rollouts.alias()
    gone = parent.c.state.in_([State.ROLLING_BACK.value, State.ROLLED_BACK.value])
    query = (
        select(late.c.id)
        .join(parent, parent.c.id + "-late" == late.c.id)
        .where(late.c.kind == "late", late.c.state == State.FINISHED.value, gone)
    )
    return [load(connection, name) for name in connection.execute(query).scalars().all()]


def listed(
    connection: Connection, *, model: str = "", active: bool = False, kind: str = "", watched: bool = False
) -> list[Kept]:
    """Rollouts, newest first. ``active`` ones have not ended, or are still to be ``watched``, if only once
    more: the hub may have been away at the end."""
    rollouts = tables.rollouts
    query = select(rollouts).order_by(rollouts.c.id.desc())
    if model:
        query = query.where(rollouts.c.model == model)
    if kind:
        query = query.where(rollouts.c.kind == kind)
    if active:
        going = rollouts.c.state.not_in([state.value for state in FINAL])
        query = query.where(or_(going, rollouts.c.watch_until != "") if watched else going)
    return [_kept(connection, row) for row in connection.execute(query).all()]


def _kept(connection: Connection, row: Any) -> Kept:
    members = tables.rollout_members
    query = select(members.c.doc).where(members.c.rollout == row.id).order_by(members.c.place)
    roster = Roster(msgspec.convert(doc, Member) for doc in connection.execute(query).scalars())
    head = msgspec.convert(row.doc, Head)
    whole = Rollout(**{name: getattr(head, name) for name in Head.__struct_fields__}, members=roster)
    return Kept(whole, row.created, row.created_by, row.approved_by)


def next_id(connection: Connection) -> str:
    """Numbers that sort as they were made; a device tells a newer rollout by it.

    What devices reported counts too: a hub restored from a backup must not give a number again. No device can push the
    numbers far, whatever it reports.
    """
    rollouts, told = tables.rollouts.c.id, tables.updates.c.rollout
    newest = _number(connection.execute(select(func.max(rollouts))).scalar())
    near = told.between(f"r-{newest:06d}", f"r-{newest + MOST_LOST:06d}~")
    newest = max(newest, _number(connection.execute(select(func.max(told)).where(near)).scalar()))
    return f"r-{newest + 1:06d}"


def _number(rollout: str | None) -> int:
    """The number in a rollout's id, 0 where there is none."""
    digits = (rollout or "")[2:8]
    return int(digits) if digits.isdigit() else 0


def insert_new(connection: Connection, rollout: Rollout, actor: str, now: datetime, approved: str = "") -> None:
    row = {**_row(rollout), "id": rollout.id, "created": rfc3339(now), "created_by": actor, "approved_by": approved}
    connection.execute(insert(tables.rollouts).values(row))
    places = {device: place for place, device in enumerate(rollout.members)}
    rows = [_member_row(rollout, member, now) | {"place": places[d]} for d, member in rollout.members.items()]
    if rows:
        connection.execute(insert(tables.rollout_members), rows)


def save(connection: Connection, before: Rollout, after: Rollout, now: datetime) -> Rollout:
    """Write what changed of the rollout and of its members, and a line in its log for each thing that did; the
    rollout with nothing left to write."""
    if before == after:
        return after
    if _head(before) != _head(after):
        connection.execute(update(tables.rollouts).where(tables.rollouts.c.id == after.id).values(_row(after)))
    new = [device for device in after.members.delta if device not in before.members]
    places = {device: len(before.members) + number for number, device in enumerate(sorted(new))}
    known = [_member_row(after, after.members[d], now) for d in after.members.delta if d not in places]
    upsert_many(connection, tables.rollout_members, known)
    joined = [_member_row(after, after.members[d], now) | {"place": place} for d, place in places.items()]
    upsert_many(connection, tables.rollout_members, joined)
    lines = [_line(after.id, now, line) for line in _changes(before, after)]
    if lines:
        connection.execute(insert(tables.rollout_log), lines)
    return msgspec.structs.replace(after, members=after.members.saved())


def _head(rollout: Rollout) -> tuple[Any, ...]:
    return tuple(getattr(rollout, name) for name in Head.__struct_fields__)


def _row(rollout: Rollout) -> dict[str, Any]:
    doc = msgspec.to_builtins({name: getattr(rollout, name) for name in Head.__struct_fields__})
    end = watch_end(rollout)
    return {
        "model": rollout.model,
        "digest": rollout.digest,
        "version": rollout.version,
        "state": rollout.state.value,
        "kind": rollout.kind,
        "watch_until": rfc3339(end) if end is not None else "",
        "doc": doc,
    }


def _member_row(rollout: Rollout, member: Member, now: datetime) -> dict[str, Any]:
    return {
        "rollout": rollout.id,
        "device": member.device,
        "outcome": member.outcome.value,
        "back": member.back.value,
        "changed": rfc3339(now),
        "doc": msgspec.to_builtins(member),
    }


def _changes(before: Rollout, after: Rollout) -> Iterable[Line]:
    for device in sorted(after.members.delta):
        old, new = before.members.get(device), after.members[device]
        if old is None or (old.outcome, old.back, old.attempt) != (new.outcome, new.back, new.attempt):
            yield _moved(after, new)
    if after.wave != before.wave:
        yield "wave", f"Wave {after.wave + 1} began.", {"wave": after.wave}
    if after.state is not before.state or (after.cause, after.sentence) != (before.cause, before.sentence):
        yield after.cause, after.sentence, {"state": after.state.value}


def _moved(rollout: Rollout, new: Member) -> Line:
    data = {"device": new.device, "site": new.site, "outcome": new.outcome.value, "back": new.back.value}
    said = f"{new.site}: {new.outcome.value}." if not new.sentence else new.sentence
    if new.outcome.value == "ordered":
        to = f"back to {new.target_version}" if new.target else rollout.version
        said = f"{new.site} was ordered {'to go ' if new.target else 'to take '}{to}."
    return new.cause or new.outcome.value, said, data


def log(connection: Connection, rollout: str, now: datetime, line: Line) -> None:
    connection.execute(insert(tables.rollout_log).values(_line(rollout, now, line)))


def _line(rollout: str, now: datetime, line: Line) -> dict[str, Any]:
    cause, sentence, data = line
    row = {"rollout": rollout, "at": rfc3339(now), "cause": cause, "sentence": sentence, "data": data}
    return {**row, "device": str(data.get("device", ""))}


def log_of(connection: Connection, rollout: str, limit: int = 0) -> list[dict[str, Any]]:
    """The log of a rollout, oldest first; with ``limit`` its newest lines."""
    lines = tables.rollout_log
    query = select(lines.c.at, lines.c.cause, lines.c.sentence).where(lines.c.rollout == rollout)
    if limit:
        rows = connection.execute(query.order_by(lines.c.n.desc()).limit(limit)).mappings().all()[::-1]
    else:
        rows = connection.execute(query.order_by(lines.c.n)).mappings().all()
    return [dict(row) for row in rows]


def carry_out(
    connection: Connection,
    rollout: Rollout,
    orders: Iterable[Order],
    incidents: Incidents,
    now: datetime,
    *,
    actor: str = HUB,
) -> set[str]:
    """Bring orders into the tables; the devices whose desired document must be published again."""
    touched: set[str] = set()
    orders = tuple(orders)
    upsert_many(connection, tables.assignments, [_assigned(rollout.model, o) for o in orders if isinstance(o, Assign)])
    for order in orders:
        match order:
            case Assign():
                touched.add(order.device)
            case Withdraw(device):
                held = tables.assignments
                connection.execute(delete(held).where(held.c.device == device, held.c.model == rollout.model))
                touched.add(device)
            case Quarantine(digest):
                releases = tables.releases
                connection.execute(update(releases).where(releases.c.digest == digest).values(state="quarantined"))
            case RaiseIncident():
                incidents.open_in(connection, now, _raised(connection, rollout, order))
            case Begin(begun):
                if find(connection, begun.id) is None:
                    insert_new(connection, begun, actor, now, approved=actor)
                    log(connection, begun.id, now, ("begun", begun.why, {"state": begun.state.value, "of": begun.of}))
            case _:
                assert_never(order)
    return touched


def offer_joiners(connection: Connection, before: Rollout, after: Rollout) -> None:
    """What later joiners get follows a rollout that has just finished, or has just begun to go back: then it is the
    release of the newest one that still stands, if there is any."""
    back = {State.ROLLING_BACK, State.ROLLED_BACK}
    if after.kind != "update" or after.state is before.state:
        return
    if after.state is State.FINISHED:
        upsert(connection, tables.aliases, {"model": after.model, "alias": FLEET_ALIAS, "digest": after.digest})
    elif after.state in back and before.state not in back:
        _offer_standing(connection, after)


def _offer_standing(connection: Connection, gone: Rollout) -> None:
    rollouts, aliases = tables.rollouts, tables.aliases
    stands = (rollouts.c.state == State.FINISHED.value) & (rollouts.c.kind == "update") & (rollouts.c.id != gone.id)
    query = select(rollouts.c.digest).where(rollouts.c.model == gone.model, stands).order_by(rollouts.c.id.desc())
    digest = connection.execute(query.limit(1)).scalar()
    where = (aliases.c.model == gone.model) & (aliases.c.alias == FLEET_ALIAS)
    if digest is None:
        connection.execute(delete(aliases).where(where))
    else:
        connection.execute(update(aliases).where(where).values(digest=digest))


def followed(connection: Connection, rollout: Rollout) -> str:
    """The newest rollout of the same model after this one under which anything was ordered; empty when none was."""
    rollouts, members = tables.rollouts, tables.rollout_members
    ordered = members.c.outcome.in_([outcome.value for outcome in TOUCHED])
    began = select(members.c.device).where(members.c.rollout == rollouts.c.id, ordered).exists()
    newer = (rollouts.c.model == rollout.model) & (rollouts.c.kind == "update") & (rollouts.c.id > rollout.id)
    return connection.execute(select(func.max(rollouts.c.id)).where(newer, began)).scalar() or ""


def _raised(connection: Connection, rollout: Rollout, order: RaiseIncident) -> Raise:
    """The incident with what led to it and what it did."""
    subject: dict[str, Any] = {"rollout": rollout.id, "model": rollout.model, "version": rollout.version}
    if order.device:
        subject["device"] = order.device
    if order.effect:
        subject |= {"effect": order.effect, "timeline": log_of(connection, rollout.id, TIMELINE)}
    return Raise(order.key, order.kind, order.severity, order.cause, order.sentence, subject)


def assign(connection: Connection, model: str, order: Assign) -> None:
    """What the device's next document names of the model."""
    upsert(connection, tables.assignments, _assigned(model, order))


def _assigned(model: str, order: Assign) -> dict[str, Any]:
    return {
        "device": order.device,
        "model": model,
        "digest": order.release,
        "version": order.version,
        "rollout": order.rollout,
        "action": order.action,
        "probation": msgspec.to_builtins(order.probation),
        "schedule": msgspec.to_builtins(order.schedule) if order.schedule else {},
        "strategy": msgspec.to_builtins(order.strategy) if order.strategy else {},
        "follows": " ".join(order.after),
    }
