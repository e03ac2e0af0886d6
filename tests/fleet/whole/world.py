"""A whole fleet in one process, on a virtual clock: the hub's own rooms (`tests.fleet.whole.office`), the agents' own
update runners (`tests.fleet.whole.boxes`), and between them a broker that is late, repeats itself and loses.

The hub dies at any commit and comes back from an older backup; boxes lose their power, their line, their clock and
their disk, are cloned, removed, made anew and come late; people propose, approve, command twice, and settle conflicts.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from landreeve.wire.messages import Ack, DeviceState, Presence, SignedDesired
from landreeve_hub.desired.conflict import conflicted
from landreeve_hub.ingest.commit import Arrival
from landreeve_hub.rollout import book, live
from landreeve_hub.rollout.conflicts import NoConflictError
from landreeve_hub.rollout.machine import ALONE
from landreeve_hub.rollout.policy import BadPlanError
from landreeve_hub.rollout.propose import RolloutRefusedError
from landreeve_hub.rollout.runner import NotAllowedError
from landreeve_hub.rollout.state import FINAL, Around, Decision, Rollout, State
from landreeve_hub.store import tables
from sqlalchemy import select

from tests.fleet.invariants import InvariantBrokenError
from tests.fleet.whole import mistakes, story
from tests.fleet.whole.boxes import Box, Stamped
from tests.fleet.whole.clockwork import Agenda, HubKilledError, VirtualLoop
from tests.fleet.whole.faults import Faults, found
from tests.fleet.whole.office import Doors, Office, state_arrival
from tests.fleet.whole.people import People
from tests.fleet.whole.rules import Rules
from tests.fleet.whole.story import SPAN, Case, H

START = datetime(2026, 3, 28, 6, 0, tzinfo=UTC)  # the night after, clocks go forward in Europe
_QUARANTINED = select(tables.releases.c.digest).where(tables.releases.c.state == "quarantined")
REFUSED = (RolloutRefusedError, NotAllowedError, BadPlanError, book.UnknownRolloutError, NoConflictError)


class _Trouble(logging.Handler):
    """What the product logs when something was thrown that it did not expect."""

    def __init__(self, world: "World") -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            error = f"{record.getMessage()}: {record.exc_info[1]!r}"
            self._world.require(False, "nothing in the product stumbles", error)


class World:
    """Play it with `play`; `InvariantBrokenError` says which rule did not hold."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.random = Random(case.seed)
        self.loop = VirtualLoop()
        self.agenda = Agenda(self.loop)
        self.broken: InvariantBrokenError | None = None
        self.boxes: dict[str, Box] = {}
        self.twins: dict[str, Box] = {}
        self.spoilt: set[str] = set()
        self.forced: set[str] = set()
        self.emergencies: set[str] = set()
        self.doubtful: set[str] = set()
        self.calm = self.down = self.due = self.restored = self.settling = False
        self.life = self.number = self.count = self.orders = 0
        self.forks: dict[int, tuple[int, int]] = {}
        self.backups: list[tuple[bytes, int, int]] = []
        self.hub_skew = 0.0
        self.states: dict[str, Any] = {}
        self.retained: dict[str, Stamped] = {}
        self.sent: dict[int, int] = {}
        self.sending: set[int] = set()
        self.spoke: dict[int, float] = {}
        self.rules, self.people, self.faults = Rules(self), People(self), Faults(self)
        self.office = Office(Doors(self.hub_clock, self._publish, self._ack, self._presence))

    # --- what others ask ---

    @property
    def clock(self) -> datetime:
        return START + timedelta(seconds=self.loop.now)

    def hub_clock(self) -> datetime:
        return self.clock + timedelta(seconds=self.hub_skew)

    def require(self, holds: bool, name: str, what: str = "") -> None:
        if not holds and self.broken is None:
            self.broken = InvariantBrokenError(name, f"{what} (at {self.loop.now / H:.2f} h)")

    def cut(self, box: Box) -> None:
        self.agenda.at(0.0, lambda: self.faults.cut(box))

    def is_ancestor(self, before: Stamped, after: Stamped) -> bool:
        """Whether the hub that made the second document knew the first."""
        life = after.life
        while life != before.life:
            parent, number = self.forks.get(life, (-1, 0))
            if parent < 0 or (parent == before.life and before.number > number):
                return False
            life = parent
        return True

    def quarantined(self) -> set[str]:
        return {row.digest for row in self.office.rows(_QUARANTINED)}

    def firsts(self, rollout: Rollout) -> list[Rollout]:
        """The rollouts under way of what comes before it."""
        running = (run.rollout for run in self.office.runner._live.running.values())
        return [r for r in running if r.model in rollout.plan.after and r.kind != "return"]

    def older(self, rollout: Rollout) -> list[str]:
        """The rollouts of the same component that were proposed before and have not ended."""
        own = (tables.rollouts.c.model == rollout.model) & (tables.rollouts.c.kind == "update")
        query = select(tables.rollouts.c.id, tables.rollouts.c.state).where(own, tables.rollouts.c.id < rollout.id)
        return [row.id for row in self.office.rows(query) if State(row.state) not in FINAL]

    def doubled(self) -> set[str]:
        rows = self.office.rows(select(tables.devices.c.id, tables.devices.c.runs))
        return {row.id for row in rows if row.runs.get("since")}

    def in_conflict(self) -> set[str]:
        return {row.id for row in self.office.store.look(conflicted)}

    # --- the story ---

    def play(self) -> "World":
        with ExitStack() as stack:
            stack.enter_context(self._watched())
            stack.enter_context(mistakes.planted(self.case.bug))
            asyncio.set_event_loop(self.loop)
            try:
                self.loop.run_until_complete(self._story())
            finally:
                self._close()
        return self

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """The product's decisions pass the rules; what it logs as an error is one."""

        def watched(
            rollout: Rollout, fleet: Any, now: datetime, around: Around = ALONE, changed: Any = None
        ) -> Decision:
            decision = mistakes.DECIDE(rollout, fleet, now, around, changed)
            self.orders += len(decision.orders)
            self.rules.decided(rollout, fleet, around, changed, decision)
            return decision

        handler, real = _Trouble(self), live.decide
        loggers = [logging.getLogger(name) for name in ("landreeve_agent", "landreeve_hub", "landreeve")]
        before = [(one.level, one.propagate) for one in loggers]
        for one in loggers:
            one.addHandler(handler)
            one.setLevel(logging.ERROR)
            one.propagate = False
        live.decide = watched
        try:
            yield
        finally:
            live.decide = real
            for one, (level, propagate) in zip(loggers, before, strict=True):
                one.removeHandler(handler)
                one.setLevel(level)
                one.propagate = propagate

    def _close(self) -> None:
        for box in (*self.boxes.values(), *self.twins.values()):
            box.kill()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.office.store.close()
        for box in (*self.boxes.values(), *self.twins.values()):
            box.database.close()
        self.loop.close()
        asyncio.set_event_loop(None)

    async def _story(self) -> None:
        found(self)
        for one in story.wanted(self.random, self.case.size):
            for wanted in (one, story.again(self.random, one)) if self.case.stress else (one,):
                self.agenda.at(wanted.at, lambda w=wanted: self.people.propose(w))
        self.faults.schedule()
        self.agenda.at(0.0, self._tick)
        await self._until(SPAN)
        self.faults.peace()
        deadline = self.loop.now + 400 * H
        while self.loop.now < deadline:
            await self._until(self.loop.now + 2 * H)
            await self.people.settle()
            if not self._open():
                break
        self.require(not self._open(), "every rollout ends", str(self._open()))
        await self._until(self.loop.now + 10 * H)
        for _ in range(10):  # watches may still lead back what had finished
            await self.people.settle()
            await self._until(self.loop.now + 6 * H)
            if not self._open():
                break
        self.rules.ended()
        self._check()

    async def _until(self, moment: float) -> None:
        while self.loop.now < moment:
            await self.agenda.until(min(moment, self.loop.now + 600))
            self._check()

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _open(self) -> dict[str, str]:
        """The rollouts that have not ended."""
        query = select(tables.rollouts.c.id, tables.rollouts.c.state)
        return {r.id: r.state for r in self.office.rows(query) if State(r.state) not in FINAL}

    # --- the hub ---

    def _tick(self) -> Any:
        """A look every five minutes whatever happens; soon after anything arrives."""
        self.agenda.at(600.0 if self.calm else 300.0, self._tick)
        self.settling = True
        return self.look()

    def soon(self) -> None:
        if not self.due:
            self.due = True
            self.agenda.at(self.random.uniform(2.0, 45.0), self.look)

    async def look(self) -> None:
        self.due = False
        if self.down:
            return
        if await self.does(self._look()):
            await asyncio.sleep(0)
            if self.random.random() < max(self.case.often, 1.0 if self.case.bug else 0.0):
                self.rules.looked()

    async def _look(self) -> None:
        await self.office.listen()
        if self.settling:
            self.settling = False
            await self.office.settle()
        await self.office.runner.tick(self.hub_clock())

    async def does(self, work: Awaitable[Any]) -> bool:
        """Whether the hub lived through it and did not refuse."""
        try:
            await work
            self.rules.kept(whole=True)
        except HubKilledError:
            self.rules.kept(whole=False)
            self.agenda.at(self.random.uniform(5, 900), self.faults.revive)
            self.down = True
            return False
        except REFUSED:
            return False
        return True

    # --- the link ---

    def _publish(self, device: str, signed: SignedDesired) -> None:
        known = self.retained.get(device)
        if known is not None and known.signed.document == signed.document:
            return  # signed again
        self.number += 1
        stamped = self.retained[device] = Stamped(signed, self.life, self.number)
        for box in self.named(device):
            box.retained = stamped
            lost = not self.calm and self.random.random() < 0.05
            self.agenda.at(self.random.uniform(60, 1800) if lost else self.random.uniform(0, 5), box.take)

    def named(self, device: str) -> list[Box]:
        """Whoever listens under that name."""
        return [box for box in (self.boxes.get(device), self.twins.get(device)) if box is not None and not box.removed]

    def _ack(self, device: str, ack: Ack) -> None:
        for box in self.named(device):
            if box.alive and box.reachable and (self.calm or self.random.random() > 0.05):
                self.agenda.at(self.random.uniform(0, 3), lambda b=box: self._acknowledge(b, ack))

    async def _acknowledge(self, box: Box, ack: Ack) -> None:
        if box.alive:
            done = await box.outbox.acknowledge(ack.epoch, ack.seq, box.clock())
            if done.renumbered:
                self.sent[id(box)] = 0
            self.speak(box)
            gone = await box.outbox.forgotten()
            if box.setback.heard(ack.seq, gone, self.loop.now):
                gap = await box.outbox.give_up(ack.seq + 1, gone, box.clock())
                self._hear(box, Arrival(box.name, gap.body))

    def _presence(self, device: str, presence: Presence) -> None:
        for box in self.named(device):
            if box.alone == presence.doubled:
                box.alone = not presence.doubled
                self.agenda.at(1.0, box.take)

    def speak(self, box: Box) -> None:
        """Its state if it is news, and what waits in its outbox."""
        state = box.state()
        news = (state.session, state.generation, state.models, state.document)
        if news != box.told:
            box.told = news
            due = self.spoke[id(box)] = max(self.spoke.get(id(box), 0.0), self.loop.now + self.random.uniform(0, 3))
            self.agenda.at(due - self.loop.now, lambda: self._hear_state(box, state))
        if id(box) not in self.sending:
            self.sending.add(id(box))
            self.agenda.at(0.0, lambda: self._send(box))

    async def _send(self, box: Box) -> None:
        """What its outbox hands out: a single fact until the hub has answered this process."""
        self.sending.discard(id(box))
        if not (box.alive and box.reachable):
            return
        sent = self.sent.get(id(box), 0)
        for fact in await box.outbox.pending(sent, 200):
            sent = max(sent, fact.seq)
            for _ in range(2 if self.random.random() < 0.1 else 1):
                if self.calm or self.random.random() > 0.04:
                    delay = self.random.uniform(0, 2 if self.calm else 40)
                    self.agenda.at(delay, lambda f=fact.body: self._hear(box, Arrival(box.name, f)))
        self.sent[id(box)] = sent

    def again(self, box: Box) -> None:
        """What is not acknowledged is sent again."""
        if box.removed:
            return
        self.agenda.at(900.0, lambda: self.again(box))
        if box.alive and box.reachable:
            self.sent[id(box)] = 0
            self.speak(box)

    def _hear_state(self, box: Box, state: Any) -> None:
        if not box.removed:
            self.states[box.name] = state
            self._hear(box, state_arrival(box.name, state))

    def _hear(self, box: Box, arrival: Arrival) -> None:
        if not box.removed and not self.down:
            self.office.arrivals.append(arrival)
            self.soon()

    def leave(self, box: Box) -> None:
        """Its will is spoken."""
        state = (
            box.state(online=False)
            if box.alive
            else DeviceState(session=box.session, online=False, at="2026-01-01T00:00:00Z")
        )
        self.agenda.at(self.random.uniform(0, 90), lambda: self._hear_will(box, state))

    def _hear_will(self, box: Box, state: Any) -> None:
        if not box.removed and not (box.reachable and box.alive):
            self._hear(box, state_arrival(box.name, state))


def play(case: Case) -> World:
    """The history of that case, played to its end."""
    return World(case).play()
