"""The composition root: builds the hub's rooms, owns their tasks, and ends them in order."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from landreeve.cli import Exit, fail, note
from landreeve.sealed.errors import SealedError
from landreeve.settings import SettingsError, write_values
from landreeve.wire.ids import BadIdError, check_id
from sqlalchemy import Connection, func, select
from starlette.types import ASGIApp, Receive, Scope, Send

from landreeve_hub.access import setup, tokens
from landreeve_hub.api.changes import Changes
from landreeve_hub.broker.plan import HUB_NAME
from landreeve_hub.broker.takeovers import Takeovers
from landreeve_hub.config import HubConfig, HubFolder, HubSettings, load_config
from landreeve_hub.errors import AlreadyRunningError, HubError, OperatorError
from landreeve_hub.fleet.authority import AuthorityError
from landreeve_hub.fleet.enrolment_api import Desk, FleetFacts, router
from landreeve_hub.incidents.accusing import Accusations
from landreeve_hub.incidents.rules import broken_log
from landreeve_hub.process import Port, Ports, Tls, WebServer, only_one, show_anew, web_server
from landreeve_hub.registry.garbage import DoubtError
from landreeve_hub.rooms import Builder, Rooms, bracketed, make_keys, reachable
from landreeve_hub.signing import alarms, roots
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.store import tables
from landreeve_hub.store.believed import Believed
from landreeve_hub.store.retention import Keep, forget

log = logging.getLogger(__name__)
HOUR_S = 3600.0
GUESTS_S = 2.0
WATCH_S = 5.0
DAY = timedelta(days=1)
TRY_BROKER_S = 5.0
SETTLE_S = 120.0
EXPECTED = (SealedError, HubError, SettingsError, SigningError, AuthorityError, BadIdError)


def serve(state: Path, flags: Mapping[str, str]) -> int:
    """Run a hub until it is asked to stop; the exit code. Expected trouble is said in one sentence."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        Hub(load_config(state, flags)).run()
    except EXPECTED as error:
        note(f"error: {error}")
        return int(_exit_of(error))
    return int(Exit.OK)


def _exit_of(error: Exception) -> Exit:
    if isinstance(error, AlreadyRunningError):
        return Exit.CONFLICT
    return Exit.USAGE if isinstance(error, OperatorError | SettingsError | BadIdError) else Exit.FAILURE


def init(state: Path, flags: Mapping[str, str]) -> dict[str, Any]:
    """Make the state folder: settings, keys, authority; what exists stays. What was made; expected trouble ends
    the program with one sentence."""
    try:
        return _init(HubFolder(state.absolute()), flags)
    except EXPECTED as error:
        fail(_exit_of(error), str(error))


def _init(folder: HubFolder, flags: Mapping[str, str]) -> dict[str, Any]:
    folder.prepare()
    with only_one(folder.run / "lock"):
        if flags:
            check_id(flags.get("fleet", HubSettings().fleet))
            write_values(folder.settings_file, HubSettings, flags)
        config = load_config(folder.root, {})
        authority = make_keys(config, _now())
    return {"state": str(folder.root), "fleet": config.settings.fleet, "ca": authority.ca_fingerprint}


def _now() -> datetime:
    return datetime.now(UTC)


class Fork:
    """Requests under a prefix go to one application, all others to another."""

    def __init__(self, prefix: str, below: ASGIApp, others: ASGIApp) -> None:
        self._prefix = prefix
        self._below = below
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_below = scope["type"] == "http" and scope["path"].startswith(self._prefix)
        await (self._below if is_below else self._others)(scope, receive, send)


