"""The supervisor's side of the worker: start it, tell it what to serve, bring it back when it dies.

The supervisor binds and listens; the worker inherits the socket. While a dead worker is being replaced callers
wait in the backlog, and get their answers late instead of an error. The new worker begins with the last routes
that were known to serve. A worker that keeps dying is started ever more slowly, and by simpler plans: without
shadows, on the CPU. This module imports no ML runtime.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from landreeve_agent.serving.control import (
    NO_SECRETS,
    Apply,
    Ask,
    BadFrameError,
    FromWorker,
    Hello,
    Lost,
    Plan,
    Refused,
    Route,
    Secrets,
    Told,
    Version,
    WorkerStatus,
    frame,
    let_go,
    read_frame,
    read_lines,
)
from landreeve_agent.serving.deathsig import exit_words
from landreeve_agent.serving.errors import LoadFailedError

BACKLOG = 512
CRASH_LOOP = "crash_loop"
_log = logging.getLogger("landreeve.worker")

OnRestart = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and counts of the supervision. ``loop_crashes`` within ``loop_window_s`` make a crash loop."""

    start_s: float = 20.0
    apply_s: float = 120.0
    stop_s: float = 5.0
    hang_s: float = 10.0
    ask_every_s: float = 2.0
    loop_crashes: int = 3
    loop_window_s: float = 60.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Options:
    """How the worker serves. ``memory_mb`` is for all models together, 0 a share of what is usable. With ``tls_cert``
    and ``tls_key`` (PEM files) it speaks TLS only; ``tokens`` are files with a token callers must send. ``grpc`` is the
    address it answers gRPC on too, bound and held by the caller; ``secrets`` are those of a sealed site."""

    memory_mb: int = 0
    max_body_bytes: int | None = None
    tokens: tuple[Path, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    grpc: tuple[str, int] | None = None
    grpc_max_bytes: int | None = None
    secrets: Secrets = NO_SECRETS

    def arguments(self) -> list[str]:
        """As the worker's command line takes them. Tokens go by file: an argument can be read by every program."""
        given = ["--memory-mb", str(self.memory_mb)]
        for token in self.tokens:
            given += ["--token", str(token)]
        if self.grpc is not None:
            given += ["--grpc-host", self.grpc[0], "--grpc-port", str(self.grpc[1])]
        for name, value in (
            ("--grpc-max-bytes", self.grpc_max_bytes),
            ("--max-body-bytes", self.max_body_bytes), ("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)
        ):  # fmt: skip
            given += [name, str(value)] if value is not None else []
        return given


class WorkerGoneError(ConnectionError):
    """The worker ended before it answered."""


class WorkerProcess:
    """One worker, kept alive.

    ``on_restart(cause, count)`` is called after every unexpected end: ``cause`` is ``signal SIGSEGV``, ``exit 1``,
    ``hung`` or, when the worker keeps dying within a minute, ``crash_loop``; ``count`` is the number of restarts
    since `start`.
    """

    def __init__(
        self,
        spool_dir: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        on_restart: OnRestart | None = None,
        limits: Limits | None = None,
        options: Options | None = None,
    ) -> None:
        self._spool_dir = spool_dir
        self._bind = (host, port)
        self._on_restart = on_restart
        self._limits = limits or Limits()
        self._options = options or Options()
        self._listening: socket.socket | None = None
        self._link: _Link | None = None
        self._routes: tuple[Route, ...] = ()
        self._restarts = 0
        self._last_exit = ""
        self._crashes: deque[float] = deque()
        self._keeper: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()
        self._applying = asyncio.Lock()
        self._hung = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that callers use, from `start` on."""
        if self._listening is None:
            raise RuntimeError("the worker has not been started")
        host, port = self._listening.getsockname()[:2]
        return host, port

    @property
    def routes(self) -> tuple[Route, ...]:
        """The last routes that were known to serve."""
        return self._routes

    async def start(self) -> None:
        """Bind the socket (`OSError` when the port is taken) and start the worker; returns when it serves."""
        self._listening = _listen(*self._bind)
        self._keeper = asyncio.create_task(self._keep(), name="worker-keeper")
        waiting = asyncio.create_task(self._serving.wait())
        try:
            await asyncio.wait_for(waiting, self._limits.start_s)
        except TimeoutError:
            await self.stop()
            raise LoadFailedError(
                "worker_start", f"the worker did not start: {self._last_exit or 'no answer'}"
            ) from None

    async def stop(self) -> None:
        """End the worker: first by closing its stdin, then by force. Safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._link is not None:
            await self._link.end(self._limits.stop_s)
            self._link = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def apply(self, routes: tuple[Route, ...]) -> None:
        """Serve exactly these routes: load and warm what is missing, then swap.

        Raises `LoadFailedError`; the old routes then go on serving.
        """
        async with self._applying:
            await self._wait_until_up()
            self._crashes.clear()  # from here on, crashes count against these routes
            try:
                answer = await self._ask(lambda seq: Apply(seq=seq, routes=routes), self._limits.apply_s)
            except WorkerGoneError:
                raise LoadFailedError("worker_died", f"the worker died while loading: {self._last_exit}") from None
            except TimeoutError:
                self._kill("hung")
                raise LoadFailedError("load_hung", f"loading took more than {self._limits.apply_s:g} s") from None
            if isinstance(answer, Refused):
                raise LoadFailedError(answer.cause, answer.sentence)
            self._routes = routes

    async def _wait_until_up(self) -> None:
        try:
            await asyncio.wait_for(self._serving.wait(), self._limits.apply_s)
        except TimeoutError:
            raise LoadFailedError("worker_down", f"the worker does not come up: {self._last_exit}") from None

    async def status(self) -> WorkerStatus:
        """How the worker is; pid 0 while it is being restarted."""
        link = self._link
        told: FromWorker | None = None
        if link is not None and self._serving.is_set():
            with contextlib.suppress(WorkerGoneError, TimeoutError):
                told = await self._ask(lambda seq: Ask(seq=seq), self._limits.hang_s)
        if link is None or not isinstance(told, Told):
            return WorkerStatus(pid=0, rss_mb=0.0, restarts=self._restarts, models=(), last_exit=self._last_exit)
        return WorkerStatus(
            pid=link.pid,
            rss_mb=told.rss_mb,
            restarts=self._restarts,
            models=told.models,
            last_exit=self._last_exit,
            counts=told.counts,
            held_mb=told.held_mb,
            limit_mb=told.limit_mb,
        )

    async def _ask(self, make: Callable[[int], Apply | Ask], timeout_s: float) -> FromWorker:
        if self._link is None:
            raise WorkerGoneError("the worker is being restarted")
        return await asyncio.wait_for(self._link.ask(make), timeout_s)

    def _kill(self, cause: str) -> None:
        if self._link is not None:
            self._hung = cause == "hung"
            self._link.kill()

    # --- keeping it alive

    async def _keep(self) -> None:
        """Start, watch, start again; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._once()
            except (OSError, TimeoutError, WorkerGoneError, BadFrameError) as error:
                self._last_exit = self._last_exit or f"{type(error).__name__}: {error}"
            self._serving.clear()
            self._restarts += 1
            self._count_crash(loop.time())
            _log.warning("the worker ended (%s); restart %d", self._last_exit, self._restarts)
            self._report()
            await asyncio.sleep(self._backoff_s())

    async def _once(self) -> None:
        """One life of a worker, from its start to its end."""
        limits = self._limits
        self._hung = False
        assert self._listening is not None  # noqa: S101 - start() bound it before this task began
        link = self._link = await _Link.spawn(self._listening, self._spool_dir, self._options, self._lost)
        try:
            await asyncio.wait_for(link.hello.wait(), limits.start_s)
            routes = self._simpler() if len(self._crashes) >= limits.loop_crashes else self._routes
            await asyncio.wait_for(link.ask(lambda seq: Apply(seq=seq, routes=routes, lenient=True)), limits.apply_s)
            self._serving.set()
            await self._watch(link)
        finally:
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]  # stop() ends it gently instead
                link.kill()
                self._last_exit = await link.gone(hung=self._hung)
                self._link = None

    async def _watch(self, link: "_Link") -> None:
        """Return when the worker has ended; kill it when it no longer answers."""
        while not link.ended.is_set():
            try:
                await asyncio.wait_for(link.ended.wait(), self._limits.ask_every_s)
            except TimeoutError:
                try:
                    await asyncio.wait_for(link.ask(lambda seq: Ask(seq=seq)), self._limits.hang_s)
                except TimeoutError:
                    self._kill("hung")
                    return
                except WorkerGoneError:
                    return

    def _count_crash(self, now: float) -> None:
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > self._limits.loop_window_s:
            self._crashes.popleft()

    def _report(self) -> None:
        if self._on_restart is None:
            return
        looping = len(self._crashes) == self._limits.loop_crashes
        self._on_restart(CRASH_LOOP if looping else self._last_exit, self._restarts)

    def _lost(self, lost: Lost) -> None:
        """A model's own process ended: the worker serves on, but whoever watches a new version should know."""
        _log.warning("the process of %s %s ended (%s); restart %d", lost.model, lost.version, lost.cause, lost.restarts)
        if self._on_restart is not None:
            self._on_restart(f"{lost.model}: {lost.cause}", lost.restarts)

    def _backoff_s(self) -> float:
        """Nothing for the first crashes of a minute, then doubling."""
        extra = len(self._crashes) - self._limits.loop_crashes
        if extra < 0:
            return 0.0
        return min(self._limits.first_backoff_s * 2.0**extra, self._limits.max_backoff_s)

    def _simpler(self) -> tuple[Route, ...]:
        reason = f"the worker died {len(self._crashes)} times within {self._limits.loop_window_s:g} s"
        return tuple(Route(route.model, _on_cpu(route.active, reason)) for route in self._routes)


def _on_cpu(version: Version, reason: str) -> Version:
    return msgspec.structs.replace(version, plan=Plan(wanted=version.plan.wanted, reason=f"{reason}: default plan"))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class _Link:
    """One worker process and the conversation with it."""

    def __init__(self, process: asyncio.subprocess.Process, lost: Callable[[Lost], None]) -> None:
        self._process = process
        self._lost = lost
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[FromWorker]] = {}
        self._words: deque[str] = deque(maxlen=40)
        self.hello = asyncio.Event()
        self.ended = asyncio.Event()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._hear())]

    @classmethod
    async def spawn(
        cls, listening: socket.socket, spool_dir: Path, options: Options, lost: Callable[[Lost], None]
    ) -> "_Link":
        """Start a worker on the listening socket; ``lost`` hears of the models' own processes."""
        arguments = ["--fd", str(listening.fileno()), "--spool", str(spool_dir), "--parent", str(os.getpid())]
        arguments += options.arguments()
        with _piped(options.secrets) as secrets:
            if secrets:
                arguments += ["--secrets", str(secrets[0])]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "landreeve_agent.serving.worker",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(listening.fileno(), *secrets),
                # numpy's own thread pool, one thread for each core of the box, has nothing to do in a worker.
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
        return cls(process, lost)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    async def ask(self, make: Callable[[int], Apply | Ask]) -> FromWorker:
        """Send a message and wait for its answer; `WorkerGoneError` when the worker ends first."""
        if self.ended.is_set():
            raise WorkerGoneError("the worker has ended")
        seq = next(self._numbers)
        answer: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        self._asked[seq] = answer
        assert self._process.stdin is not None  # noqa: S101 - it was spawned with a pipe
        try:
            self._process.stdin.write(frame(make(seq)))
            return await answer
        finally:
            self._asked.pop(seq, None)

    async def _listen(self) -> None:
        decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
        assert self._process.stdout is not None  # noqa: S101 - it was spawned with a pipe
        try:
            while (message := await read_frame(self._process.stdout, decoder)) is not None:
                if isinstance(message, Hello):
                    self.hello.set()
                elif isinstance(message, Lost):
                    self._lost(message)
                elif (future := self._asked.get(message.seq)) is not None and not future.done():
                    future.set_result(message)
        except BadFrameError as error:
            self._words.append(str(error))
            self.kill()
        await self._process.wait()
        self.ended.set()
        self.hello.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(WorkerGoneError("the worker has ended"))

    async def _hear(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it was spawned with a pipe
        async for line in read_lines(self._process.stderr):
            self._words.append(line)
            _log.info("%s", line)

    def kill(self) -> None:
        """End it by force."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self, patience_s: float) -> None:
        """End it by closing its stdin; by force after ``patience_s``."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self.ended.wait(), patience_s)
        except TimeoutError:
            self.kill()
        await asyncio.gather(*self._tasks)
        await let_go(self._process)

    async def gone(self, *, hung: bool) -> str:
        """Wait for the end; how it ended: ``signal SIGSEGV``, ``exit 1 (last words)``, ``hung``."""
        await asyncio.gather(*self._tasks)
        await let_go(self._process)
        code = self._process.returncode or 0
        if hung:
            return "hung"
        words = f" ({self._words[-1][:200]})" if code >= 0 and self._words else ""
        return exit_words(code) + words


@contextlib.contextmanager
def _piped(secrets: Secrets) -> Iterator[tuple[int, ...]]:
    """A pipe's end that holds the secrets, or none where there are none; closed here once it has been passed on, or
    could not be. Not an argument, nor the environment: those can be read by other programs."""
    if secrets == NO_SECRETS:
        yield ()
        return
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(msgspec.json.encode(secrets))
        yield (reading,)
    finally:
        os.close(reading)
