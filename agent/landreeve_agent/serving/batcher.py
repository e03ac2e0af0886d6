"""Joins requests that wait at the same moment into one run; a request that is alone never waits for company.

A *quick* graph (under 2 ms) runs on the event loop: with ``batch`` 1 at once, else after the loop has parsed what
the same poll brought in, so neighbours share the run's fixed cost. A slower graph runs in the model's one thread;
what arrives meanwhile is joined into the next run. Nothing is ever delayed by a timer.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from landreeve_agent.serving.errors import BusyError, RunFailedError
from landreeve_agent.serving.session import Array

Arrays = Sequence[Array]
Done = Callable[[Arrays | RunFailedError], None]
Run = Callable[[Arrays], Arrays]
MAX_WAITING = 1024


@dataclass(slots=True)
class _Job:
    x: Arrays
    done: Done


class Batcher:
    """One model version's queue. Used from the event loop only; ``done`` is called on it, exactly once a job."""

    def __init__(self, run: Run, *, batch_rows: int, quick: bool, max_waiting: int = MAX_WAITING) -> None:
        self._run = run
        self._batch_rows = batch_rows
        self._max_waiting = max_waiting
        self._waiting: deque[_Job] = deque()
        self._busy = False
        self._retired = False
        self._loop = asyncio.get_running_loop()
        self._thread = None if quick else ThreadPoolExecutor(1, thread_name_prefix="run")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def submit(self, x: Arrays, done: Done) -> None:
        """Run the rows and give the answer to ``done``; `BusyError` when the queue is full."""
        if self._thread is None and self._batch_rows <= 1:
            done(self._try(x))
            return
        if self._retired and not self._busy:
            raise BusyError("this version has just been replaced; try again")
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"{len(self._waiting)} requests wait already; try again in a moment")
        self._waiting.append(_Job(x, done))
        if not self._busy:
            self._busy = True
            # Not at once: the other sockets of this poll may bring rows for the same run.
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if not self._waiting:
            self._busy = False
            if self._retired:
                self._shutdown()
            return
        jobs = self._take()
        x = (
            jobs[0].x
            if len(jobs) == 1
            else [np.concatenate(parts) for parts in zip(*(job.x for job in jobs), strict=True)]
        )
        if self._thread is None:
            self._deliver(jobs, self._try(x))
        else:
            future = self._loop.run_in_executor(self._thread, self._try, x)
            future.add_done_callback(lambda done: self._deliver(jobs, done.result()))

    def _take(self) -> list[_Job]:
        jobs = [self._waiting.popleft()]
        rows = len(jobs[0].x[0])
        while self._waiting and rows + len(self._waiting[0].x[0]) <= self._batch_rows:
            jobs.append(self._waiting.popleft())
            rows += len(jobs[-1].x[0])
        return jobs

    def _try(self, x: Arrays) -> Arrays | RunFailedError:
        try:
            return self._run(x)
        except RunFailedError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; a lost job would hang its caller
            return RunFailedError(f"{type(error).__name__}: {error}")

    def _deliver(self, jobs: list[_Job], answer: Arrays | RunFailedError) -> None:
        if isinstance(answer, RunFailedError) and len(jobs) > 1:
            for job in jobs:  # one caller's rows must not fail its neighbours: each runs alone
                job.done(self._try(job.x))
        else:
            self._share(jobs, answer)
        if self._waiting or self._retired:
            self._loop.call_soon(self._next)
        else:
            self._busy = False

    def _share(self, jobs: list[_Job], answer: Arrays | RunFailedError) -> None:
        offset = 0
        for job in jobs:
            rows = len(job.x[0])
            job.done(answer if isinstance(answer, RunFailedError) else [a[offset : offset + rows] for a in answer])
            offset += rows

    def retire(self) -> None:
        """Answer what waits, then give the thread back; nothing more is submitted."""
        self._retired = True
        if not self._busy:
            self._shutdown()

    def _shutdown(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
