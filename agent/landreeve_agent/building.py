"""Every room of the supervisor, wired by constructor arguments, opened in order and closed in reverse."""

import asyncio
import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from landreeve.blobs.store import BlobStore
from landreeve.wire.messages import Desired, Event
from landreeve.wire.plans import BoxFacts, class_of
from landreeve_models.definition import BadDefinitionError, load_definition

from landreeve_agent.actions import Actions
from landreeve_agent.audit.log import SiteLog
from landreeve_agent.audit.witness import Mutual
from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.console.access import Codes, Sessions, doors, ensure_tokens, write_private
from landreeve_agent.console.api import LocalApi
from landreeve_agent.console.audit_api import AuditApi
from landreeve_agent.console.server import ConsoleServer, build
from landreeve_agent.console.status import StatusSource, UpdateView, read_active, update_view
from landreeve_agent.console.verdict import Finding
from landreeve_agent.doors.opening import Doors
from landreeve_agent.drift.windows import Windows
from landreeve_agent.hardware.room import HardwareRoom
from landreeve_agent.hardware.survey import Survey
from landreeve_agent.inference import Hold, Inference, replaced, restarted
from landreeve_agent.intake.definitions import Definitions
from landreeve_agent.intake.intake import Intake
from landreeve_agent.intake.retention import Retention
from landreeve_agent.intake.spool import Spool
from landreeve_agent.launch import sockets
from landreeve_agent.link.gate import site_gate
from landreeve_agent.link.identity import BadIdentityError
from landreeve_agent.link.meter import Meter
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.membership import Membership
from landreeve_agent.orders import Orders
from landreeve_agent.ports import after_a_kill, last_ports, moved, shown, take_ports
from landreeve_agent.rooms import Rooms, Trouble
from landreeve_agent.schedule.jobs import BadScheduleError, Schedule
from landreeve_agent.sealing import AtRest, training_folder
from landreeve_agent.selfupdate import beside_models, health_of
from landreeve_agent.serving.control import Lost
from landreeve_agent.serving.door import door
from landreeve_agent.serving.ending import Ending, of_own_process
from landreeve_agent.store.database import Database
from landreeve_agent.store.rescue import attend, open_store
from landreeve_agent.telemetry.machine import MachineProbe
from landreeve_agent.telemetry.recent import Recent
from landreeve_agent.telemetry.reporter import Reporter, WorkerFigures
from landreeve_agent.training.manager import Trainings
from landreeve_agent.tuning.preflight import Preflight
from landreeve_agent.tuning.report import Limits
from landreeve_agent.update.clock import WATCH_EVERY_S, ClockWatch
from landreeve_agent.update.directing import kept
from landreeve_agent.update.evidence import Evidence
from landreeve_agent.update.garbage import Garbage
from landreeve_agent.update.itself import Health
from landreeve_agent.update.plans import facts_of
from landreeve_agent.update.runner import Options as UpdateOptions
from landreeve_agent.update.runner import Runner
from landreeve_agent.update.standing import Phase
from landreeve_agent.version import agent_version

logger = logging.getLogger(__name__)

STATUS_EVERY_S = 2.0
RECOVER_S = 15.0
CONSOLE_END_S = 3.0
LEAVE_S = 1.0
# Told at these failures in a row: a room that never recovers must not fill the outbox.
_TOLD_FAILURES = {1, 10, 100, 1000}


