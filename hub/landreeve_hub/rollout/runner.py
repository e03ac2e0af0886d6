"""The rollout runner: asks the machine, writes what it decides in one transaction, then publishes.

What was decided but not published when the process died is published at the next start: publishing is safe to
repeat, since a document that did not change keeps its generation.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, update

from landreeve_hub.access.identity import Person
from landreeve_hub.access.separation import Approved, Denied, judge
from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.desired.publish import ConflictedDeviceError
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.rollout import book, commands, conflicts
from landreeve_hub.rollout.commands import PASSIVE, Asked
from landreeve_hub.rollout.drifting import Pool
from landreeve_hub.rollout.joiners import Joiners
from landreeve_hub.rollout.live import Baselines, Live, no_baseline
from landreeve_hub.rollout.policy import asks_for_pool
from landreeve_hub.rollout.propose import Proposal, RolloutRefusedError, propose
from landreeve_hub.rollout.sight import fleet_sites
from landreeve_hub.rollout.state import Refused, Rollout, State
from landreeve_hub.store import tables
from landreeve_hub.store.database import PASSING, Store
from landreeve_hub.store.moment import rfc3339

_LOG = logging.getLogger(__name__)

RETRY = timedelta(seconds=30)
T = TypeVar("T")

Changed = Callable[[str], None]


class Publisher(Protocol):
    """Composes, signs and publishes a device's desired document when its content changed."""

    async def publish_device(self, device: str) -> Any: ...


class NotAllowedError(PermissionError):
    """The person may not do that; the text says who may."""


