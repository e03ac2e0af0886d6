"""The composition root: builds the hub's rooms, owns their tasks, and ends them in order."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from landreeve.blobs.store import BlobStore
from landreeve.cli import Exit, note
from landreeve.settings import SettingsError, write_values
from landreeve.wire.codec import Block
from landreeve.wire.ids import BadIdError, check_id
from landreeve.wire.messages import Audit, Body, Candidate, DriftReport, Event, Fact, UpdateReport, Want
from sqlalchemy import Connection, func, select
from starlette.types import ASGIApp, Receive, Scope, Send

from landreeve_hub.access import setup, tokens
from landreeve_hub.api import app as api
from landreeve_hub.api.changes import Changes
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.broker.child import Broker, find_program
from landreeve_hub.broker.plan import HUB_NAME, BrokerPlan
from landreeve_hub.config import HubConfig, HubFolder, HubSettings, load_config
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.errors import AlreadyRunningError, HubError, OperatorError
from landreeve_hub.fleet.authority import Authority, AuthorityError
from landreeve_hub.fleet.enrolment import TOKEN_LIFETIME, Enrolled, mint
from landreeve_hub.fleet.enrolment_api import FleetFacts, enrolment_router
from landreeve_hub.fleet.inventory import guests
from landreeve_hub.incidents.incidents import Incidents, IncidentWatch
from landreeve_hub.ingest.appliers import Applier, standard_appliers
from landreeve_hub.ingest.commit import Outcome
from landreeve_hub.ingest.delivery import Delivery
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.learning.commands import Commands
from landreeve_hub.learning.runner import Learning
from landreeve_hub.process import Port, Ports, WebServer, only_one, web_server
from landreeve_hub.registry.blocks import BlockServer
from landreeve_hub.registry.releases import Registry
from landreeve_hub.registry.uploads import Challengers, Uploads
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.signing import keys, roots
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

log = logging.getLogger(__name__)
HOUR_S = 3600.0
GUESTS_S = 2.0


def serve(state: Path, flags: Mapping[str, str]) -> int:
    """Run a hub until it is asked to stop; the exit code. Expected trouble is said in one sentence."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        Hub(load_config(state, flags)).run()
    except (HubError, SettingsError, SigningError, AuthorityError, BadIdError) as error:
        note(f"error: {error}")
        return int(_exit_of(error))
    return int(Exit.OK)


def _exit_of(error: Exception) -> Exit:
    if isinstance(error, AlreadyRunningError):
        return Exit.CONFLICT
    return Exit.USAGE if isinstance(error, OperatorError | SettingsError | BadIdError) else Exit.FAILURE


def init(state: Path, flags: Mapping[str, str]) -> dict[str, Any]:
    """Make the state folder: settings, keys, authority; what exists stays. What was made."""
    folder = HubFolder(state.absolute())
    folder.prepare()
    if flags:
        write_values(folder.settings_file, HubSettings, flags)
    config = load_config(state, {})
    now = _now()
    with only_one(folder.run / "lock"):
        _make_keys(config, now)
    return {"state": str(folder.root), "fleet": config.settings.fleet, "ca": Authority(folder.root).ca_fingerprint}


def _make_keys(config: HubConfig, now: datetime) -> Authority:
    check_id(config.settings.fleet)
    keys.init(config.folder.root, now)
    authority = Authority(config.folder.root)
    authority.init(now)
    return authority


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class _Rooms:
    """Everything that is built for one run."""

    store: Store
    authority: Authority
    broker: Broker | None
    address: Address
    line: Line
    receiver: Receiver
    blocks: BlockServer
    publisher: Publisher
    runner: RolloutRunner
    learning: Learning
    audit: AuditLog
    services: Services
    web: FastAPI


