"""Devices that join the fleet later, and what they get."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, select

from landreeve_hub.rollout import book
from landreeve_hub.rollout.live import Live
from landreeve_hub.rollout.roster import Member, Outcome
from landreeve_hub.rollout.sight import PIECE, see
from landreeve_hub.rollout.state import FINAL, Assign, Rollout, State
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339

BORN_WITHIN = timedelta(minutes=2)


class Joiners:
    """One that has just joined is given time to tell what box it is: its first order then carries the plans that won on
    boxes of its class. ``young`` are those, and looked at again."""

    def __init__(self) -> None:
        self._young: set[str] = set()
        self._known = False
        self._oldest: datetime | None = None

    def idle(self, now: datetime) -> bool:
        """Whether nobody is waited for."""
        return self._known and (self._oldest is None or now < self._oldest)

    def look(self, connection: Connection, live: Live, changed: Collection[str], now: datetime) -> set[str]:
        """Devices that were given something now. ``changed`` are the only ones that can be new, but at the first look
        everyone is looked at."""
        candidates = set(changed) | self._young if self._known else set(_fleet(connection))
        self._known = True
        rows = _present(connection, candidates)
        since = now - BORN_WITHIN
        young = {row.id: parse_rfc3339(row.enrolled) for row in rows if not row.agent and row.enrolled > rfc3339(since)}
        self._young = set(young)
        self._oldest = min(young.values()) + BORN_WITHIN if young else None
        ready = {row.id: row for row in rows if row.id not in young}
        if not ready:
            return set()
        _join(connection, live, ready, now)
        return _give(connection, ready)


def _fleet(connection: Connection) -> Iterable[str]:
    return connection.execute(select(tables.devices.c.id).where(~tables.devices.c.revoked)).scalars().all()


def _present(connection: Connection, devices: Collection[str]) -> list[Any]:
    names, table = sorted(devices), tables.devices
    found: list[Any] = []
    for start in range(0, len(names), PIECE):
        piece = names[start : start + PIECE]
        columns = (table.c.id, table.c.site, table.c.agent, table.c.enrolled, table.c.labels)
        found += connection.execute(select(*columns).where(table.c.id.in_(piece), ~table.c.revoked)).all()
    return found


def _join(connection: Connection, live: Live, ready: dict[str, Any], now: datetime) -> None:
    """Devices enrolled since a rollout was proposed join it where its plan says so."""
    for run in live.running.values():
        rollout = run.rollout
        if rollout.kind == "return" or rollout.state in FINAL or rollout.plan.late == "wait":
            continue
        created = book.load(connection, rollout.id).created
        new = [row for d, row in ready.items() if d not in rollout.members and row.enrolled > created]
        if new:
            joined = replace(rollout, members=rollout.members.put([_member(rollout, row, now) for row in new]))
            run.rollout = book.save(connection, rollout, joined, now)
            run.facts |= see(connection, run.rollout, now, [row.id for row in new])
            run.due = True


def _member(rollout: Rollout, row: Any, now: datetime) -> Member:
    wave = rollout.wave if rollout.plan.late == "current" else rollout.members.last_wave
    place = row.labels.get(rollout.plan.site_label, "")
    joined = Member(row.id, row.site, wave, place=place, due_since=now)
    if rollout.plan.late == "leave":
        text = f"{row.site} joined the fleet after the rollout was proposed and is left out."
        return replace(joined, outcome=Outcome.SKIPPED, cause="joined_late", sentence=text)
    return replace(joined, cause="joined_late", sentence=f"{row.site} joined the fleet and this rollout.")


def _give(connection: Connection, ready: dict[str, Any]) -> set[str]:
    """The fleet's release of each model, for devices that neither have the model nor were part of a rollout of it.

    A member without an assignment failed its first version and had nothing to go back to: ordering the release again by
    the side door would be wrong.
    """
    touched: set[str] = set()
    for digest in _fleet_releases(connection):
        release = connection.execute(select(tables.releases).where(tables.releases.c.digest == digest)).first()
        if release is None or release.state != "approved":
            continue
        free = set(ready) - _held(connection, release.model, ready)
        rollout = _finished(connection, digest) if free else None
        if rollout is None:
            continue
        for device in sorted(free):
            book.assign(connection, release.model, _order(rollout, device, release.version))
            touched.add(device)
    return touched


def _order(rollout: Rollout, device: str, version: str) -> Assign:
    plan = rollout.plan
    return Assign(
        device, rollout.digest, version, rollout.id, "install", plan.probation, None, plan.strategy, plan.after
    )


def _fleet_releases(connection: Connection) -> Iterable[str]:
    aliases = tables.aliases
    return connection.execute(select(aliases.c.digest).where(aliases.c.alias == book.FLEET_ALIAS)).scalars().all()


def _held(connection: Connection, model: str, devices: Collection[str]) -> set[str]:
    """Those among the devices that have the model, or were part of a rollout of it."""
    assigned, members, rollouts = tables.assignments, tables.rollout_members, tables.rollouts
    names, found = sorted(devices), set[str]()
    for start in range(0, len(names), PIECE):
        piece = names[start : start + PIECE]
        have = select(assigned.c.device).where(assigned.c.model == model, assigned.c.device.in_(piece))
        took = select(members.c.device).join(rollouts, rollouts.c.id == members.c.rollout)
        took = took.where(rollouts.c.model == model, members.c.device.in_(piece))
        found |= set(connection.execute(have).scalars()) | set(connection.execute(took).scalars())
    return found


def _finished(connection: Connection, digest: str) -> Rollout | None:
    rollouts = tables.rollouts
    where = (rollouts.c.digest == digest) & (rollouts.c.state == State.FINISHED.value) & (rollouts.c.kind == "update")
    newest = connection.execute(select(rollouts.c.id).where(where).order_by(rollouts.c.id.desc()).limit(1)).scalar()
    return book.load(connection, newest).rollout if newest else None


def catch_up(connection: Connection, rollout: Rollout) -> set[str]:
    """A rollout has finished: who joined while it ran, and waited, gets its release now."""
    if rollout.plan.late != "wait" or rollout.kind == "return":
        return set()
    table, assigned = tables.devices, tables.assignments
    created = book.load(connection, rollout.id).created
    query = (
        select(table.c.id)
        .join(assigned, (assigned.c.device == table.c.id) & (assigned.c.model == rollout.model))
        .where(~table.c.revoked, table.c.enrolled > created, assigned.c.digest != rollout.digest)
    )
    late = [d for d in connection.execute(query).scalars() if d not in rollout.members]
    for device in late:
        book.assign(connection, rollout.model, _order(rollout, device, rollout.version))
    return set(late)
