"""The worker, started when the first model is wanted, on an address that is known from the start."""

import contextlib
import errno
import logging
import socket
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from landreeve.wire.messages import Event

from landreeve_agent.launch import sockets
from landreeve_agent.serving.control import NO_SECRETS, Route, Secrets, Version, WorkerStatus
from landreeve_agent.serving.door import Door
from landreeve_agent.serving.ending import Ending
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.options import Options
from landreeve_agent.serving.supervise import OnLost, OnReplaced, OnRestart, WorkerProcess

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hold:
    """A port kept for the worker: a socket bound to it, and the claim that keeps other agents of this box off it.

    ``listening``: the socket is one that an agent before this one served on, and callers wait in its backlog. It is
    left to the next agent under ``name``.
    """

    bound: socket.socket
    claim: socket.socket | None
    name: str = ""
    listening: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.bound.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Let it go."""
        self.bound.close()
        if self.claim is not None:
            self.claim.close()


@dataclass
class Inference:
    """Serves routes; without any there is no process. ``hold`` keeps the port until the worker listens on it.

    ``isolated`` names models that run in a process of their own; ``*`` means all. ``grpc`` keeps the port of the gRPC
    door, if there is one.
    """

    spool: Path
    hold: Hold
    on_restart: OnRestart
    door: Door = field(default_factory=Door)
    memory_mb: int = 0
    isolated: Collection[str] = ()
    grpc: Hold | None = None
    grpc_max_bytes: int = 0
    secrets: Secrets = NO_SECRETS
    on_replaced: OnReplaced | None = None
    on_lost: OnLost | None = None
    _worker: WorkerProcess | None = field(default=None)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the inference server."""
        return self.hold.address

    @property
    def url(self) -> str:
        """Its base URL."""
        host, port = self.address
        return f"{self.door.scheme}://{_shown(host)}:{port}"

    async def apply(self, routes: tuple[Route, ...]) -> None:
        """Serve exactly these routes. Raises `landreeve_agent.serving.errors.LoadFailedError`."""
        if self._worker is None and not routes and not self.hold.listening:
            return
        first = self._worker is None
        worker = await self._started()
        try:
            await worker.apply(tuple(self._placed(route) for route in routes))
        except LoadFailedError:
            if first:
                with contextlib.suppress(LoadFailedError):
                    await worker.apply(())  # whoever waits is told that there is nothing
            raise

    async def status(self) -> WorkerStatus | None:
        """How the worker is; None while none was wanted."""
        return await self._worker.status() if self._worker is not None else None

    async def stop(self, leave_s: float = 0.0) -> None:
        """End the worker; connections in use are ended with their next answer, for which they have ``leave_s``."""
        if self._worker is not None:
            await self._worker.stop(leave_s)
            self._worker = None

    def _options(self) -> Options:
        door = self.door
        return Options(
            memory_mb=self.memory_mb,
            tokens=door.tokens,
            tls_cert=door.certificate,
            tls_key=door.key,
            grpc=self.grpc.address if self.grpc else None,
            grpc_max_bytes=self.grpc_max_bytes or None,
            secrets=self.secrets,
        )

    def _placed(self, route: Route) -> Route:
        """The route, in a process of its own where the settings ask for it."""
        if route.model not in self.isolated and "*" not in self.isolated:
            return route
        shares = tuple(msgspec.structs.replace(s, version=_alone(s.version)) for s in route.shares)
        shadow = _alone(route.shadow) if route.shadow else None
        return msgspec.structs.replace(route, active=_alone(route.active), shadow=shadow, shares=shares)

    async def _started(self) -> WorkerProcess:
        if self._worker is None:
            host, port = self.address
            worker = WorkerProcess(
                self.spool, host, port, on_restart=self.on_restart, on_replaced=self.on_replaced, on_lost=self.on_lost,
                options=self._options(), listening=self.hold.bound if self.hold.listening else None,
            )  # fmt: skip
            try:
                await worker.start(closed=True)
                worker.leave_socket(self.hold.name)
            except OSError as error:
                raise LoadFailedError(
                    "port_taken", f"{self.url}: {error.strerror}; set another serving.port"
                ) from error
            self._worker = worker
            logger.info("the inference server answers on %s", self.url)
        return self._worker


def restarted(ending: Ending) -> Event:
    """What is told of a worker, or of a model's own process, that ended unexpectedly and was started again."""
    running = [f"{one.name} (loading)" if one.loading else one.name for one in ending.running]
    return Event(
        name="worker.restarted", subject="worker", cause=ending.cause, severity="warning",
        data={"restarts": ending.count, "running": running},
        sentence=f"The inference server ended ({ending.cause}){ending.during}; it was started again "
        f"({ending.count} since the agent's start).",
    )  # fmt: skip


def replaced(why: str) -> Event:
    """What is told of a worker that was replaced while it served."""
    sentence = f"The inference server was replaced by a new one while it served: {why}."
    return Event(name="worker.replaced", subject="worker", cause="run_stuck", severity="warning", sentence=sentence)


def _alone(version: Version) -> Version:
    return msgspec.structs.replace(version, isolated=True)


def _shown(host: str) -> str:
    """An address that a program on this box can use for a listening one."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - translated, not bound
    return f"[{host}]" if ":" in host else host


def held_port(host: str, wanted: int) -> Hold | None:
    """The port that an agent before this one served on by the same settings, where launcher or systemd kept it."""
    name = sockets.named("serving", host, wanted)
    listening = sockets.taken(name)
    if listening is None:
        return None
    try:
        claim = _claim(listening.getsockname()[1])
    except OSError:  # its worker is not gone yet, or another agent of this box claims the port
        listening.close()
        return None
    sockets.leave(name, listening)
    return Hold(listening, claim, name, listening=True)


def hold_port(host: str, port: int, wanted: int | None = None, tried: int = 50) -> Hold:
    """That port or the next free one (0 takes any), bound and not listened on; ``wanted`` is what the settings say.

    Bound with SO_REUSEADDR, it lets the worker's own socket listen there. But then another agent that has no model
    yet could bind it as well, and later one would answer the other's applications: so the number is also claimed.
    """
    failed: OSError | None = None
    for candidate in range(port, min(port + tried, 65536)) if port else (0,):
        try:
            return _hold(host, candidate, sockets.named("serving", host, port if wanted is None else wanted))
        except OSError as error:
            failed = error
    raise OSError(f"serving.port: no free port from {port} on {host}: {failed}")


def _hold(host: str, port: int, name: str) -> Hold:
    if port and is_taken(host, port):
        raise OSError(errno.EADDRINUSE, f"port {port} is in use")
    with contextlib.ExitStack() as undo:
        bound = undo.enter_context(socket.socket(_family(host), socket.SOCK_STREAM))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        claim = _claim(bound.getsockname()[1])
        undo.pop_all()
    return Hold(bound, claim, name)


def _claim(port: int) -> socket.socket | None:
    """A name that only one process of this network namespace can have, and that a kill gives back."""
    if sys.platform != "linux":
        return None
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0landreeve/serving/{port}")
    except OSError:
        claim.close()
        raise
    return claim


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there: asked by listening, because connecting would disturb whoever it is."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return True
    return False