class _Traffic:
    """Blocks both ways, as the ingest hands them on."""

    def __init__(self, server: BlockServer, uploads: Uploads) -> None:
        self._server = server
        self._uploads = uploads

    def on_want(self, device: str, digest: str, want: Want) -> None:
        self._server.on_want(device, digest, want)

    def on_block(self, device: str, block: Block) -> None:
        self._uploads.on_block(device, block)


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
        rooms = await self._build(ports)
        try:
            await self._open(rooms)
            tls = rooms.authority.issue_server("https", self._clock(), self._names())
            devices = Fork("/enrol/v1/", self._enrolment(rooms), rooms.web)
            servers = [
                (web_server(rooms.web, lifespan=True), http),
                (web_server(devices, lifespan=False, key=tls.key, certificate=tls.certificate), https),
            ]
            tasks = [asyncio.create_task(server.serve(sockets=[opened])) for server, opened in servers]
            tasks += self._background(rooms)
            await self._announce(rooms, ports, http.getsockname()[1])
            await self._until_stopped(tasks)
            await self._end(rooms, [server for server, _ in servers], tasks)
        finally:
            await self._close(rooms)

    # Building -----------------------------------------------------------------------------------------------

    async def _build(self, ports: Ports) -> _Rooms:
        settings, folder, now = self._settings, self._folder, self._clock()
        store = Store(self._config.store_url)
        authority = _make_keys(self._config, now)
        client = authority.issue_client(HUB_NAME, now)
        broker = None if settings.broker.url else await self._broker(store, authority, ports)
        host, port = self._broker_place(broker)
        address = Address(host, port, authority.ca_path, client.certificate, client.key)
        line = Line(address, settings.fleet)
        blobs = BlobStore(folder.blobs)
        targets = TargetsRepository(folder.root)
        registry = Registry(store, blobs, targets)
        rate = settings.limits.facts_per_s or None
        publisher = Publisher(store, Director(folder.root), targets, line.publish, self._clock, rate)
        audit = AuditLog(store, folder.keys)
        incidents = Incidents()
        runner = RolloutRunner(store, publisher, incidents, audit, self._changes.say)
        quota = int(settings.transfer.quota_mb * 1e6)
        uploads = Uploads(blobs, line.publish, settings.fleet, quota_bytes=quota)
        speed = settings.transfer.mb_per_s * 1e6
        blocks = BlockServer(store, blobs, line, settings.fleet, bytes_per_s=speed)
        commands = Commands(store, settings.fleet, line.publish)
        challengers = Challengers(uploads, blobs, registry)
        learning = Learning(store, commands, challengers, self._clock, self._changes.say)
        appliers = self._appliers(audit, learning, IncidentWatch(incidents, self._clock))
        receiver = Receiver(
            store,
            settings.fleet,
            appliers,
            line.publish,
            self._clock,
            blocks=_Traffic(blocks, uploads),
            listeners=[self._listener()],
        )
        services = Services(
            store=store,
            releases=registry,
            runner=runner,
            incidents=incidents,
            audit=audit,
            commands=commands,
            delivery=Delivery(store),
            mint=self._mint(store, authority, ports),
            clock=self._clock,
            version=version("landreeve"),
            work=folder.work,
            closing=asyncio.Event(),
            changes=self._changes,
            hosts=frozenset({"127.0.0.1", "localhost", "[::1]", settings.https.name, *settings.http.hosts}),
        )
        web = api.build(services)
        return _Rooms(
            store, authority, broker, address, line, receiver, blocks, publisher, runner, learning, audit, services, web
        )

    def _names(self) -> list[str]:
        return [self._settings.https.name]

    async def _broker(self, store: Store, authority: Authority, ports: Ports) -> Broker:
        settings, pair = self._settings, authority.issue_server("broker", self._clock(), self._names())
        plan = BrokerPlan(
            settings.fleet,
            settings.broker.bind,
            ports.reserve(Port("broker", settings.broker.bind, settings.broker.port)),
            self._folder.broker,
            authority.ca_path,
            pair.certificate,
            pair.key,
        )
        return Broker(plan, find_program(settings.broker.kind), await store.read(guests))

    def _broker_place(self, broker: Broker | None) -> tuple[str, int]:
        """Where the hub itself reaches the broker."""
        if broker is not None:
            everywhere = self._settings.broker.bind in {"0.0.0.0", "::", ""}  # noqa: S104  asked, not bound
            return ("127.0.0.1" if everywhere else self._settings.broker.bind), broker.port
        url = urlsplit(self._settings.broker.url)
        if url.scheme not in {"mqtts", "ssl"} or not url.hostname:
            raise OperatorError(f"broker.url {self._settings.broker.url!r}: write it as mqtts://host:8883")
        return url.hostname, url.port or 8883

    def _appliers(self, audit: AuditLog, learning: Learning, watch: IncidentWatch) -> dict[type[Body], Applier]:
        def record(connection: Connection, device: str, fact: Fact) -> None:
            if isinstance(fact.body, Audit):
                body = fact.body
                data = {**body.data, "at": fact.at}
                act = Act(f"site:{device}:{body.actor}", body.action, body.object, body.decision, data)
                audit.record_in(connection, self._clock(), act)

        chains: dict[type[Body], list[Applier]] = {kind: [one] for kind, one in standard_appliers(record).items()}
        chains[Event].append(learning.apply)
        chains[Candidate] = [learning.apply]
        return {kind: _chain([*chain, watch.apply]) for kind, chain in chains.items()}

    def _listener(self) -> Callable[[Outcome], None]:
        """Tells the event loop what a batch changed; called in the ingest thread."""
        loop = asyncio.get_running_loop()
        parts: dict[type[Body], str] = {UpdateReport: "rollouts", DriftReport: "drift", Candidate: "retrains"}

        def tell(outcome: Outcome) -> None:
            changed = {"fleet", *(parts.get(type(fact.body), "events") for _, fact in outcome.accepted)}
            loop.call_soon_threadsafe(self._changed, changed)

        return tell

    def _changed(self, parts: set[str]) -> None:
        for part in sorted(parts):
            self._changes.say(part)
        if "rollouts" in parts:
            self._wake.set()

    def _mint(self, store: Store, authority: Authority, ports: Ports) -> Callable[..., Awaitable[str]]:
        async def made(site: str, labels: Mapping[str, str], now: datetime) -> str:
            url = f"https://{_bracketed(self._settings.https.name)}:{ports.found('https')}"
            return await mint(
                store, site, labels, TOKEN_LIFETIME, now, url=url, ca_fingerprint=authority.ca_fingerprint
            )

        return made

    def _enrolment(self, rooms: _Rooms) -> FastAPI:
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

        async def enrolled(device: Enrolled) -> None:
            await self._admit(rooms)
            self._changes.say("fleet")
            log.info("site %s enrolled as %s", device.site, device.device)

        web = FastAPI(title="Landreeve enrolment", docs_url=None, redoc_url=None, openapi_url=None)
        web.include_router(enrolment_router(rooms.store, rooms.authority, facts, enrolled, self._clock))
        return web

    # Running ------------------------------------------------------------------------------------------------

    async def _open(self, rooms: _Rooms) -> None:
        if rooms.broker is not None:
            await rooms.broker.start()
        loop = asyncio.get_running_loop()
        again: set[asyncio.Task[int]] = set()

        def republish() -> None:
            task = loop.create_task(rooms.publisher.republish())
            again.add(task)
            task.add_done_callback(again.discard)

        rooms.line.on_message = rooms.receiver.take
        rooms.line.on_connected.append(partial(_soon, loop, republish))
        rooms.receiver.start()
        rooms.blocks.start()
        rooms.line.start()

    def _background(self, rooms: _Rooms) -> list[asyncio.Task[None]]:
        pace = self._settings.pace

        async def refresh(_now: datetime) -> None:
            await rooms.publisher.refresh()

        async def seal(now: datetime) -> None:
            await rooms.audit.checkpoint(now)

        async def admit(_now: datetime) -> None:
            await self._admit(rooms)

        jobs = [
            self._every(pace.rollout_s, rooms.runner.tick, self._wake),
            self._every(pace.learning_s, rooms.learning.tick),
            self._every(HOUR_S, refresh),
            self._every(HOUR_S, seal),
            self._every(GUESTS_S, admit),
        ]
        if rooms.broker is not None:
            jobs.append(rooms.broker.watch())
        return [asyncio.create_task(job) for job in jobs]

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

    async def _admit(self, rooms: _Rooms) -> None:
        if rooms.broker is not None:
            await rooms.broker.admit(await rooms.store.read(guests))

    async def _announce(self, rooms: _Rooms, ports: Ports, http: int) -> None:
        """Say where everything is, to people and to programs on this machine."""
        now = self._clock()
        await tokens.ensure_admin_token(rooms.store, self._folder.admin_token, now)
        url = f"http://{_bracketed(_reachable(self._settings.http.host))}:{http}"
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

    async def _end(self, rooms: _Rooms, servers: list[WebServer], tasks: list[asyncio.Task[None]]) -> None:
        note("stopping")
        rooms.services.closing.set()
        for server in servers:
            server.should_exit = True
        web, others = tasks[: len(servers)], tasks[len(servers) :]
        await asyncio.gather(*web, return_exceptions=True)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _close(self, rooms: _Rooms) -> None:
        """In the order in which they feed each other; safe when only some were started."""
        await rooms.learning.close()
        await asyncio.to_thread(rooms.receiver.stop)
        await asyncio.to_thread(rooms.blocks.stop)
        await asyncio.to_thread(rooms.line.stop)
        if rooms.broker is not None:
            await rooms.broker.stop()
        await asyncio.to_thread(rooms.store.close)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(call)


def _chain(appliers: list[Applier]) -> Applier:
    def apply(connection: Connection, device: str, fact: Fact) -> None:
        for one in appliers:
            one(connection, device, fact)

    return apply


def _anyone_came_in(connection: Connection) -> bool:
    used = select(func.count()).select_from(tables.setup_codes).where(tables.setup_codes.c.used != "")
    return bool(connection.execute(used).scalar())


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104  asked, not bound


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
