"""A simulated box: the agent's own update runner, journal and outbox, over effects that take seeded times and end as
``fate`` says.

It carries several components: two models, the agent itself and firmware. `start` and `kill` are a process that begins
and a power cut: what is on the disk stays, what was going on is lost.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from landreeve.trust.document import parse_document
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.wire import ordering, schedule, strategy
from landreeve.wire.messages import Birth, DeviceState, DriftReport, ModelState, SignedDesired
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.setback import Setback
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update import journal, machine
from landreeve_agent.update.clock import ClockWatch
from landreeve_agent.update.directing import is_last, serving
from landreeve_agent.update.effects import NOTHING, Learnt, Say
from landreeve_agent.update.machine import Effect, Outcome
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.runner import Options, Runner
from landreeve_agent.update.standing import Installed, Order, Phase, State
from landreeve_agent.update.stepping import Step

from tests.fleet.whole.clockwork import MemoryDatabase, VirtualLoop

COMPONENTS = {"delay": "model", "noise": "model", "agent": "agent", "firmware": "firmware"}
"""Kinds by component."""
ALL_FEATURES = (schedule.FEATURE, ordering.FEATURE, strategy.FEATURE)
OPTIONS = Options(probation_every_s=120.0, retry_s=20.0, restore_every_s=300.0, window_every_s=600.0)
NOWHERE = Path("/nonexistent/landreeve-fleet")

TRIES = 3
"""So often a preflight may begin, crashes included."""

Fate = Callable[[str], Effect | None]


@dataclass(frozen=True)
class Stamped:
    """A document with what the simulation knows of its making: which life of the hub made it, as its which."""

    signed: SignedDesired
    life: int
    number: int


class Wish(Protocol):
    """What a box knows of its surroundings, and whom it tells that it has something to say."""

    loop: VirtualLoop

    @property
    def clock(self) -> datetime: ...
    def speak(self, box: "Box") -> None: ...
    def cut(self, box: "Box") -> None: ...
    def is_ancestor(self, before: Stamped, after: Stamped) -> bool: ...
    def require(self, holds: bool, name: str, what: str = "") -> None: ...


@dataclass
class Kind:
    """One kind of component on one box, as the runner calls it."""

    box: "Box"

    async def fetch(self, state: State, order: Order, say: Say) -> Outcome:
        return await self.box.carry_out(Effect.FETCH, order, (20, 300)) or machine.Staged(order.generation)

    async def prove(self, state: State, order: Order) -> tuple[Outcome, Learnt]:
        self.box.wish.require(state.attempt <= TRIES, "attempts are bounded", f"{self.box.name} {state.attempt}")
        failed = await self.box.carry_out(Effect.PREFLIGHT, order, (20, 200))
        return failed or machine.Proven(order.generation, "{}"), NOTHING

    async def activate(self, state: State, order: Order) -> Outcome | None:
        self.box.check_activation(order)
        failed = await self.box.carry_out(Effect.ACTIVATE, order, (1, 20))
        return failed or machine.Activated(order.generation, stamp(self.box.clock()))

    async def look(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        return self.box.verdict(state, order)

    async def direct(self, state: State) -> None:
        self.box.direct(state)

    async def clean(self, state: State) -> None: ...


class _Verifier:
    """Believes what the clock lets it believe."""

    def __init__(self, box: "Box") -> None:
        self._box = box

    def verify(self, signed: SignedDesired, now: datetime) -> Believed | Rejected:
        year = now.year
        if year > self._box.wish.clock.year + 1:
            return Rejected(Cause.EXPIRED, "The metadata has expired, by this clock.")
        if year < self._box.wish.clock.year - 1:
            return Rejected(Cause.CLOCK_BEHIND, "The clock is behind what was signed.")
        desired = parse_document(signed.document)
        signed_for = {
            one.release: 0 if self._box.fate(one.release) is Effect.CHECK else one.manifest_bytes
            for one in desired.models
        }
        return Believed(desired, signed_for, signed.generation)


class _Worker:
    async def apply(self, routes: Any) -> None: ...


class Box:
    """One device. ``skew`` is its clock minus the true one in seconds."""

    def __init__(  # noqa: PLR0917  what a box is
        self, name: str, place: str, zone: str, wish: Wish, random: Random, fate: Fate, features: tuple[str, ...]
    ) -> None:
        self.name, self.place, self.zone, self.wish, self.random, self.fate = name, place, zone, wish, random, fate
        self.features = features
        self.database = MemoryDatabase(None, random)
        self.skew = 0.0
        self.reachable = True
        self.alone = True  # nobody else speaks under its name, as far as it is told
        self.removed = False
        self.session = 0
        self.retained: Stamped | None = None
        self.obeys: Stamped | None = None
        self.forgiven = 0
        self.tries: dict[tuple[str, str], int] = {}
        self.serves: dict[str, str] = {}
        self.had: set[str] = set()
        self.left: dict[str, tuple[int, str]] = {}
        self.told: tuple[Any, ...] = ()
        self.window = 0
        self._life: list[asyncio.Task[None]] = []
        self.runner: Runner | None = None

    def clock(self) -> datetime:
        return self.wish.clock + timedelta(seconds=self.skew)

    def install(self, component: str, release: str, version: str) -> None:
        """It has this since before the history began."""
        had = State(component, phase=Phase.COMMITTED, good=Installed(release, version, "{}"))
        outbox = Outbox(self.database)

        def keep(db: Any) -> None:
            journal.save(db, outbox, State(component, phase=Phase.COMMITTED), had, self.clock())

        self.database.look(keep)
        self.had.add(component)

    # --- the process ---

    @property
    def alive(self) -> bool:
        return self.runner is not None

    def start(self) -> None:
        """The supervisor begins, with whatever is on the disk."""
        if self.alive:
            return
        self.alone = True  # what it was told of a copy is in memory alone
        self.run = f"{self.random.getrandbits(64):016x}"
        self.outbox, self.setback = Outbox(self.database), Setback(900.0)
        kind = Kind(self)
        self.runner = Runner(
            self.database, self.outbox, _Verifier(self), None, None, NOWHERE, _Worker(), None, None, self.clock,  # type: ignore[arg-type]
            agent_version="0.1.0", options=OPTIONS, on_change=self._changed,
            kinds=dict.fromkeys(("model", "agent", "firmware"), kind),
        )  # fmt: skip
        watch = ClockWatch(self.clock, self.runner.reconsider, self._event, lambda: self.wish.loop.now)
        self._life = [asyncio.create_task(self._live()), asyncio.create_task(self._watch(watch))]

    async def _live(self) -> None:
        assert self.runner is not None
        await self.runner.recover()
        await self.database.write(self._be_born)
        self._changed()
        if self.reachable:
            self.connect()
        await self.runner.run()

    def _be_born(self, db: Any) -> None:
        body = Birth(
            agent="0.1.0", site=self.name, started=stamp(self.clock()), metric_set=1, metric_names=(),
            features=self.features, hardware={}, certificate_expires="",
        )  # fmt: skip
        self.outbox.enqueue(db, body, self.clock())

    async def _watch(self, watch: ClockWatch) -> None:
        while True:
            await asyncio.sleep(300)
            await watch.tick()

    async def _event(self, event: Any) -> None:
        await self.database.write(lambda db: self.outbox.enqueue(db, event, self.clock()))
        self._changed()

    def kill(self) -> None:
        """The power goes."""
        for task in self._life:
            task.cancel()
        if self.runner is not None:
            for drive in self.runner._drives.values():
                drive.cancel()
        self._life, self.runner = [], None

    # --- the link ---

    def connect(self) -> None:
        """A new session: say where it stands, take what is retained, send what waits."""
        if not (self.reachable and self.alive):
            return
        self.session = max(self.session + 1, int(self.wish.loop.now * 1000))
        self.told = ()
        self._changed()
        self.take()

    def take(self) -> None:
        """What the broker retains for it."""
        if self.retained is not None and self.reachable and self.alive and self.alone:
            asyncio.get_running_loop().create_task(self._take(self.retained))

    async def _take(self, stamped: Stamped) -> None:
        runner = self.runner
        if runner is None:
            return
        await runner.on_desired(stamped.signed)
        taken = self.obeys is None or self.obeys.signed.generation < stamped.signed.generation
        if runner is self.runner and taken and runner.generation == stamped.signed.generation:
            self.obey(stamped)
        self._changed()

    def obey(self, stamped: Stamped) -> None:
        """It follows this document: of the same history as the one before, or a person has said that it may."""
        before = self.obeys
        if before is not None and before.signed.document == stamped.signed.document:
            return
        if before is not None:
            own = self.wish.is_ancestor(before, stamped) or self.forgiven > before.number
            self.wish.require(own, "no device is dragged back without a person's word", self.name)
            newer = stamped.signed.generation >= before.signed.generation
            self.wish.require(newer, "no device falls below its generation", self.name)
        self.obeys = stamped

    def _changed(self) -> None:
        if self.reachable and self.alive:
            self.wish.speak(self)

    def state(self, *, online: bool = True) -> DeviceState:
        """What it says of itself."""
        models: list[ModelState] = []
        digest = ""
        if self.runner is not None:
            for name, view in sorted(self.runner.views.items()):
                active = serving(view.state).active
                if active is not None:
                    models.append(
                        ModelState(
                            model=name, version=active.version, release=active.release, state=str(view.state.phase),
                            wanted="", used="",
                        )
                    )  # fmt: skip
            row = self.database.look(lambda db: dict(db.conn.execute("SELECT key, value FROM meta").fetchall()))
            digest = row.get("desired.digest", "")
        generation = self.runner.generation if self.runner is not None else 0
        return DeviceState(
            session=self.session, online=online, at=stamp(self.clock()), generation=generation, models=tuple(models),
            run=self.run, document=digest,
        )  # fmt: skip

    # --- what it does ---

    async def carry_out(self, effect: Effect, order: Order, seconds: tuple[float, float]) -> Outcome | None:
        """Time passes; None when it went well."""
        while not self.reachable and effect is Effect.FETCH:  # noqa: ASYNC110  a line says nothing when it is back
            await asyncio.sleep(60)
        await asyncio.sleep(self.random.uniform(*seconds))
        if not order.rollback and self.fate(order.release) is Effect.TAKE_NEXT and effect is Effect.PREFLIGHT:
            self.wish.cut(self)  # the release takes the whole box down, each time
            await asyncio.sleep(60)
        if not order.rollback and self.fate(order.release) is effect:
            return machine.Failed(order.generation, "planted", f"{self.name} failed at {effect}.")
        return None

    def verdict(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        key = (state.model, f"{order.generation}.{state.step}")
        looks = self.tries[key] = self.tries.get(key, 0) + 1
        figures = {"probation": {"rows": 500, "errors": self.random.randrange(3), "p95_ratio": 1.0}}
        if looks < 3 + len(self.name) % 3:
            return Wait("Too little traffic so far."), {}
        if self.fate(order.release) is Effect.WATCH:
            return Fail("planted", f"{self.name} failed on probation."), figures
        if not is_last(state):
            return Step("On to the next stage."), figures
        return Pass(f"{self.name} proved it."), figures

    def direct(self, state: State) -> None:
        active = serving(state).active
        generation = state.order.generation if state.order else 0
        if state.phase is Phase.PROBATION and state.good is not None:
            self.left[state.model] = (generation, state.good.release)
        wished = (state.order is not None and state.order.rollback) or state.cause == "local_rollback"
        began, before = self.left.get(state.model, (0, ""))
        if state.phase is Phase.ROLLED_BACK and began == generation and before and not wished:
            same = active is not None and active.release == before
            self.wish.require(same, "a failed update returns to what served", f"{self.name} {state.model}")
        if active is None:
            self.serves.pop(state.model, None)
        else:
            self.serves[state.model] = active.release
        gone = state.model in self.had and active is None
        self.wish.require(not gone, "something always serves", f"{self.name} {state.model} {state.phase}")

    def check_activation(self, order: Order) -> None:
        """A version is about to take over."""
        if order.rollback:
            return
        states = self.database.look(journal.load_all)
        document = self.obeys
        named = {m.model: m for m in parse_document(document.signed.document).models} if document else {}
        for name in order.after if ordering.FEATURE in self.features else ():
            other = states.get(name)
            if other is None or other.order is None or name not in named:
                continue
            text = f"{self.name}: {order.model} before {name} ({other.phase})"
            self.wish.require(other.phase is Phase.COMMITTED, "nothing is activated before what it waits for", text)
        true = abs(self.skew) < 1
        if true and schedule.FEATURE in self.features and order.schedule is not None and order.schedule.activate:
            local = self.wish.clock.astimezone(ZoneInfo(order.schedule.zone))
            held = local.hour >= 20 or local.hour < 6  # and the seconds in which it was begun
            self.wish.require(held, "nothing is activated outside the site's window", f"{self.name} {local}")

    def drift(self, component: str, verdict: str) -> None:
        """A window closes over what it serves."""
        if not self.alive or component not in self.serves:
            return
        self.window += 1
        body = DriftReport(
            model=component, release=self.serves[component], version="v", window=self.window,
            first=stamp(self.clock()), last=stamp(self.clock()), rows=1000, verdict=verdict, sentence="",
            scores={}, thresholds={}, drifted=(), sketches={},
        )  # fmt: skip
        asyncio.get_running_loop().create_task(self._tell(body))

    async def _tell(self, body: Any) -> None:
        if self.runner is not None:
            await self.database.write(lambda db: self.outbox.enqueue(db, body, self.clock()))
            self._changed()