class RolloutRunner:
    """``changed`` is called with ``rollouts`` after anything moved, for whoever watches live; ``baselines`` answers
    what a release's training data looked like."""

    def __init__(  # noqa: PLR0917  wiring
        self,
        store: Store,
        publisher: Publisher,
        incidents: Incidents,
        audit: AuditLog,
        changed: Changed = lambda _: None,
        baselines: Baselines = no_baseline,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._incidents = incidents
        self._audit = audit
        self._changed = changed
        self._live = Live(incidents, baselines)
        self._baselines = baselines
        self._joiners = Joiners()
        self._unpublished: set[str] | None = None
        self._withheld: set[str] = set()
        self._not_before: dict[str, datetime] = {}
        self._lock = asyncio.Lock()

    async def tick(self, now: datetime) -> None:
        """Move every rollout that can move, look after late joiners, publish what changed."""
        async with self._lock:
            moved = await self._tick(now)
        if moved:
            self._changed("rollouts")

    def touch(self, devices: set[str]) -> None:
        """What these devices are asked for changed by other means: it is published at the next `tick`."""
        if self._unpublished is not None:
            self._unpublished |= devices

    async def create(self, proposal: Proposal, actor: str, now: datetime) -> Rollout:
        """A rollout that waits for approval; `RolloutRefusedError` or `BadPlanError` say why there is none."""

        def make(connection: Connection) -> Rollout:
            self._check_baseline(proposal)
            rollout = propose(connection, proposal, actor, now)
            data = {"model": rollout.model, "digest": rollout.digest, "version": rollout.version}
            more = {"force": proposal.force, "why": proposal.why, "risk": proposal.risk}
            self._audit.record_in(connection, now, Act(actor, "rollout.create", rollout.id, data=data | more))
            self._live.take(connection, rollout, now)
            return rollout

        async with self._lock:
            rollout = await self._kept(make)
        self._changed("rollouts")
        return rollout

    def _check_baseline(self, proposal: Proposal) -> None:
        field = asks_for_pool(proposal.plan)
        if field and self._baselines(proposal.digest) is None:
            raise RolloutRefusedError(
                f"{field}: release {proposal.digest[:12]} has no baseline that windows could be compared with"
            )

    def pools(self) -> dict[str, Pool]:
        """The windows of the rollouts under way that are judged by them."""
        return {name: run.pool for name, run in list(self._live.running.items()) if run.pool is not None}

    async def command(  # noqa: PLR0917  what a person asks
        self, rollout: str, verb: str, person: Person, now: datetime, emergency: str = "", asked: Asked | None = None
    ) -> Rollout:
        """Do what a person asks; `RolloutRefusedError`, `NotAllowedError`, `book.UnknownRolloutError`.

        ``asked`` is the command with its key and what it names; the same key again does nothing again.
        """
        wish = asked or Asked(person.name, now)
        async with self._lock:
            after, touched = await self._kept(lambda c: self._command(c, rollout, verb, (person, emergency), wish))
            if self._unpublished is not None:
                self._unpublished |= touched
            await self._tick(now)
        self._changed("rollouts")
        return after

    async def resolve(self, device: str, adopt: bool, person: Person, now: datetime) -> str:
        """Say who is right about a device in conflict; what was done. `conflicts.NoConflictError` says why not."""

        def settle(connection: Connection) -> str:
            said = conflicts.resolve(connection, device, adopt=adopt)
            verb = "adopt" if adopt else "override"
            self._audit.record_in(connection, now, Act(person.name, "device.resolve", device, data={"who": verb}))
            self._incidents.close_key_in(connection, now, conflicts.key_of(device), person.name, said)
            return said

        async with self._lock:
            said = await self._kept(settle)
            self._unpublished = (self._unpublished or set(await self._store.read(fleet_sites))) | {device}
            await self._tick(now)
        self._changed("fleet")
        return said

    async def _kept(self, work: Callable[[Connection], T]) -> T:
        """Write; what is in memory is thrown away when it could not be kept."""
        try:
            return await self._store.write(work)
        except BaseException as error:
            self._live.forget(deaf=isinstance(error, PASSING))
            raise

    async def _tick(self, now: datetime) -> bool:
        if self._unpublished is None:
            self._unpublished = set(await self._store.read(fleet_sites))
        if self._joiners.idle(now) and await self._store.read(lambda c: self._live.idle(c, now)):
            await self._publish(now)
            return False
        moved, touched = await self._kept(lambda c: self._step(c, now))
        self._unpublished |= touched
        await self._publish(now)
        return moved or bool(touched)

    def _step(self, connection: Connection, now: datetime) -> tuple[bool, set[str]]:
        first = self._live.number is None
        looked = self._live.look(connection, now)
        conflicts.tell(connection, None if first else looked.changed, self._incidents, now)
        ended = any(rollout.kind == "update" for rollout in looked.finished)
        self._joiners.look(connection, self._live, looked.changed, now, everyone=ended)
        self._live.go_on(connection, looked, now)
        return looked.moved, looked.touched | (self._withheld & looked.changed)

    async def _publish(self, now: datetime) -> None:
        left = self._unpublished or set()
        for device in sorted(d for d in left if not now < self._not_before.get(d, now) <= now + RETRY):
            try:
                await self._publisher.publish_device(device)
            except LookupError:  # revoked meanwhile
                left.discard(device)
            except ConflictedDeviceError:  # it obeys what we never made, or is two: until that changes
                left.discard(device)
                self._withheld.add(device)
            except Exception:  # noqa: BLE001  judged below
                # One device's trouble must not keep the others from their orders.
                _LOG.exception("the desired document of %s could not be published; it is tried again", device)
                self._not_before[device] = now + RETRY
            else:
                left.discard(device)
                self._withheld.discard(device)
                self._not_before.pop(device, None)

    def _command(
        self, connection: Connection, rollout: str, verb: str, by: tuple[Person, str], asked: Asked
    ) -> tuple[Rollout, set[str]]:
        person, emergency = by
        kept, now = book.load(connection, rollout), asked.now
        again = asked.key in kept.rollout.keys or (verb == "approve" and kept.rollout.state is State.RUNNING)
        if verb == "approve" and not again:
            self._check_approval(connection, kept, person, emergency, now)
        if verb in {"rollback", "retry"} and not again:
            _check_newest(connection, kept.rollout, verb)
        answer = commands.obey(kept.rollout, verb, asked)
        if isinstance(answer, Refused):
            raise RolloutRefusedError(answer.sentence)
        after, orders = answer
        if after is kept.rollout:
            return after, set()
        if verb == "retry":
            _check_standing(connection, after)
        after = book.save(connection, kept.rollout, after, now)
        book.offer_joiners(connection, kept.rollout, after)
        touched = book.carry_out(connection, after, orders, self._incidents, now, actor=person.name)
        if verb == "approve":
            approved = update(tables.rollouts).where(tables.rollouts.c.id == rollout).values(approved_by=person.name)
            connection.execute(approved)
        act = Act(person.name, f"rollout.{verb}", rollout, data={"emergency": emergency} if emergency else {})
        self._audit.record_in(connection, now, act)
        if self._live.number is not None:
            self._live.take(connection, after, now)
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


def _check_newest(connection: Connection, rollout: Rollout, verb: str) -> None:
    newer = book.followed(connection, rollout) if rollout.kind == "update" else ""
    if newer:
        raise RolloutRefusedError(
            f"rollout {rollout.id} cannot {PASSIVE[verb]}: it was followed by {newer}; act on that one, "
            "or start a rollout of the version wanted"
        )


def _check_standing(connection: Connection, rollout: Rollout) -> None:
    """A release found bad for the whole fleet is not tried again by the side door."""
    table = tables.releases
    row = connection.execute(table.select().where(table.c.digest == rollout.digest)).first()
    if rollout.kind != "return" and (row is None or row.state not in {"approved", "quarantined"}):
        raise RolloutRefusedError(f"rollout {rollout.id} cannot retry: {rollout.version} is no longer approved")
