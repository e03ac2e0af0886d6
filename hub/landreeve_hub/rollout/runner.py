"""The rollout runner: asks the machine, writes what it decides in one transaction, then publishes.

What was decided but not published when the process died is published at the next start: publishing is safe to
repeat, since a document that did not change keeps its generation.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection, select, update

from landreeve_hub.access.identity import Person
from landreeve_hub.access.separation import Approved, Denied, judge
from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.rollout import book
from landreeve_hub.rollout.commands import COMMANDS
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import Plan, resolve
from landreeve_hub.rollout.sight import fleet_sites, see
from landreeve_hub.rollout.state import Assign, Member, Refused, Rollout, State
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

_LOG = logging.getLogger(__name__)

RETRY = timedelta(seconds=30)
BORN_WITHIN = timedelta(minutes=2)

Changed = Callable[[str], None]


class Publisher(Protocol):
    """Composes, signs and publishes a device's desired document when its content changed."""

    async def publish_device(self, device: str) -> Any: ...


class RolloutRefusedError(ValueError):
    """The rollout cannot be made or moved like that; the text says why. Nothing was changed."""


class NotAllowedError(PermissionError):
    """The person may not do that; the text says who may."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What someone wants rolled out. ``force`` is the reason to take a quarantined release in spite of it."""

    model: str
    digest: str
    plan: Plan
    force: str = ""


