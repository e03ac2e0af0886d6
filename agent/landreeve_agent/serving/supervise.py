"""The supervisor's side of the worker: start it, tell it what to serve, bring it back when it dies.

The supervisor binds and listens; the worker inherits the socket. While a dead worker is being replaced callers
wait in the backlog, and get their answers late instead of an error. The new worker begins with the last routes
that were known to serve. A worker that keeps dying is started ever more slowly, and by simpler plans: without
shadows, on the CPU. This module imports no ML runtime.
"""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landreeve_agent.launch import sockets
from landreeve_agent.serving.beginning import Afresh, simplest
from landreeve_agent.serving.control import (
    Apply,
    Ask,
    BadFrameError,
    FromWorker,
    Leave,
    Lost,
    Refused,
    Route,
    Told,
    WorkerStatus,
)
from landreeve_agent.serving.conversation import Conversation, WorkerGoneError
from landreeve_agent.serving.ending import NOTHING, Ending, ending, of_own_process
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.memory import available_bytes
from landreeve_agent.serving.options import Limits, Options
from landreeve_agent.serving.replacing import Falls, fits_beside

BACKLOG = 512
_log = logging.getLogger("landreeve.worker")

OnRestart = Callable[[Ending], None]
OnReplaced = Callable[[str], None]
OnLost = Callable[[Lost], None]