class Hub:
    """One hub on one state folder."""

    def __init__(self, config: HubConfig, clock: Callable[[], datetime] = _now) -> None:
        self._config = config
        self._settings = config.settings
        self._folder = config.folder
        self._clock = clock
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._changes = Changes()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM. `HubError` when it cannot start or a part of it failed."""
        self._folder.prepare()
        with only_one(self._folder.run / "lock"):
            _sweep(self._folder.work)
            asyncio.run(self._serve())
        if self._failure is not None:
            raise HubError(f"the hub stopped because a part of it failed: {self._failure}") from self._failure

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        ports = Ports(self._folder.ports, note)
        http = ports.listen(Port("http", self._settings.http.host, self._settings.http.port))
        https = ports.listen(Port("https", self._settings.https.host, self._settings.https.port))
        rooms = await Builder(self._config, ports, self._clock, self._changes, self._changed).build()
        try:
            await self._open(rooms)
            tls = self._tls(rooms)
            devices = Fork("/enrol/v1/", self._enrolment(rooms), rooms.web)
            servers = [
                (web_server(rooms.web, lifespan=True), http),
                (web_server(devices, lifespan=False, tls=tls), https),
            ]
            rooms.identities.reissue.append(partial(self._show_anew, rooms, servers[1][0]))
            tasks = [asyncio.create_task(server.serve(sockets=[opened])) for server, opened in servers]
            tasks += self._background(rooms)
            await self._announce(rooms, ports, http.getsockname()[1])
            await self._until_stopped(tasks)
            await self._end(rooms, [server for server, _ in servers], tasks)
        finally:
            await self._close(rooms)

    def _changed(self, parts: set[str]) -> None:
        for part in sorted(parts):
            self._changes.say(part)
        if "rollouts" in parts:
            self._wake.set()

    def _tls(self, rooms: Rooms) -> Tls:
        pair = rooms.authority.issue_server("https", self._clock(), [self._settings.https.name])
        return Tls(pair.key, pair.certificate, rooms.authority.trust_path)

    async def _show_anew(self, rooms: Rooms, https: WebServer) -> None:
        """The authorities changed: every server and the hub itself show certificates of the one in force."""
        names = [self._settings.https.name, reachable(self._settings.broker.bind)]
        rooms.authority.issue_server("broker", self._clock(), names)
        rooms.authority.issue_client(HUB_NAME, self._clock())
        show_anew(https, self._tls(rooms))
        rooms.line.show_anew()
        if rooms.broker is not None:
            rooms.broker.restart()

    def _enrolment(self, rooms: Rooms) -> FastAPI:
        root = self._folder.root

        def facts() -> FleetFacts:
            external = rooms.broker is None
            return FleetFacts(
                self._settings.fleet,
                rooms.address.host if external else self._settings.https.name,
                rooms.address.port,
                roots.newest_root_text(root, roots.DIRECTOR),
                roots.newest_root_text(root, roots.TARGETS),
            )

        def say(_: object) -> None:
            self._changes.say("fleet")

        joined, rules = rooms.identities.joined, rooms.identities.rules
        record = rooms.audit.record_in
        desk = Desk(rooms.store, rooms.authority, facts, joined, self._clock, record, rules, waiting=say, renewed=say)
        web = FastAPI(title="Landreeve enrolment", docs_url=None, redoc_url=None, openapi_url=None)
        web.include_router(router(desk))
        return web

    # Running ------------------------------------------------------------------------------------------------

    async def _open(self, rooms: Rooms) -> None:
        if rooms.broker is not None:
            await rooms.broker.start()
        loop = asyncio.get_running_loop()
        again: set[asyncio.Task[int]] = set()

        def republish() -> None:
            task = loop.create_task(rooms.publisher.republish())
            again.add(task)
            task.add_done_callback(again.discard)

        rooms.line.on_connected.append(partial(_soon, loop, republish))
        rooms.line.on_connected.append(partial(_soon, loop, rooms.services.commands.forget_sent))
        rooms.receiver.start()
        rooms.blocks.start()
        rooms.line.start()

    def _background(self, rooms: Rooms) -> list[asyncio.Task[None]]:
        pace, believed = self._settings.pace, Believed(self._folder.root / "reached")

        async def refresh(_now: datetime) -> None:
            await rooms.services.resigned()

        async def watch_keys(now: datetime) -> None:
            await alarms.watch(rooms.services.keys, rooms.store, rooms.services.incidents, now)

        async def seal(now: datetime) -> None:
            await rooms.audit.checkpoint(now)
            if fault := rooms.audit.fault:
                incident = broken_log(fault.sentence)
                await rooms.store.write(lambda c: rooms.services.incidents.open_in(c, now, incident))

        async def admit(_now: datetime) -> None:
            await rooms.identities.warden.admit()

        async def relist(now: datetime) -> None:
            if now - rooms.authority.crl_times()[0] >= DAY:
                await rooms.identities.warden.renew_list()

        async def tidy(now: datetime) -> None:
            keep, moment = self._settings.keep, await asyncio.to_thread(believed.moment, now)
            await forget(rooms.store, Keep(keep.facts_days, keep.metrics_days, keep.log_days), moment)

        async def collect(now: datetime) -> None:
            try:
                await rooms.services.garbage.look(now)
            except DoubtError as error:
                log.warning("%s", error)

        jobs = [
            self._try_broker(rooms),
            self._every(pace.rollout_s, rooms.runner.tick, self._wake),
            self._every(pace.learning_s, rooms.learning.tick),
            self._every(HOUR_S, refresh),
            self._every(HOUR_S, watch_keys),
            self._every(pace.checkpoint_s, seal),
            self._every(HOUR_S, tidy),
            self._every(HOUR_S, collect),
            self._every(GUESTS_S, admit),
            self._every(HOUR_S, relist),
            self._every(WATCH_S, rooms.identities.watch),
            self._every(HOUR_S, rooms.identities.watch_certificates),
        ]
        if rooms.broker is not None:
            accusations = Accusations(rooms.store, rooms.services.incidents, self._clock)
            takeovers = Takeovers(rooms.broker, rooms.store, rooms.services.incidents, accusations)
            jobs += [rooms.broker.watch(), self._every(WATCH_S, takeovers.look)]
        return [asyncio.create_task(job) for job in jobs]

    async def _try_broker(self, rooms: Rooms) -> None:
        """Tries the broker once the hub is connected to it, and again some time after it was started anew: then the
        whole fleet comes back to it."""
        tried = -1
        while True:
            generation = rooms.broker.generation if rooms.broker is not None else 0
            if self._settings.broker.self_test and rooms.line.connected and generation != tried:
                if tried >= 0:
                    await asyncio.sleep(SETTLE_S)
                try:
                    await rooms.self_test.judge()
                except Exception:
                    log.exception("the broker could not be tried")
                else:
                    tried = generation
            await asyncio.sleep(TRY_BROKER_S)

    async def _every(
        self, period_s: float, job: Callable[[datetime], Awaitable[None]], wake: asyncio.Event | None = None
    ) -> None:
        """Do a job at each period, and sooner when woken; its trouble is logged and it is tried again."""
        alarm = wake or asyncio.Event()
        while True:
            alarm.clear()
            try:
                await job(self._clock())
            except Exception:
                log.exception("%s failed; it is tried again in %.1f s", getattr(job, "__qualname__", job), period_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await alarm.wait()

    async def _announce(self, rooms: Rooms, ports: Ports, http: int) -> None:
        """Say where everything is, to people and to programs on this machine."""
        now = self._clock()
        await tokens.ensure_admin_token(rooms.store, self._folder.admin_token, now)
        url = f"http://{bracketed(reachable(self._settings.http.host))}:{http}"
        ports.write({"broker": rooms.address.port, "url": url, "pid": os.getpid()})
        note(f"Landreeve hub of fleet {self._settings.fleet}: {url}")
        if not await rooms.store.read(_anyone_came_in):
            note(f"one-time code to sign in: {await setup.issue_code(rooms.store, now)}")

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Until someone asks, or a task ended that must not."""
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in done - {stop}:
            self._failure = task.exception() or RuntimeError(f"{task.get_name()} ended by itself")

    # Ending -------------------------------------------------------------------------------------------------

    async def _end(self, rooms: Rooms, servers: list[WebServer], tasks: list[asyncio.Task[None]]) -> None:
        note("stopping")
        rooms.services.closing.set()
        for server in servers:
            server.should_exit = True
        web, others = tasks[: len(servers)], tasks[len(servers) :]
        await asyncio.gather(*web, return_exceptions=True)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _close(self, rooms: Rooms) -> None:
        """In the order in which they feed each other; safe when only some were started."""
        await rooms.learning.close()
        await asyncio.to_thread(rooms.receiver.stop)
        await asyncio.to_thread(rooms.blocks.stop)
        await asyncio.to_thread(rooms.line.stop)
        if rooms.broker is not None:
            await rooms.broker.stop()
        await asyncio.to_thread(rooms.store.close)


def _sweep(work: Path) -> None:
    """Remove what a hub that was killed left of uploads and exports: it takes room, and is plain where the hub is
    sealed."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(call)


def _anyone_came_in(connection: Connection) -> bool:
    used = select(func.count()).select_from(tables.setup_codes).where(tables.setup_codes.c.used != "")
    return bool(connection.execute(used).scalar())