@dataclass
class House:
    """The rooms of one site. `build` makes them, `open` sets them going, `close` ends them."""

    state: StateFolder
    settings: AgentSettings
    problem: str
    clock: Callable[[], datetime]
    database: Database
    listener: socket.socket
    hold: Hold
    leave: Callable[[], None] = lambda: None
    restarting: bool = False
    at_rest: AtRest = field(default_factory=AtRest)
    moved: tuple[str, ...] = ()
    _recovered: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: bool = False
    _unsettled: set["asyncio.Task[None]"] = field(default_factory=set)

    @classmethod
    def build(
        cls, state: StateFolder, settings: AgentSettings, problem: str, clock: Callable[[], datetime],
        leave: Callable[[], None] = lambda: None,
    ) -> "House":  # fmt: skip
        """Open the store, take the ports, make the rooms; ``leave`` ends the process in order. Raises `StoreError`,
        `StateError`."""
        listener, hold = take_ports(state, settings)
        try:
            at_rest = AtRest.opened(state, settings).settled(state, settings)
            database = open_store(state.database, at_rest.store_keys, clock())
        except BaseException:
            listener.close()
            hold.close()
            raise
        house = cls(state, settings, problem, clock, database, listener, hold, leave, at_rest=at_rest)
        house.moved = moved(settings, listener, hold) if not problem else ()
        house._make_rooms()
        house._make_console()
        return house

    def _make_rooms(self) -> None:
        settings, state = self.settings, self.state
        self.meter = Meter()
        self.outbox = Outbox(self.database, max_bytes=int(settings.link.outbox_mb * 1e6))
        self.audit = SiteLog(self.database, self.outbox, state.root / "keys", self.clock)
        self.mutual = Mutual(self.audit, self.outbox, self.clock, lambda: self.membership.identity is not None)
        self.rooms = Rooms(self._room_failed)
        self.definitions = Definitions(state.definitions)
        self.blobs = BlobStore(state.blobs, codec=self.at_rest.blob_codec)
        self.recent = Recent()
        serving = settings.serving
        self.doors = Doors(settings, functools.partial(after_a_kill, last=last_ports(state)))
        self.inference = Inference(
            state.spool, self.hold, self._worker_restarted, door(serving, state), serving.memory_mb, serving.isolated,
            self.doors.grpc, self.doors.grpc_max_bytes, self.at_rest.secrets, lambda why: self._tell(replaced(why)),
            self._model_lost,
        )  # fmt: skip
        self.reporter = Reporter(
            self.database, self.outbox, self.recent, MachineProbe(state.root), self._worker_figures,
            settings.telemetry.interval_s, self.meter,
        )  # fmt: skip
        self.spool = Spool(self.database, state.spool, self.recent.add, self.at_rest.spool_unseal)
        self.gate = site_gate(self.database, self.clock, settings.transfer, self._tell)
        self.membership = Membership(
            state, self.outbox, self.blobs, settings.link, self.clock,
            status=lambda: self.source.latest, on_command=self._on_command, on_desired=self._on_desired,
            on_joined=lambda: self._start(self._be_born()), meter=self.meter,
            on_event=self._tell, on_witness=self.mutual.on_witness, gate=self.gate,
        )  # fmt: skip
        self._look_for_hub()
        self.hardware = self._make_hardware()
        self.runner = self._make_runner()
        self.trainings = Trainings(
            self.database, self.outbox, self.definitions, self.blobs,
            folder=training_folder(state, settings), models=state.models, site=self.site, clock=self.clock,
            threads=settings.training.threads or max(1, (os.cpu_count() or 2) - 1),
            files=self.at_rest.files, raw=self.at_rest.raw,
        )  # fmt: skip
        self.windows = Windows(
            self.database, self.outbox, self.definitions, models=state.models, clock=self.clock,
            files=self.at_rest.files,
        )  # fmt: skip
        self.actions = Actions(self.database, self.outbox, self.definitions, self.trainings, self.runner, self.clock)
        self.orders = Orders(self.database, self.reporter, self.actions.of_hub(), self.clock)
        self.schedule = Schedule(self.rooms.failed, self.rooms.recovered)

    def _tell(self, event: Event) -> None:
        self._start(self.reporter.event(event, self.clock()))

    def _make_hardware(self) -> HardwareRoom:
        settings = self.settings.hardware
        survey = Survey(self.state.hardware, override=settings.override, stop=lambda: self._closing)
        return HardwareRoom(
            survey, settings.watch_s, settings.prove_after_s, used=self._used,
            tell=lambda event: self.reporter.event(event, self.clock()),
        )  # fmt: skip

    async def _health(self) -> Health:
        """How a new agent shows that it is well."""
        return health_of(self.membership.contact, self.membership.view(0), await self.inference.status())

    def _restart(self) -> None:
        self.restarting = True
        self.leave()

    def _used(self) -> Mapping[str, str]:
        """What each model runs on, as the last status knew it."""
        latest = self.source.latest
        return {model.name: model.used for model in latest.models} if latest else {}

    def _make_preflight(self) -> Preflight:
        tuning = self.settings.tuning
        return Preflight(
            tuning.budget_s,
            wanted=self.settings.serving.device,
            objective=tuning.objective,
            limits=Limits(memory_mb=tuning.memory_mb, cold_start_s=tuning.cold_start_s),
            files=self.at_rest.files,
            raw=self.at_rest.raw,
        )

    def _make_runner(self) -> Runner:
        budget = self.hardware.threads
        self._threads = self.settings.serving.threads or budget
        self._beside = beside_models(
            self.state, self.settings, self.membership, self.blobs, self._health, self._restart, self.clock
        )
        return Runner(
            self.database, self.outbox, self.membership, self.membership, self.blobs, self.state.models,
            self.inference, self._make_preflight(),
            Evidence(self.database), self.clock,
            agent_version=agent_version(),
            options=UpdateOptions(
                threads=self._threads,
                preflight_deadline_s=self.settings.tuning.deadline_s,
                probation_every_s=self.settings.update.judge_every_s,
            ),
            on_change=self._adopt_definitions, on_believed=self._believed, box=self._box,
            look=self.inference.status, kinds=self._beside, files=self.at_rest.files,
        )  # fmt: skip

    def _make_console(self) -> None:
        settings = self.settings.console
        tokens = ensure_tokens(self.state.tokens)
        self.codes = Codes(time.monotonic, settings.code_minutes * 60)
        sessions = Sessions(self.state.run / "sessions.json", time.time, settings.session_hours * 3600)
        self.source = StatusSource(
            site=lambda: self.site, device=self._device, version=agent_version(),
            serving=self.inference.url, database=self.database, definitions=self.definitions, recent=self.recent,
            machine=MachineProbe(self.state.root), worker=self.inference.status, hub=self.membership.view,
            active=functools.partial(read_active, self.state.models), updates=self._updates,
            troubles=lambda: self.rooms.troubles, findings=self._findings,
        )  # fmt: skip
        api = LocalApi(
            source=self.source, database=self.database, definitions=self.definitions,
            intake=Intake(self.database, self.definitions), codes=self.codes, sessions=sessions,
            hardware=self.hardware.document, train=self.actions.train, roll_back=self.actions.roll_back,
            audit=self.actions.audit, max_rows=self.settings.intake.max_rows,
            session_s=settings.session_hours * 3600, now=self.clock,
            audits=AuditApi(self.audit, self.mutual, self.state.run),
        )  # fmt: skip
        allowed = doors(settings.host, settings.hosts)
        app, stop = build(api, allowed, tokens, sessions, agent_version(), inference=self.inference.door)
        self.server = ConsoleServer(app, self.listener, stop)

    def _look_for_hub(self) -> None:
        try:
            self.membership.look()
        except BadIdentityError as error:
            logger.warning("%s", error)  # the link's room meets it again, and shows it

    def _device(self) -> str:
        identity = self.membership.identity
        return identity.device if identity else ""

    @property
    def site(self) -> str:
        """The site's name: as set on the box, else as the hub knows it."""
        identity = self.membership.identity
        default = AgentSettings().site.name
        return identity.site if identity and self.settings.site.name == default else self.settings.site.name

    @property
    def console_url(self) -> str:
        """Where the console answers."""
        return f"http://{shown(self.settings.console.host)}:{self.listener.getsockname()[1]}"

    async def open(self) -> None:
        """Recover what served, then set every room going; the link comes last."""
        self.outbox.bind(asyncio.get_running_loop())
        attend(self.database, self._tell, self._restart)
        await self.database.read(self.meter.load)
        self.rooms.keep("hardware", self.hardware.run)
        self.rooms.keep("console", self.server.run)
        self.rooms.keep("updates", self._update)
        # A model that takes long to load must not keep the other rooms waiting.
        recovered = asyncio.create_task(self._recovered.wait())
        await asyncio.wait({recovered}, timeout=RECOVER_S)
        recovered.cancel()
        self._say_ports()
        settings = self.settings
        self.rooms.every("intake", settings.intake.poll_s, lambda: self.spool.drain(self.clock()))
        tell = lambda event: self.reporter.event(event, self.clock())  # noqa: E731
        watch = ClockWatch(self.clock, self.runner.reconsider, tell, on_jump=self.schedule.again)
        self.rooms.every("clock", WATCH_EVERY_S, watch.tick)
        self.rooms.every("status", STATUS_EVERY_S, self.source.status)
        self.rooms.every("drift", settings.drift.every_s, self.windows.advance)
        self.rooms.keep("training", self.trainings.run)
        for room in self.doors.rooms(self.inference, self.state):
            self.rooms.keep(room.name, room.run)
        self._schedule()
        files = {"device certificate": self.state.certificate, "keys at rest": self.state.vault}
        await self.audit.note_settings(settings, files)
        self._start(self._be_born())
        self.rooms.keep("link", self.membership.run)

    async def close(self) -> None:
        """End every room, the worker included, and close the store."""
        self._closing = True  # children of the survey end too
        self.schedule.stop()
        self.server.stop()
        await self.rooms.finish("console", CONSOLE_END_S)
        await self.rooms.close()
        await self.inference.stop(LEAVE_S if self.restarting or sockets.kept() else 0.0)
        for task in self._unsettled:
            task.cancel()
        await asyncio.gather(*self._unsettled, return_exceptions=True)
        # What the worker answered last is in the spool; the next start would read it, but it is quick to do now.
        await self.spool.drain_all(self.clock())
        await self.database.write(self.meter.save)
        await asyncio.to_thread(self.database.close)
        self.listener.close()
        self.hold.close()
        self.doors.close()
        self.at_rest.close()

    async def _update(self) -> None:
        if not self._recovered.is_set():
            await self.runner.recover()
            self._recovered.set()
        await self.runner.run()

    def _schedule(self) -> None:
        settings = self.settings
        self.schedule.every("metrics", settings.telemetry.interval_s, lambda: self.reporter.metrics(self.clock()))
        self.schedule.every("audit", settings.audit.checkpoint_s, self.mutual.tell)
        if not self.problem:  # with settings nobody meant, nothing is deleted and nothing is trained
            keep = Retention(self.database, settings.intake.keep_days)
            self.schedule.every("retention", settings.schedule.retention_s, lambda: keep.run(self.clock()))
            installers = (self.runner.installer, *(kind.installer for kind in self._beside.values()))
            garbage = Garbage(self.database, self.blobs, installers, self.state.models, self.membership.under_way)
            self.schedule.every("garbage", settings.schedule.garbage_s, garbage.run)
            if settings.training.cron:
                self._schedule_training(settings.training.cron)
        self.schedule.start()

    def _schedule_training(self, cron: str) -> None:
        days = self.settings.training.lookback_days
        try:
            self.schedule.cron("training.cron", cron, lambda: self.actions.train_by_schedule(days))
        except BadScheduleError as error:
            logger.warning("%s", error)
            self.problem = str(error)

    async def _be_born(self) -> None:
        """Tell the hub who we are, as soon as the hardware is known: a matter of seconds."""
        await self.mutual.tell()
        await self.reporter.birth(
            self.clock(), agent=agent_version(), site=self.site, hardware=await self.hardware.document(),
            certificate_expires=self.membership.certificate_expires(), labels=self.settings.site.labels,
            box_class=class_of(await self._box()),
        )  # fmt: skip

    async def _box(self) -> BoxFacts:
        """What decides which plan wins here."""
        return facts_of(await self.hardware.inventory(), self._threads, os.environ)

    async def _worker_figures(self) -> WorkerFigures:
        status = await self.inference.status()
        return WorkerFigures(status.rss_mb, status.restarts) if status else WorkerFigures()

    def _worker_restarted(self, ending: Ending) -> None:
        """The worker came back: told once each, and held against what it speaks against on probation."""
        self._start(self.reporter.event(restarted(ending), self.clock()))
        self._start(self.runner.worker_restarted(ending))

    def _model_lost(self, lost: Lost) -> None:
        """A model's own process ended: held against that version alone."""
        self._worker_restarted(of_own_process(lost.model, lost.version, lost.cause, lost.restarts))

    async def _room_failed(self, trouble: Trouble) -> None:
        if trouble.failures not in _TOLD_FAILURES:
            return
        event = Event(
            name="room.failed", subject=trouble.room, cause="room_failed", severity="error",
            sentence=f"{trouble.room} failed ({trouble.failures} in a row): {trouble.sentence}",
        )  # fmt: skip
        await self.reporter.event(event, self.clock())

    def _start(self, work: Any) -> None:
        """Do it beside; a failure is logged."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._unsettled.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: "asyncio.Task[None]") -> None:
        self._unsettled.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a side task failed", exc_info=task.exception())

    async def _on_command(self, command: Any) -> None:
        await self.orders.on_command(command)

    async def _on_desired(self, signed: Any) -> None:
        await self.runner.on_desired(signed)

    def _believed(self, desired: Desired) -> None:
        self.membership.limit_rate(desired.max_facts_per_s)
        self.membership.trust(desired.authorities)
        self.gate.add(desired.line)

    def _updates(self) -> Mapping[str, UpdateView]:
        shown = {name: view for name, view in self.runner.views.items() if view.state.phase is not Phase.IDLE}
        return {name: update_view(view.state, view.waiting, kept(view.state)) for name, view in shown.items()}

    def _findings(self) -> tuple[Finding, ...]:
        found = []
        if self.problem:
            found.append(
                Finding("error", f"The settings cannot be used: {self.problem}. The last good ones hold.", "/")
            )
        found += [Finding(level, text, "/") for level, text in self.membership.troubles()]
        found += [Finding("warning", text, "/") for text in self.gate.sentences()]
        doubts = (*self.moved, *self.doors.problems, *self.hardware.problems, self.inference.door.problem)
        found += [Finding("warning", text, "/") for text in doubts if text]
        found += [Finding("error", text, "/") for text in self.mutual.doubts()]
        found += [
            Finding("error", f"definition {name}: {why}", "/models") for name, why in self.definitions.problems.items()
        ]
        return tuple(found)

    def _adopt_definitions(self) -> None:
        """A model that came from the hub brings its definition with it."""
        for name, active in read_active(self.state.models).items():
            if name in self.definitions or name in self.definitions.problems:
                continue
            try:
                self.definitions.put(
                    load_definition(self.state.models / name / active.release[:12], self.at_rest.files)
                )
            except (BadDefinitionError, OSError) as error:
                logger.warning("model %s came without a definition that can be used: %s", name, error)

    def _say_ports(self) -> None:
        host, port = self.inference.address
        ports = {
            "host": shown(self.settings.console.host),
            "console": self.listener.getsockname()[1],
            "serving": port,
            "serving_host": shown(host),
            "serving_certificate": str(self.inference.door.certificate or ""),
            "console_wanted": self.settings.console.port,
            "serving_wanted": self.settings.serving.port,
            **self.doors.ports(),
        }
        write_private(self.state.ports, msgspec.json.encode(ports))