class WorkerProcess:
    """One worker, kept alive.

    ``on_restart(ending)`` is called after every unexpected end: its ``cause`` is ``signal SIGSEGV``, ``exit 1``,
    ``hung`` or, when the worker keeps dying within a minute, ``crash_loop``; its ``count`` is the number of restarts
    since `start`. A worker with a run that never comes back is replaced while it serves, and ``on_replaced(why)`` is
    called: that is no unexpected end. ``on_lost`` hears of the ends of models' own processes, else ``on_restart`` does.
    ``listening`` is a socket to serve on instead of a new one on ``host`` and ``port``; it stays the caller's.
    """

    def __init__(
        self,
        spool_dir: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        on_restart: OnRestart | None = None,
        on_replaced: OnReplaced | None = None,
        on_lost: OnLost | None = None,
        limits: Limits | None = None,
        options: Options | None = None,
        listening: socket.socket | None = None,
    ) -> None:
        self._spool_dir = spool_dir
        self._bind = (host, port)
        self._given = listening
        self._closed = False
        self._on_restart = on_restart
        self._on_replaced = on_replaced
        self._on_lost = on_lost
        self._limits = limits or Limits()
        self._options = options or Options()
        self._listening: socket.socket | None = None
        self._link: Conversation | None = None
        self._routes: tuple[Route, ...] = ()
        self._restarts = 0
        self._last_exit = ""
        self._marks = NOTHING
        self._crashes: deque[float] = deque()
        self._keeper: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()
        self._applying = asyncio.Lock()
        self._succession = asyncio.Lock()
        self._afresh: Afresh | None = None
        self._hurry = asyncio.Event()
        self._hung = False
        self._replaced: tuple[float, ...] = ()
        self._falls = Falls()
        self._why = ""
        self._leaving: set[asyncio.Task[None]] = set()

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

    async def start(self, *, closed: bool = False) -> None:
        """Bind the socket (`OSError` when the port is taken) and start the worker; returns when it serves. A ``closed``
        one lets callers wait until the first routes are applied, instead of telling them that there is no model."""
        self._closed = closed
        self._listening = self._given.dup() if self._given else sockets.listen(*self._bind, BACKLOG)
        self._keeper = asyncio.create_task(self._keep(), name="worker-keeper")
        try:
            async with asyncio.timeout(self._limits.start_s):
                await self._serving.wait()
        except TimeoutError:
            await self.stop()
            raise LoadFailedError(
                "worker_start", f"the worker did not start: {self._last_exit or 'no answer'}"
            ) from None

    def leave_socket(self, name: str) -> None:
        """Leave the listening socket to the agent after this one, from `start` on."""
        if self._listening is not None:
            sockets.leave(name, self._listening)

    async def stop(self, leave_s: float = 0.0) -> None:
        """End the worker: first by closing its stdin, then by force. Safe to call twice. For ``leave_s`` it answers
        what comes on open connections, accepts no more, and ends each after its answer."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._link is not None:
            if leave_s and self._serving.is_set():
                with contextlib.suppress(TimeoutError):  # one that hangs must not keep the agent from ending
                    async with asyncio.timeout(3 * leave_s):
                        await self._asked_to_leave(self._link, leave_s)
            await self._link.end(self._limits.stop_s)
            self._link = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def apply(self, routes: tuple[Route, ...]) -> None:
        """Serve exactly these routes: load and warm what is missing, then swap.

        What died lately under its old routes begins anew with these alone: beside what kills it nothing can be
        loaded. Raises `LoadFailedError`; the old routes then go on serving.
        """
        async with self._applying:
            dying = self._dying()
            if dying and not self._serving.is_set() and await self._begin_with(routes):
                return
            await self._wait_until_up()
            self._crashes.clear()  # from here on, crashes count against these routes
            try:
                answer = await self._ask(lambda seq: Apply(seq=seq, routes=routes), self._limits.apply_s)
            except WorkerGoneError:
                if dying and await self._begin_with(routes):
                    return
                raise LoadFailedError("worker_died", f"the worker died while loading: {self._last_exit}") from None
            except TimeoutError:
                if not await self._leave_behind(self._link, "a model did not come back from its loading"):
                    self._kill("hung")
                raise LoadFailedError("load_hung", f"loading took more than {self._limits.apply_s:g} s") from None
            if isinstance(answer, Refused):
                raise LoadFailedError(answer.cause, answer.sentence)
            self._routes, self._closed, self._falls = routes, False, Falls()

    def _dying(self) -> bool:
        """Whether what serves now has ended the worker within the last minute."""
        now = asyncio.get_running_loop().time()
        return any(now - crash <= self._limits.loop_window_s for crash in self._crashes)

    async def _begin_with(self, routes: tuple[Route, ...]) -> bool:
        """Whether the next worker began with these routes, before it took a request. False when it was under way
        already with the old ones. `LoadFailedError`: it could not load them and has the old ones again."""
        self._serving.clear()
        asked = self._afresh = Afresh(routes, asyncio.get_running_loop().create_future())
        self._hurry.set()
        up = asyncio.create_task(self._serving.wait())
        either: set[asyncio.Future[Any]] = {up, asked.loaded}
        try:
            patience = self._limits.start_s + self._limits.apply_s
            await asyncio.wait(either, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if asked.loaded.done():
                asked.loaded.result()
            return asked.loaded.done()
        finally:
            self._afresh = None
            for future in either:
                future.cancel()

    async def _wait_until_up(self) -> None:
        try:
            async with asyncio.timeout(self._limits.apply_s):
                await self._serving.wait()
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

    async def _spawn(self, listening: socket.socket) -> Conversation:
        arguments = ["--spool", str(self._spool_dir), *self._options.arguments()]
        return await Conversation.spawn(listening, arguments, self._options.secrets, self._lost)

    async def _ask(self, make: Callable[[int], Apply | Ask], timeout_s: float) -> FromWorker:
        if self._link is None:
            raise WorkerGoneError("the worker is being restarted")
        async with asyncio.timeout(timeout_s):
            return await self._link.ask(make)

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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff_s()):
                    await self._hurry.wait()
            self._hurry.clear()

    async def _once(self) -> None:
        """One life of a worker, from its start to its end."""
        limits = self._limits
        self._hung = False
        self._marks = NOTHING
        assert self._listening is not None  # noqa: S101 - start() bound it before this task began
        link = self._link = await self._spawn(self._listening)
        try:
            async with asyncio.timeout(limits.start_s):
                await link.hello.wait()
            if (self._afresh is None or not await self._load_afresh(link, self._afresh)) and not self._closed:
                routes = simplest(self._routes, self._why) if self._falls_back() else self._routes
                again = link.ask(lambda seq: Apply(seq=seq, routes=routes, lenient=True))
                async with asyncio.timeout(limits.apply_s):
                    await again
            self._serving.set()
            while (successor := await self._watch(link)) is not None:
                link = successor
        finally:
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]  # stop() ends it gently instead
                link.kill()
                self._last_exit = await link.gone(hung=self._hung)
                self._marks = link.marks
                self._link = None

    async def _load_afresh(self, link: Conversation, asked: "Afresh") -> bool:
        """Whether the new routes serve in this worker, as the first it ever had. Whoever asked is told."""
        self._afresh = None
        failed: LoadFailedError | None = None
        try:
            async with asyncio.timeout(self._limits.apply_s):
                answer = await link.ask(lambda seq: Apply(seq=seq, routes=asked.routes))
            if isinstance(answer, Refused):
                failed = LoadFailedError(answer.cause, answer.sentence)
        except WorkerGoneError:
            asked.tell(LoadFailedError("worker_died", "the worker died while loading"))
            raise
        except TimeoutError:
            asked.tell(LoadFailedError("load_hung", f"loading took more than {self._limits.apply_s:g} s"))
            self._hung = True
            raise
        if failed is None:
            self._routes, self._closed = asked.routes, False
            self._crashes.clear()
        asked.tell(failed)
        return failed is None

    async def _watch(self, link: Conversation) -> Conversation | None:
        """Return when the worker has ended, or the one that took its place; kill it when it no longer answers."""
        while self._link is link and not link.ended.is_set():
            try:
                async with asyncio.timeout(self._limits.ask_every_s):
                    await link.ended.wait()
            except TimeoutError:
                try:
                    async with asyncio.timeout(self._limits.hang_s):
                        told = await link.ask(lambda seq: Ask(seq=seq))
                except TimeoutError:
                    if self._link is link:
                        self._kill("hung")
                    continue
                except WorkerGoneError:
                    continue
                if isinstance(told, Told) and told.stuck:
                    await self._replace(link, told)
                elif self._falls.may_try(self._limits.retry, asyncio.get_running_loop().time()):
                    await self._try_again(link)
        async with self._succession:  # it may have left already, and the new one be about to serve
            return self._link if self._link is not link else None

    # --- simpler plans, for a time

    def _falls_back(self) -> bool:
        """Whether the next worker gets simpler plans than were wanted: one after another has died, or the last one did
        as soon as it had its own again."""
        now = asyncio.get_running_loop().time()
        looping = len(self._crashes) >= self._limits.loop_crashes
        if looping:
            self._why = f"the worker died {len(self._crashes)} times within {self._limits.loop_window_s:g} s"
        if not self._falls.simple and (looping or self._falls.relapsed(now, self._limits.loop_window_s)):
            self._falls = self._falls.fallen(self._limits.retry, now)
        return self._falls.simple

    async def _try_again(self, link: Conversation) -> None:
        """Serve by the plans that were wanted, shadows and shares included, as before the crash loop. What cannot be
        loaded so goes on as it is."""
        if self._applying.locked():
            return
        async with self._applying:
            routes, now = self._routes, asyncio.get_running_loop().time()
            self._falls = self._falls.again(now)
            try:
                async with asyncio.timeout(self._limits.apply_s):
                    answer = await link.ask(lambda seq: Apply(seq=seq, routes=routes))
            except WorkerGoneError:
                return
            except TimeoutError:
                self._kill("hung")
                return
            if isinstance(answer, Refused):
                self._falls = self._falls.fallen(self._limits.retry, now)
                _log.warning("the plans before the crash loop cannot be had again: %s", answer.sentence)
            else:
                _log.info("the worker has the plans again that it had before it kept dying")

    # --- replacing it while it serves

    async def _replace(self, old: Conversation, told: Told) -> None:
        """A new worker with the same routes in the place of one with a run that never comes back, unless it is not
        the time."""
        now = asyncio.get_running_loop().time()
        if self._applying.locked() or not self._limits.pace.may(self._replaced, now):
            return
        async with self._applying:
            self._replaced = (*self._limits.pace.recent(self._replaced, now), now)
            await self._succeed(old, told, f"{', '.join(told.stuck)} did not come back from a run")

    async def _leave_behind(self, old: Conversation | None, why: str) -> bool:
        """Whether a new worker serves in the place of one that answers still and has a thread that will not end."""
        try:
            told = await self._ask(lambda seq: Ask(seq=seq), self._limits.hang_s)
        except (TimeoutError, WorkerGoneError):
            return False
        if old is None or not isinstance(told, Told):
            return False
        return await self._succeed(old, told, why)

    async def _succeed(self, old: Conversation, told: Told, why: str) -> bool:
        """Whether a new worker took the place of the old one; not if it could not serve what the old one serves. No
        request is refused for it."""
        # gRPC binds its port itself: there the new one cannot stand beside the old one.
        beside = self._options.grpc is None and fits_beside(told.rss_mb * 1e6, available_bytes())
        async with self._succession:
            new = await self._successor(old, beside=beside)
            if new is None:
                return False
            self._link = new
        self._serving.set()
        if beside:
            self._start_leaving(old)
        _log.warning("the worker was replaced: %s", why)
        if self._on_replaced is not None:
            self._on_replaced(why)
        return True

    async def _successor(self, old: Conversation, *, beside: bool) -> Conversation | None:
        """A worker that has the routes; None, and none is left, when it did not come so far."""
        assert self._listening is not None  # noqa: S101 - start() bound it before there was a worker
        served, new = False, None
        try:
            new = await self._spawn(self._listening)
            async with asyncio.timeout(self._limits.start_s):
                await new.hello.wait()
            served = await (self._take_over(new) if beside else self._take_turns(old, new))
        except (OSError, TimeoutError, WorkerGoneError) as error:
            _log.warning("a new worker did not come up: %s", error or "no answer in time")
        finally:
            if new is not None and not served:
                new.kill()
                await new.gone(hung=False)
        return new if served else None

    async def _take_over(self, new: Conversation) -> bool:
        """Load everything beside the old worker; whether it all loaded."""
        routes = self._routes
        async with asyncio.timeout(self._limits.apply_s):
            answer = await new.ask(lambda seq: Apply(seq=seq, routes=routes))
        if isinstance(answer, Refused):
            _log.warning("a new worker cannot serve what the old one does: %s", answer.sentence)
        return not isinstance(answer, Refused)

    async def _take_turns(self, old: Conversation, new: Conversation) -> bool:
        """Too little room for two: the old one answers what it has and ends; who comes meanwhile waits a moment."""
        routes = self._routes
        self._serving.clear()
        await self._leave(old)
        async with asyncio.timeout(self._limits.apply_s):
            await new.ask(lambda seq: Apply(seq=seq, routes=routes, lenient=True))
        return True

    def _start_leaving(self, old: Conversation) -> None:
        task = asyncio.create_task(self._leave(old), name="worker-leaves")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _asked_to_leave(self, old: Conversation, patience_s: float) -> None:
        with contextlib.suppress(TimeoutError, WorkerGoneError):
            left = old.ask(lambda seq: Leave(seq=seq, patience_s=patience_s))
            async with asyncio.timeout(2 * patience_s + self._limits.hang_s):
                await left

    async def _leave(self, old: Conversation) -> None:
        try:
            await self._asked_to_leave(old, self._limits.leave_s)
            await old.end(self._limits.stop_s)
        except asyncio.CancelledError:
            await old.end(0.0)
            raise

    def _count_crash(self, now: float) -> None:
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > self._limits.loop_window_s:
            self._crashes.popleft()

    def _report(self) -> None:
        if self._on_restart is None:
            return
        looping = len(self._crashes) == self._limits.loop_crashes
        self._on_restart(ending(self._last_exit, self._restarts, self._marks, looping=looping))

    def _lost(self, lost: Lost) -> None:
        """A model's own process ended: the worker serves on, but whoever watches a new version should know."""
        _log.warning("the process of %s %s ended (%s); restart %d", lost.model, lost.version, lost.cause, lost.restarts)
        if self._on_lost is not None:
            self._on_lost(lost)
        elif self._on_restart is not None:
            self._on_restart(of_own_process(lost.model, lost.version, lost.cause, lost.restarts))

    def _backoff_s(self) -> float:
        """Nothing for the first crashes of a minute, then doubling."""
        extra = len(self._crashes) - self._limits.loop_crashes
        if extra < 0:
            return 0.0
        return min(self._limits.first_backoff_s * 2.0**extra, self._limits.max_backoff_s)