class RolloutRunner:
    """``changed`` is called with ``rollouts`` after anything moved, for whoever watches live."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        incidents: Incidents,
        audit: AuditLog,
        changed: Changed = lambda _: None,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._incidents = incidents
        self._audit = audit
        self._changed = changed
        self._unpublished: set[str] | None = None
        self._not_before: dict[str, datetime] = {}
        self._lock = asyncio.Lock()

    async def tick(self, now: datetime) -> None:
        """Move every rollout that can move, look after late joiners, publish what changed."""
        async with self._lock:
            if self._unpublished is None:
                self._unpublished = set(await self._store.read(fleet_sites))
            moved, touched = await self._store.write(lambda c: self._step(c, now))
            self._unpublished |= touched
            await self._publish(now)
        if moved or touched:
            self._changed("rollouts")

    async def create(self, proposal: Proposal, actor: str, now: datetime) -> Rollout:
        """A rollout that waits for approval; `RolloutRefusedError` or `BadPlanError` say why there is none."""
        rollout = await self._store.write(lambda c: self._create(c, proposal, actor, now))
        self._changed("rollouts")
        return rollout

    async def command(self, rollout: str, verb: str, person: Person, now: datetime, emergency: str = "") -> Rollout:
        """Do what a person asks; `RolloutRefusedError`, `NotAllowedError`, `book.UnknownRolloutError`."""
        after, touched = await self._store.write(lambda c: self._command(c, rollout, verb, (person, emergency), now))
        if self._unpublished is not None:
            self._unpublished |= touched
        await self.tick(now)
        return after

    async def _publish(self, now: datetime) -> None:
        left = self._unpublished or set()
        for device in sorted(d for d in left if self._not_before.get(d, now) <= now):
            try:
                await self._publisher.publish_device(device)
            except LookupError:  # revoked meanwhile: nobody would read it
                left.discard(device)
            except Exception:  # noqa: BLE001  judged below
                # One device's trouble must not keep the others from their orders.
                _LOG.exception("the desired document of %s could not be published; it is tried again", device)
                self._not_before[device] = now + RETRY
            else:
                left.discard(device)

    def _step(self, connection: Connection, now: datetime) -> tuple[bool, set[str]]:
        touched: set[str] = set()
        moved = False
        for kept in book.listed(connection, active=True):
            decision = decide(kept.rollout, see(connection, kept.rollout.model), now)
            book.save(connection, kept.rollout, decision.rollout, now)
            moved = moved or decision.rollout != kept.rollout
            if decision.rollout != kept.rollout or decision.orders:
                touched |= book.carry_out(connection, decision.rollout, decision.orders, self._incidents, now)
        return moved, touched | late_joiners(connection, now)

    def _create(self, connection: Connection, proposal: Proposal, actor: str, now: datetime) -> Rollout:
        release = connection.execute(select(tables.releases).where(tables.releases.c.digest == proposal.digest)).first()
        if release is None or release.model != proposal.model:
            raise RolloutRefusedError(f"release: {proposal.model} has no release {proposal.digest[:12]!r}")
        _check_release(release, proposal.force)
        running = [k.rollout for k in book.listed(connection, model=proposal.model, active=True)]
        if running:
            raise RolloutRefusedError(
                f"model: rollout {running[0].id} of {proposal.model} is {running[0].state.value}; "
                "finish, abort or roll it back first"
            )
        sites = fleet_sites(connection)
        members = tuple(
            Member(device, sites[device], number)
            for number, wave in enumerate(resolve(proposal.plan, sites))
            for device in wave
        )
        rollout = Rollout(
            id=book.next_id(connection),
            model=proposal.model,
            digest=proposal.digest,
            version=release.version,
            plan=proposal.plan,
            members=members,
            state=State.AWAITING_APPROVAL,
            cause="proposed",
            sentence=f"Proposed by {actor}.",
        )
        book.insert_new(connection, rollout, actor, now)
        data = {"model": rollout.model, "digest": rollout.digest, "version": rollout.version, "force": proposal.force}
        book.log(connection, rollout.id, now, ("proposed", rollout.sentence, data))
        self._audit.record_in(connection, now, Act(actor, "rollout.create", rollout.id, data=data))
        return rollout

    def _command(
        self, connection: Connection, rollout: str, verb: str, asked: tuple[Person, str], now: datetime
    ) -> tuple[Rollout, set[str]]:
        person, emergency = asked
        kept = book.load(connection, rollout)
        if verb == "approve":
            self._check_approval(connection, kept, person, emergency, now)
        if verb == "rollback":
            _check_newest(connection, kept.rollout)
        answer = COMMANDS[verb](kept.rollout, person.name, now)
        if isinstance(answer, Refused):
            raise RolloutRefusedError(answer.sentence)
        after, orders = answer
        book.save(connection, kept.rollout, after, now)
        touched = book.carry_out(connection, after, orders, self._incidents, now)
        if verb == "approve":
            approved = update(tables.rollouts).where(tables.rollouts.c.id == rollout).values(approved_by=person.name)
            connection.execute(approved)
        if verb == "rollback":
            _unset_fleet_release(connection, after)
        act = Act(person.name, f"rollout.{verb}", rollout, data={"emergency": emergency} if emergency else {})
        self._audit.record_in(connection, now, act)
        return after, touched

    def _check_approval(
        self, connection: Connection, kept: book.Kept, person: Person, emergency: str, now: datetime
    ) -> None:
        verdict = judge(kept.created_by, person.name, person.role, now, emergency)
        if isinstance(verdict, Denied):
            raise NotAllowedError(verdict.sentence)
        review_later(connection, self._incidents, verdict, (kept.rollout.id, person.name, emergency), now)


def review_later(
    connection: Connection, incidents: Incidents, verdict: Approved, what: tuple[str, str, str], now: datetime
) -> None:
    """An emergency approval opens an incident that a second person closes by reviewing it."""
    if verdict.review_by is None:
        return
    subject, actor, reason = what
    text = (
        f"{actor} approved their own proposal {subject} in an emergency: {reason} "
        f"A second person must review it before {rfc3339(verdict.review_by)}."
    )
    about = {"object": subject, "approved_by": actor}
    raised = Raise(f"review:{subject}", "emergency_review", "warning", "emergency", text, about)
    incidents.open_in(connection, now, raised)


def _check_release(release: Any, force: str) -> None:
    if release.state == "quarantined" and not force.strip():
        raise RolloutRefusedError(
            f"release: {release.version} is quarantined because it failed before; "
            "give a reason to force it (--force REASON)"
        )
    if release.state not in {"approved", "quarantined"}:
        raise RolloutRefusedError(
            f"release: {release.version} is {release.state}; only an approved release can be rolled out (model approve)"
        )


def _check_newest(connection: Connection, rollout: Rollout) -> None:
    newest = book.listed(connection, model=rollout.model)[0].rollout
    if newest.id != rollout.id:
        raise RolloutRefusedError(
            f"rollout {rollout.id} was followed by {newest.id}: roll that one back, "
            "or start a rollout of the version wanted"
        )


def _unset_fleet_release(connection: Connection, rollout: Rollout) -> None:
    """After a rollback of a finished rollout late joiners get the release before it, if there was one."""
    before = next(
        (
            kept.rollout.digest
            for kept in book.listed(connection, model=rollout.model)
            if kept.rollout.state is State.FINISHED and kept.rollout.id != rollout.id
        ),
        None,
    )
    aliases = tables.aliases
    where = (aliases.c.model == rollout.model) & (aliases.c.alias == book.FLEET_ALIAS)
    if before is None:
        connection.execute(aliases.delete().where(where))
    else:
        connection.execute(update(aliases).where(where).values(digest=before))


def late_joiners(connection: Connection, now: datetime) -> set[str]:
    """Devices without an assignment get the fleet's release of each model; those assigned now.

    One that has just joined is given time to tell what box it is: its first order then carries the plans that won on
    boxes of its class.
    """
    touched: set[str] = set()
    unknown = _not_born_yet(connection, now)
    for digest in _fleet_releases(connection):
        release = connection.execute(select(tables.releases).where(tables.releases.c.digest == digest)).first()
        if release is None or release.state != "approved":
            continue
        for device in set(_unassigned(connection, release.model)) - unknown:
            rollout = _finished(connection, digest)
            order = Assign(device, digest, release.version, rollout.id, "install", rollout.plan.probation)
            book.assign(connection, release.model, order)
            touched.add(device)
    return touched


def _not_born_yet(connection: Connection, now: datetime) -> set[str]:
    devices = tables.devices
    young = (devices.c.agent == "") & (devices.c.enrolled > rfc3339(now - BORN_WITHIN))
    return set(connection.execute(select(devices.c.id).where(young)).scalars())


def _fleet_releases(connection: Connection) -> Iterable[str]:
    aliases = tables.aliases
    return connection.execute(select(aliases.c.digest).where(aliases.c.alias == book.FLEET_ALIAS)).scalars().all()


def _finished(connection: Connection, digest: str) -> Rollout:
    rollouts = tables.rollouts
    where = (rollouts.c.digest == digest) & (rollouts.c.state == State.FINISHED.value)
    newest = connection.execute(select(rollouts.c.id).where(where).order_by(rollouts.c.id.desc()).limit(1)).scalar_one()
    return book.load(connection, newest).rollout


def _unassigned(connection: Connection, model: str) -> list[str]:
    """Devices of the fleet that neither have the model nor were part of a rollout of it.

    A member without an assignment failed its first version and had nothing to go back to: ordering the release
    again by the side door would be wrong.
    """
    held = select(tables.assignments.c.device).where(tables.assignments.c.model == model)
    have = set(connection.execute(held).scalars())
    for kept in book.listed(connection, model=model):
        have |= {m.device for m in kept.rollout.members}
    return [device for device in fleet_sites(connection) if device not in have]
