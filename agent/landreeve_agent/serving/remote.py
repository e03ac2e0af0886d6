"""A session in a process of its own: what a driver's crash, a hang or an out-of-memory costs is one model's requests
in flight, and a moment.

`RemoteSession` has the protocol of `landreeve_agent.serving.session.Session`. Behind it one `Host` lives at a time,
each generation with sockets and memory of its own: what a dying process left half-written can reach no other.
A thread keeps it alive, restarts it with a growing pause, and by the plainest plan when it keeps dying.
"""

import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from landreeve.blobs.files import PLAIN, Files
from numpy.typing import NDArray

from landreeve_agent.serving.arena import Arena, Channel, ChannelClosedError, Signal, SilentError
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.deathsig import exit_words
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.host import Open, OpenedBy, RefusedBy
from landreeve_agent.serving.session import Opened

Array = NDArray[Any]
HUNG = "hung"
_RUN, _ANSWERED = int(Signal.RUN), int(Signal.ANSWERED)  # plain numbers: an enumeration's member takes its time
_log = logging.getLogger("landreeve.worker")

OnEnd = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Seconds and counts of a host's life. ``wait_s`` is how long a request waits for a host that restarts."""

    load_s: float = 120.0
    run_s: float = 30.0
    wait_s: float = 20.0
    end_s: float = 3.0
    loop_crashes: int = 3
    loop_window_s: float = 60.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0


class HostGoneError(Exception):
    """The host had ended before the request reached it: another may run it."""


class Host:
    """One generation: a process, its channels, its session. Started and ended by one thread, called by any."""

    def __init__(self, plan: Plan, graph: Path, files: Files, limits: HostLimits) -> None:
        """Start the process and open the graph; `LoadFailedError` when that fails."""
        self._limits = limits
        self._channels: list[Channel] = []
        self._free: queue.SimpleQueue[Channel] = queue.SimpleQueue()  # in C: the other kinds take 3 µs of a call
        self._ending = threading.Lock()
        self._ended = self._serves = False
        self.hung = False
        self.gone = False
        self.process = self._spawn(max(1, plan.streams))
        try:
            self.opened_by = self._open(Open(plan, str(graph), files.opening))
        except LoadFailedError:
            self.end()
            raise
        for channel in self._channels:
            channel.set_patience(limits.run_s)
            self._free.put(channel)
        self._serves = True

    def _spawn(self, count: int) -> "subprocess.Popen[bytes]":
        theirs: list[socket.socket] = []
        words: list[str] = []
        inherited: list[int] = []
        for _ in range(count):
            own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            out, into = Arena.create(), Arena.create()
            self._channels.append(Channel(own, out, into))
            theirs.append(other)
            numbers = (other.fileno(), out.descriptor, into.descriptor)
            inherited += numbers
            words.append(":".join(map(str, numbers)))
        command = [sys.executable, "-m", "landreeve_agent.serving.host"]
        command += ["--channels", ",".join(words), "--parent", str(os.getpid())]
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=inherited)
        finally:
            for other in theirs:  # else its end would stay open here and no death be noticed
                other.close()

    def _open(self, wanted: Open) -> OpenedBy:
        channel = self._channels[0]
        channel.set_patience(self._limits.load_s)
        try:
            channel.send_text(Signal.OPEN, msgspec.json.encode(wanted))
            signal, length = channel.receive()
        except SilentError as error:
            self.process.kill()
            raise LoadFailedError("load_hung", f"opening took more than {self._limits.load_s:g} s") from error
        except ChannelClosedError as error:
            raise LoadFailedError("host_died", f"its process died while loading: {self.ended()}") from error
        if signal == Signal.REFUSED:
            refused = msgspec.json.decode(channel.text(length), type=RefusedBy)
            raise LoadFailedError(refused.cause, refused.sentence)
        return msgspec.json.decode(channel.text(length), type=OpenedBy)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """One call. `HostGoneError` when it never reached the host, `RunFailedError` when the host fell over it."""
        channel = self._free.get()
        try:
            return self._run(channel, feeds)
        finally:
            self._free.put(channel)

    def _run(self, channel: Channel, feeds: Sequence[Array]) -> list[Array]:
        if self.gone:
            raise HostGoneError
        try:
            channel.send(_RUN, feeds)
        except ChannelClosedError as error:
            self.gone = True
            raise HostGoneError from error
        try:
            signal, length = channel.receive()
            if signal == _ANSWERED:
                return [array.copy() for array in channel.arrays(length)]
            text = channel.text(length).decode(errors="replace")
        except SilentError as error:
            self.gone = self.hung = True
            self.process.kill()
            raise RunFailedError(f"no answer within {self._limits.run_s:g} s: the model's process hung") from error
        except ChannelClosedError as error:
            self.gone = True
            raise RunFailedError(f"the model's process died: {self.ended()}") from error
        raise RunFailedError(text)

    def ended(self) -> str:
        """Wait for the end; how it ended. By force when only its sockets have."""
        try:
            code = self.process.wait(self._limits.end_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return HUNG if self.hung else exit_words(code)

    def end(self) -> None:
        """Let runs that have begun end, then hang up; the process ends by itself or by force. Safe to repeat."""
        self.gone = True
        with self._ending:
            if self._ended:
                return
            self._ended = True
            if self._serves:
                for _ in self._channels:
                    self._free.get()  # comes back within run_s: a run that hangs ends its process
            for channel in self._channels:
                channel.close()
            for channel in self._channels:
                self._free.put(channel)  # who waits for one finds the host gone
            self.ended()


class RemoteSession:
    """A session whose graph runs in a process of its own.

    ``on_end(cause, restarts)`` is called from the keeping thread after every unexpected end.
    """

    def __init__(
        self, plan: Plan, graph: Path, files: Files = PLAIN, *, limits: HostLimits | None = None,
        on_end: OnEnd | None = None,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._graph = graph
        self._files = files
        self._limits = limits or HostLimits()
        self._on_end = on_end
        self._host: Host | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._failed: LoadFailedError | None = None
        self._crashes: deque[float] = deque()
        self.restarts = 0
        self.last_exit = ""
        # One thread starts every generation: the kernel ends a child with the thread that started it.
        self._keeper = threading.Thread(target=self._keep, name="host-keeper", daemon=True)

    @classmethod
    def open(
        cls, plan: Plan, graph: Path, files: Files = PLAIN, *, limits: HostLimits | None = None,
        on_end: OnEnd | None = None,
    ) -> "RemoteSession":  # fmt: skip
        """A session that has opened its graph once; `LoadFailedError` when it cannot."""
        session = cls(plan, graph, files, limits=limits, on_end=on_end)
        session._keeper.start()
        with session._changed:
            session._changed.wait_for(lambda: session._host is not None or session._failed is not None)
        if session._failed is not None:
            raise session._failed
        return session

    @property
    def opened(self) -> Opened:
        """What runs now, as `landreeve_agent.serving.session.open_session` would tell it."""
        return Opened(self, self._by.plan, self._by.reason)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The graph's inputs."""
        return self._by.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs."""
        return self._by.outputs

    @property
    def pid(self) -> int:
        """The process that runs now; 0 while none does."""
        host = self._host
        return host.process.pid if host is not None and not host.gone else 0

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """One call; waits while the process is being replaced. Raises `RunFailedError`."""
        deadline = 0.0
        while True:
            host = self._host
            if host is not None and not host.gone:
                try:
                    return host.run(feeds)
                except HostGoneError:
                    pass
            deadline = deadline or time.monotonic() + self._limits.wait_s
            self._await(host, deadline)

    def _await(self, old: Host | None, deadline: float) -> None:
        """Return when another generation than ``old`` stands."""

        def stands() -> bool:
            return self._closing.is_set() or (self._host is not None and self._host is not old)

        with self._changed:
            if not self._changed.wait_for(stands, max(0.0, deadline - time.monotonic())):
                raise RunFailedError(f"the model's process is down ({self.last_exit}) and is being started again")
        if self._closing.is_set():
            raise RunFailedError("the model has been unloaded")

    def close(self) -> None:
        """End the process, after the runs that have begun."""
        self._closing.set()
        host = self._host
        if host is not None:
            host.end()
        with self._changed:
            self._changed.notify_all()
        self._keeper.join(self._limits.end_s)

    # --- keeping it alive

    def _keep(self) -> None:
        plan = self._plan
        while not self._closing.is_set():
            try:
                host = Host(plan, self._graph, self._files, self._limits)
            except LoadFailedError as error:
                if not self._stood():
                    self._show(None, error)
                    return
                self.last_exit = error.sentence
            else:
                self._by = host.opened_by
                self._show(host, None)
                host.process.wait()
                host.gone = True
                if self._closing.is_set():
                    return
                self.last_exit = host.ended()
                self._show(None, None)
                host.end()
            plan = self._mourn()
            self._closing.wait(self._backoff_s())

    def _stood(self) -> bool:
        return hasattr(self, "_by")

    def _show(self, host: Host | None, failed: LoadFailedError | None) -> None:
        with self._changed:
            self._host, self._failed = host, failed
            self._changed.notify_all()

    def _mourn(self) -> Plan:
        """Count and tell the end; the plan of the next generation."""
        self.restarts += 1
        now = time.monotonic()
        self._crashes.append(now)
        while now - self._crashes[0] > self._limits.loop_window_s:
            self._crashes.popleft()
        _log.warning("the process of %s ended (%s); restart %d", self._graph.parent, self.last_exit, self.restarts)
        if self._on_end is not None:
            self._on_end(self.last_exit, self.restarts)
        if len(self._crashes) < self._limits.loop_crashes:
            return self._plan
        reason = f"its process died {len(self._crashes)} times within {self._limits.loop_window_s:g} s: default plan"
        return Plan(graph=self._plan.graph, wanted=self._plan.wanted, reason=reason)

    def _backoff_s(self) -> float:
        extra = len(self._crashes) - self._limits.loop_crashes
        if extra < 0:
            return 0.0
        return float(min(self._limits.first_backoff_s * 2.0**extra, self._limits.max_backoff_s))
