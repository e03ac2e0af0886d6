"""Joins requests that wait at the same moment into one run; a request that is alone never waits for company.

A *quick* graph (under 2 ms) runs on the event loop, after the loop has parsed what the same poll brought in, so
neighbours share the run's fixed cost; the only caller of a moment is run at once. A slower graph runs in the model's
own threads, one for each stream of its plan; what arrives meanwhile is joined into the next run, which the thread takes
itself. Nothing is ever delayed by a timer. When no thread comes back from its run, what waits behind fails with the
reason, so that a version that answers nothing is seen; later its own callers are told too, and the run counts as lost:
a thread cannot be ended, only its process (`landreeve_agent.serving.replacing`).
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec

from landreeve_agent.serving.errors import BusyError, LateError, RunFailedError, ServingError
from landreeve_agent.serving.session import Array

Arrays = Sequence[Array]
MAX_WAITING = 1024
PRIORITIES = 3
# How long runs on the event loop may go on before what they answered is sent.
SLICE_NS = 1_000_000
SWEEP_S = 0.25
# A run in a thread that takes so long, and so many times as long as usual, is not waited for any more: nobody can end
# it, but who waits behind it is told.
STUCK_S, STUCK_TIMES = 20.0, 20
# So many times that long, and the run is given up. A model in a process of its own has been ended by then.
LOST_TIMES = 2


class Job:
    """A request in a queue. ``late_ns`` is the monotonic time at which it is no longer worth a run (0: never);
    ``gone`` says that nobody waits for it any more."""

    __slots__ = ("gone", "late_ns", "priority", "queued_ns", "rows")

    def __init__(self, rows: int, priority: int = 2, timeout_us: int = 0) -> None:
        self.rows = rows
        self.priority = priority
        self.gone = False
        self.queued_ns = time.perf_counter_ns()
        self.late_ns = self.queued_ns + timeout_us * 1000 if timeout_us else 0


class Ran(msgspec.Struct, eq=False, gc=False):
    """The outcome of one run for its jobs: the outputs of all their rows, or why there are none; and when it was
    taken from the queue, had its features, and had run, in monotonic nanoseconds."""

    jobs: Sequence[Job]
    outputs: Arrays | ServingError
    taken_ns: int
    ready_ns: int
    ended_ns: int


class _Begun(msgspec.Struct, eq=False):
    """A run that goes on in a thread; ``told`` says that its callers have been refused already."""

    since_ns: int
    jobs: Sequence[Job]
    told: bool = False


Features = Callable[[Sequence[Job]], Arrays]
Run = Callable[[Arrays], Arrays]
Finish = Callable[[Sequence[Ran]], None]


class Batcher:
    """One model version's queue. Used from the event loop only; ``finish`` is called on it, with every job once."""

    def __init__(
        self,
        features: Features,
        run: Run,
        finish: Finish,
        *,
        batch_rows: int,
        quick: bool,
        streams: int = 1,
        max_waiting: int = MAX_WAITING,
        alone: Callable[[], bool] = lambda: False,
        stuck_s: float = STUCK_S,
    ) -> None:
        self._stuck_s = stuck_s
        self._begun: dict[int, _Begun] = {}  # by thread
        self._features = features
        self._run = run
        self._finish = finish
        self._batch_rows = batch_rows
        self._max_waiting = max_waiting
        self._alone = alone
        self._waiting: tuple[deque[Job], ...] = tuple(deque() for _ in range(PRIORITIES))
        self._count = 0
        self._running = 0
        self._scheduled = False
        self._retired = False
        self._run_ns = 0.0
        self._loop = asyncio.get_running_loop()
        self._streams = streams
        self._threads = None if quick else ThreadPoolExecutor(streams, thread_name_prefix="run")
        self._lock = threading.Lock()  # held by who changes the queue of a model that has threads
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._count

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._count or self._running)

    @property
    def lost(self) -> int:
        """Runs that were given up and have not come back: each holds a thread, its memory and perhaps a core."""
        with self._lock:
            return sum(begun.told for begun in self._begun.values())

    def submit(self, job: Job) -> None:
        """Put a job in the queue, or run it at once; `BusyError` when the queue is full."""
        if self._retired and self._threads is not None and not self._running:
            raise BusyError("this version has just been replaced; try again")
        if self._count >= self._max_waiting:
            wait_s = math.ceil(self._count / max(self._batch_rows, 1) * self._run_ns / 1e9) or 1
            raise BusyError(f"{self._count} requests wait already; try again in about {wait_s} s", retry_s=wait_s)
        if self._threads is not None:
            self._submit_to_threads(job)
            return
        self._waiting[job.priority - 1].append(job)
        self._count += 1
        if self._scheduled:
            return
        if self._count == 1 and self._alone():
            self._run_quick()
        else:
            self._scheduled = True
            # Not at once: the other sockets of this poll may bring rows for the same run.
            self._loop.call_soon(self._run_quick)

    # --- quick graphs, on the event loop

    def _run_quick(self) -> None:
        self._scheduled = False
        taken = time.perf_counter_ns()
        until = taken + SLICE_NS
        done: list[Ran] = []
        while self._count:
            jobs, late = self._take(taken)
            if late:
                done.append(_too_late(late, taken))
            if jobs:
                done += self._try(jobs, taken)
            if not self._count or (taken := time.perf_counter_ns()) > until:
                break
        if self._count and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run_quick)
        if done:
            self._finish(done)

    # --- slower graphs, in threads

    def _submit_to_threads(self, job: Job) -> None:
        with self._lock:
            self._waiting[job.priority - 1].append(job)
            self._count += 1
        if not self._scheduled and self._running < self._streams:
            self._scheduled = True
            self._loop.call_soon(self._start_threads)  # not at once, as above
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    def _start_threads(self) -> None:
        self._scheduled = False
        with self._lock:
            wanted = min(self._streams - self._running, self._count)
            self._running += wanted
        for _ in range(wanted):
            if self._threads is not None:
                self._threads.submit(self._run_in_thread)

    def _run_in_thread(self) -> None:
        """Run until nothing waits. The thread takes its next run itself: the model does not idle while the event loop
        is woken, writes answers and wakes a thread, which takes as long as a small run."""
        while True:
            taken = time.perf_counter_ns()
            with self._lock:
                jobs, late = self._take(taken)
                # In the same hold as the look into the queue: what comes after it finds that a thread must be started.
                self._running -= not jobs
                if jobs:
                    self._begun[threading.get_ident()] = _Begun(taken, jobs)
            if late:
                self._tell([_too_late(late, taken)])
            done = self._try(jobs, taken) if jobs else []
            with self._lock:
                begun = self._begun.pop(threading.get_ident(), None)
            # Who was told that it is lost is not answered a second time.
            self._tell([] if begun is not None and begun.told else done)
            if not jobs:
                return

    def _tell(self, done: list[Ran]) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody waits for answers
            self._loop.call_soon_threadsafe(self._deliver, done)

    def _deliver(self, done: list[Ran]) -> None:
        if done:
            self._finish(done)
        self._shut_when_idle()

    def _sweep(self) -> None:
        """Refuse what has waited beyond its own limit while a long run goes on, and all when it never ends: first what
        waits behind it, then its own callers."""
        self._sweeping = None
        now = time.perf_counter_ns()
        with self._lock:
            late = [job for queue in self._waiting for job in queue if job.gone or 0 < job.late_ns < now]
            for job in late:
                self._waiting[job.priority - 1].remove(job)
            held = [job for queue in self._waiting for job in queue] if self._is_stuck(now) else []
            if held:
                self._waiting = tuple(deque() for _ in range(PRIORITIES))
            self._count -= len(late) + len(held)
            held += [job for begun in self._give_up(now) for job in begun.jobs]
        if late:
            self._finish([_too_late(late, now)])
        if held:
            error = RunFailedError("the model does not come back from a run; its process has to be started again")
            self._finish([Ran([job], error, now, now, now) for job in held])
        if self._count or any(not begun.told for begun in list(self._begun.values())):
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        self._shut_when_idle()

    def _is_stuck(self, now: int) -> bool:
        limit_ns = self._limit_ns()
        begun = list(self._begun.values())
        return len(begun) >= self._streams and all(now - each.since_ns > limit_ns for each in begun)

    def _give_up(self, now: int) -> list[_Begun]:
        """The runs that count as lost from now on."""
        limit_ns = LOST_TIMES * self._limit_ns()
        lost = [begun for begun in self._begun.values() if not begun.told and now - begun.since_ns > limit_ns]
        for begun in lost:
            begun.told = True
        return lost

    def _limit_ns(self) -> float:
        return max(self._stuck_s * 1e9, STUCK_TIMES * self._run_ns)

    # --- both

    def _take(self, now: int) -> tuple[list[Job], list[Job]]:
        """The jobs of the next run, first priority first, and those that came too late for one."""
        jobs: list[Job] = []
        late: list[Job] = []
        rows = 0
        for queue in self._waiting:
            while queue:
                job = queue[0]
                if job.gone or 0 < job.late_ns < now:
                    late.append(queue.popleft())
                    continue
                if jobs and rows + job.rows > self._batch_rows:
                    break
                jobs.append(queue.popleft())
                rows += job.rows
            if queue:
                break
        self._count -= len(jobs) + len(late)
        return jobs, late

    def _try(self, jobs: Sequence[Job], taken: int) -> list[Ran]:
        ready = taken
        try:
            feeds = self._features(jobs)
            ready = time.perf_counter_ns()
            outputs: Arrays | RunFailedError = self._run(feeds)
        except RunFailedError as error:
            outputs = error
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; a lost job would hang its caller
            outputs = RunFailedError(f"{type(error).__name__}: {error}")
        ended = time.perf_counter_ns()
        self._run_ns += 0.1 * (ended - taken - self._run_ns)
        if isinstance(outputs, RunFailedError) and len(jobs) > 1:
            # One caller's rows must not fail its neighbours: each runs alone.
            return [ran for job in jobs for ran in self._try([job], taken)]
        return [Ran(jobs, outputs, taken, ready, ended)]

    def retire(self) -> None:
        """Answer what waits, then give the threads back; nothing more is submitted."""
        self._retired = True
        self._shut_when_idle()

    def _shut_when_idle(self) -> None:
        if self._retired and self._threads is not None and not self.busy:
            self._threads.shutdown(wait=False)


def _too_late(jobs: list[Job], now: int) -> Ran:
    return Ran(jobs, LateError("timeout: the request waited longer than its own limit"), now, now, now)
