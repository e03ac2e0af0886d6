"""Carries out the update machine: reads the state, performs its effect, feeds back the outcome, until nothing is
left to do.

The journal comes first: state, transition and report are committed before an effect begins, and each effect may
be performed again. So the process may die at any moment; `recover` goes on from what the store says.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec
from landreeve.blobs.files import PLAIN, Files
from landreeve.trust.verdict import Cause, Rejected
from landreeve.wire.messages import Audit, Desired, PlanReport, SignedDesired
from landreeve.wire.messages import Event as EventFact
from landreeve.wire.plans import BoxFacts
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.link.outbox import Outbox
from landreeve_agent.serving.ending import Ending
from landreeve_agent.store import events
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update import journal, machine, plans
from landreeve_agent.update.blaming import accused
from landreeve_agent.update.checking import check
from landreeve_agent.update.directing import Serving, serving
from landreeve_agent.update.effects import NOTHING, CannotServeError, Effects, Learnt
from landreeve_agent.update.holding import behind, held, spoilt
from landreeve_agent.update.install import Installer
from landreeve_agent.update.machine import Effect, Event, Outcome
from landreeve_agent.update.models import ModelEffects
from landreeve_agent.update.pointer import read_pointers
from landreeve_agent.update.ports import Blobs, Fetcher, Preflight, ProbationSource, Verifier, Worker
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.reserve import RESERVE_FILE, Reserve, is_full
from landreeve_agent.update.standing import MODEL, Installed, Order, Phase, State, order_of
from landreeve_agent.update.stepping import Step
from landreeve_agent.update.traffic import Traffic
from landreeve_agent.update.vitals import Look, Vitals, unseen
from landreeve_agent.update.watching import Watch

logger = logging.getLogger(__name__)

_GENERATION = "desired.generation"
_DOCUMENT = "desired.document"
_DIGEST = "desired.digest"
_REFUSED = "desired.refused"
_PASSING = frozenset({Cause.CLOCK_BEHIND, Cause.EXPIRED, Cause.STORAGE})  # the same order may be believed later


@dataclass(frozen=True, slots=True)
class Options:
    """``threads`` is what inference may use on this box; the pauses are in seconds."""

    threads: int = 1
    preflight_deadline_s: float = 300.0
    probation_every_s: float = 2.0
    retry_s: float = 2.0
    restore_every_s: float = 30.0
    window_every_s: float = 15.0


@dataclass(frozen=True, slots=True)
class View:
    """What people see of a model's update: its state, and in words what it waits for."""

    state: State
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a request of a person on the site was taken up, in words."""

    accepted: bool
    sentence: str


async def _unknown_box() -> BoxFacts:
    return BoxFacts()


class Runner:
    """The updates of every model on this device. `recover` once, then keep `run` going as a task."""

    def __init__(  # noqa: PLR0917 - the wiring of this room
        self,
        database: Database,
        outbox: Outbox,
        verifier: Verifier,
        fetcher: Fetcher,
        blobs: Blobs,
        models_dir: Path,
        worker: Worker,
        preflight: Preflight,
        probation_source: ProbationSource,
        clock: Callable[[], datetime],
        *,
        agent_version: str,
        options: Options = Options(),
        on_change: Callable[[], None] = lambda: None,
        on_believed: Callable[[Desired], None] = lambda _desired: None,
        box: Callable[[], Awaitable[BoxFacts]] = _unknown_box,
        look: Look = unseen,
        kinds: Mapping[str, Effects] | None = None,
        files: Files = PLAIN,
    ) -> None:
        self.generation = 0
        self._aside: SignedDesired | None = None
        self._database = database
        self._outbox = outbox
        self._verifier = verifier
        self._models_dir = models_dir
        self._traffic = Traffic(worker, models_dir)
        installer = self.installer = Installer(fetcher, blobs, models_dir, agent_version, files)
        watch = Watch(probation_source, Vitals(look), installer.claimed_loss, clock)
        models = ModelEffects(
            installer, preflight, self._traffic, watch, clock, box,
            threads=options.threads, preflight_deadline_s=options.preflight_deadline_s, retry_s=options.retry_s,
        )  # fmt: skip
        self._kinds: dict[str, Effects] = {MODEL: models, **(kinds or {})}
        self._clock = clock
        self._options = options
        self._on_change = on_change
        self._on_believed = on_believed
        self._reserve = Reserve(models_dir / RESERVE_FILE)
        self._views: dict[str, View] = {}
        self._drives: dict[str, asyncio.Task[None]] = {}
        self._tried: set[str] = set()
        self._named: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._ordering = asyncio.Lock()

    @property
    def views(self) -> dict[str, View]:
        """Each model's update as it stands."""
        return dict(self._views)

    async def recover(self) -> None:
        """After a start, before anything else and without any network: serve what served, know what was going on. An
        order that comes meanwhile waits, else what it began would be forgotten."""
        async with self._ordering:
            await self._recover()
        self._changed()

    async def _recover(self) -> None:
        pointers = await asyncio.to_thread(read_pointers, self._models_dir)
        states = await self._database.read(journal.load_all)
        for model in pointers.keys() - states.keys():  # the store was lost; the box serves on
            states[model] = await self._adopt(model, pointers[model])
        served = {name: state for name, state in states.items() if _component(state) == MODEL}
        await self._traffic.restore({model: _choices(state, pointers.get(model)) for model, state in served.items()})
        self._views = {model: View(state) for model, state in states.items()}
        self.generation, document = await self._database.read(_last_order)
        if document:
            desired = msgspec.json.decode(document, type=Desired)
            self._named = frozenset(model.model for model in desired.models)
            self._on_believed(desired)

    async def run(self) -> None:
        """Brings every update to its end, for ever; cancelling stops at once and loses nothing."""
        try:
            while True:
                self._wake.clear()
                for model in list(self._views):
                    self._start(model)
                await self._wake.wait()
        finally:
            drives = list(self._drives.values())
            for drive in drives:
                drive.cancel()
            await asyncio.gather(*drives, return_exceptions=True)

    async def on_desired(self, signed: SignedDesired) -> None:
        """Takes a document of the hub: believed and newer, it becomes every model's order; else it changes nothing."""
        async with self._ordering:
            if signed.generation <= self.generation:
                return
            now = self._clock()
            verdict = await asyncio.to_thread(self._verifier.verify, signed, now)
            self._aside = None
            if isinstance(verdict, Rejected):
                self._aside = signed if verdict.cause in _PASSING else None
                await self._database.write(lambda db: self._refuse(db, signed.generation, verdict, now))
                return
            desired, releases = verdict.desired, verdict.releases
            digest = hashlib.sha256(signed.document.encode()).hexdigest()
            states = await self._database.write(lambda db: self._take(db, desired, releases, now, digest))
            if states:
                self._named = frozenset(model.model for model in desired.models)
            self.generation = max(self.generation, desired.generation)
        for model, (before, after) in states.items():
            self._show(after)
            self._interrupt(model, before, after)
        self._on_believed(desired)
        self._changed()

    async def reconsider(self) -> None:
        """Looks again at an order refused for the clock, for its expiry or for the disk, which may be mended now."""
        if self._aside is not None:
            await self.on_desired(self._aside)

    async def roll_back(self, model: str, actor: str) -> Answer:
        """Someone on the site wants the version before, or an update in progress cancelled."""
        try:
            before, after = await self._database.write(lambda db: self._ask_back(db, model, actor))
        except Exception as error:
            if not (is_full(error) and self._reserve.release()):
                raise
            before, after = await self._database.write(lambda db: self._ask_back(db, model, actor))
        if after == before:
            return Answer(False, f"{model}: there is nothing to return to.")
        self._show(after)
        self._interrupt(model, before, after)
        self._changed()
        return Answer(True, after.sentence or "The version will be left as soon as it is activated.")

    async def worker_restarted(self, ending: Ending) -> None:
        """The worker died: counts against the suspects on probation, and against all on probation without any."""
        dropped = ending.looping and bool(ending.suspects)
        for state in accused(self._states().values(), ending.suspects):
            if state.order is not None:
                crashed = machine.Crashed(state.order.generation, f"{ending.how}{ending.during}", dropped)
                self._interrupt(state.model, state, await self._dispatch(state.model, crashed))

    def _start(self, model: str) -> None:
        drive = self._drives.get(model)
        if drive is None or drive.done():
            self._drives[model] = asyncio.create_task(self._drive(model), name=f"update-{model}")

    def _interrupt(self, model: str, before: State, after: State) -> None:
        """Stops work for a state that is no longer the model's; a change of routes is never cut in two."""
        drive = self._drives.get(model)
        if drive is not None and not drive.done() and after.phase is not before.phase:
            drive.add_done_callback(lambda _task: self._wake.set())
            drive.cancel()
        self._wake.set()

    async def _drive(self, model: str) -> None:
        """One model, effect by effect, until nothing is to be done."""
        while True:
            state = await self._database.read(lambda db: journal.load(db, model))
            self._show(state)
            effect = machine.effect_of(state)
            try:
                if effect is None:
                    await self._settle(state)
                    return
                await self._perform(effect, state)
            except Exception as error:
                # Attempts are counted in the state before each effect, so even this ends.
                logger.exception("%s of model %s failed and is tried again", effect, model)
                if not self._made_room(state, error):
                    await asyncio.sleep(self._options.retry_s)

    def _made_room(self, state: State, error: BaseException) -> bool:
        """Whether a full disk that keeps a version from being left has room again."""
        touched = state.phase in {Phase.ACTIVATING, Phase.PROBATION, Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED}
        return touched and is_full(error) and self._reserve.release()

    async def _perform(self, effect: Effect, state: State) -> None:
        if effect is Effect.TAKE_NEXT:
            await self._settle(state)
            await self._dispatch(state.model, machine.NextTaken())
            return
        order = state.order
        if order is None:
            raise RuntimeError(f"model {state.model}: {state.phase} without an order")
        await self._until_open(effect, order)
        begun = await self._decided(state, machine.Attempted(order.generation))
        if begun.phase is not state.phase:
            return
        outcome, learnt = await self._carry_out(effect, begun, order)
        if outcome is not None:
            await self._decided(begun, outcome, learnt)

    async def _decided(self, state: State, event: Outcome, learnt: Learnt = NOTHING) -> State:
        """Keep what came of an effect. A version that is to be left is left even when that cannot be written down: a
        full disk must not hold a site on what is known to be bad. It is decided anew once there is room."""
        try:
            return await self._dispatch(state.model, event, learnt)
        except Exception:
            after = machine.decide(state, event)
            if after.phase in {Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED}:
                await self._directed(self._kind(after), after)
            raise

    async def _until_open(self, effect: Effect, order: Order) -> None:
        """Fetching and switching wait for the site's windows; a return never does."""
        while sentence := held(effect, order, self._clock()) or behind(effect, order, self._states()):
            self._wait_for(order.model, sentence)
            await asyncio.sleep(self._options.window_every_s)

    async def _carry_out(self, effect: Effect, state: State, order: Order) -> tuple[Outcome | None, Learnt]:
        match effect:
            case Effect.CHECK:
                return await self._check(order), NOTHING
            case Effect.PROCEED:
                return machine.Proceeded(order.generation), NOTHING
            case Effect.FETCH:
                say = partial(self._wait_for, order.model)
                await asyncio.to_thread(self._reserve.hold)
                return await self._kind(state).fetch(state, order, say), NOTHING
            case Effect.PREFLIGHT:
                return await self._kind(state).prove(state, order)
            case Effect.ACTIVATE if name := spoilt(order, self._states(), self._named):
                sentence = f"{name} had to be updated first and was not."
                return machine.Failed(order.generation, "not_in_order", sentence), NOTHING
            case Effect.ACTIVATE:
                return await self._kind(state).activate(state, order), NOTHING
            case Effect.WATCH:
                return await self._watch(state, order)
            case Effect.RESTORE:
                return await self._return(state, order), NOTHING
            case Effect.TAKE_NEXT:
                return None, NOTHING
            case _:
                assert_never(effect)

    async def _check(self, order: Order) -> Outcome:
        bad = await self._database.read(lambda db: journal.quarantined(db, order.release))
        return check(order, self._kinds, self._states(), bad)

    def _states(self) -> dict[str, State]:
        return {name: view.state for name, view in self._views.items()}

    async def _watch(self, state: State, order: Order) -> tuple[Outcome, Learnt]:
        """Looks at the evidence until it decides."""
        kind = self._kind(state)
        await self._directed(kind, state)
        while True:
            verdict, figures = await kind.look(state, order)
            match verdict:
                case Pass(sentence):
                    return machine.Passed(order.generation, sentence), Learnt(figures)
                case Step(sentence):
                    return machine.Stepped(order.generation, stamp(self._clock()), sentence), Learnt(figures)
                case Fail(cause, sentence):
                    return machine.Failed(order.generation, cause, sentence), Learnt(figures)
                case Wait(sentence):
                    self._wait_for(order.model, sentence)
            await asyncio.sleep(self._options.probation_every_s)

    async def _return(self, state: State, order: Order) -> Outcome | None:
        if state.phase is Phase.ROLLBACK_FAILED and state.model in self._tried:
            await asyncio.sleep(self._options.restore_every_s)
        self._tried.add(state.model)
        if await self._directed(self._kind(state), state):
            return machine.Restored(order.generation)
        await asyncio.sleep(self._options.retry_s)
        return None

    async def _settle(self, state: State) -> None:
        """At the end of an update: nobody listens in any more, and what nobody needs is removed."""
        kind = self._kind(state)
        if await self._directed(kind, state):
            await kind.clean(state)
            await asyncio.to_thread(self._reserve.hold)
        else:  # what served goes on serving, shadow included
            asyncio.get_running_loop().call_later(self._options.restore_every_s, self._wake.set)

    async def _directed(self, kind: Effects, state: State) -> bool:
        """Whether that serves now which the state says."""
        try:
            await kind.direct(state)
        except CannotServeError as error:
            logger.warning("%s: %s", state.model, error)
            return self._made_room(state, error) and await self._directed(kind, state)
        return True

    def _kind(self, state: State) -> Effects:
        return self._kinds.get(_component(state), self._kinds[MODEL])

    async def _dispatch(self, model: str, event: Event, learnt: Learnt = NOTHING) -> State:
        """Decides and keeps the outcome in one transaction; returns the state as it now is."""
        now = self._clock()

        def write(db: SqliteDatabase) -> State:
            before = journal.load(db, model)
            after = machine.decide(before, event)
            journal.save(db, self._outbox, before, after, now, data=learnt.data)
            if learnt.plan is not None and after is not before:  # an outdated outcome tells nothing
                self._tell_plan(db, learnt.plan, now)
            return after

        after = await self._database.write(write)
        self._show(after)
        self._on_change()
        return after

    def _tell_plan(self, db: SqliteDatabase, report: PlanReport, now: datetime) -> None:
        """Keep the plan for the site, and tell the hub unless it could not compare this box with others."""
        plans.keep(db, report, now)
        if report.box_class:
            self._outbox.enqueue(db, report, now)

    def _take(
        self, db: SqliteDatabase, desired: Desired, releases: dict[str, int], now: datetime, digest: str
    ) -> dict[str, tuple[State, State]]:
        """Every model's new order in one transaction with the generation they came with."""
        changes: dict[str, tuple[State, State]] = {}
        if desired.generation <= _last_order(db)[0]:
            return changes  # it came before `recover` had told how far we are
        states = journal.load_all(db)
        orders = {model.model: order_of(model, desired.generation, releases) for model in desired.models}
        for name in states.keys() | orders.keys():
            before = states.get(name, State(name))
            order = orders.get(name)
            event: Event = machine.Ordered(order) if order else machine.Unordered(desired.generation)
            after = machine.decide(before, event)
            journal.save(db, self._outbox, before, after, now)
            changes[name] = (before, after)
        _keep(db, _GENERATION, str(desired.generation))
        _keep(db, _DOCUMENT, msgspec.json.encode(desired).decode())
        _keep(db, _DIGEST, digest)
        return changes

    def _refuse(self, db: SqliteDatabase, generation: int, verdict: Rejected, now: datetime) -> None:
        """Reports a refused document once, however often the broker repeats it."""
        what = f"{generation}:{verdict.cause}"
        row = db.conn.execute("SELECT value FROM meta WHERE key = ?", (_REFUSED,)).fetchone()
        if row is not None and row[0] == what:
            return
        _keep(db, _REFUSED, what)
        event = EventFact(
            name="update.refused",
            subject=f"generation {generation}",
            cause=str(verdict.cause),
            sentence=verdict.sentence,
            severity="error",
        )
        self._outbox.enqueue(db, event, now)
        events.record(db, event, now)

    def _ask_back(self, db: SqliteDatabase, model: str, actor: str) -> tuple[State, State]:
        now = self._clock()
        before = journal.load(db, model)
        after = machine.decide(before, machine.RollbackAsked(actor))
        journal.save(db, self._outbox, before, after, now)
        decision = "allowed" if after != before else "nothing_to_return_to"
        audit = Audit(actor=actor, action="model.rollback", object=model, decision=decision)
        self._outbox.enqueue(db, audit, now)
        return before, after

    async def _adopt(self, model: str, installed: Installed) -> State:
        state = State(model, good=installed)
        now = self._clock()
        await self._database.write(lambda db: journal.save(db, self._outbox, State(model), state, now))
        return state

    def _show(self, state: State) -> None:
        known = self._views.get(state.model)
        if known is None or known.state != state:
            self._views[state.model] = View(state)

    def _wait_for(self, model: str, sentence: str) -> None:
        self._views[model] = View(self._views[model].state, sentence)

    def _changed(self) -> None:
        self._wake.set()
        self._on_change()


def _component(state: State) -> str:
    return state.order.component if state.order else MODEL


def _choices(state: State, pointer: Installed | None) -> list[Serving]:
    """What may serve after a start, best first; each has proven itself on this box or passed its preflight."""
    wanted = serving(state)
    older = [Serving(item) for item in (state.good, state.previous, pointer, state.factory) if item is not None]
    if wanted.active is None:
        return []  # a first model that is being withdrawn, or none yet
    return [wanted, *(choice for choice in older if choice.active != wanted.active)]


def _last_order(db: SqliteDatabase) -> tuple[int, str]:
    rows = dict(db.conn.execute("SELECT key, value FROM meta WHERE key IN (?, ?)", (_GENERATION, _DOCUMENT)))
    return int(rows.get(_GENERATION, 0)), rows.get(_DOCUMENT, "")


def _keep(db: SqliteDatabase, key: str, value: str) -> None:
    db.conn.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )
