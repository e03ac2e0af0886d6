"""Times sessions on this box, on rows of the release's own golden set.

For latency one row is run at a time; for throughput as many runs at once as the plan has streams, each of its batch.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.session import Array, Session
from landreeve_agent.tuning.race import Samples

MIN_RUNS = 3
MAX_RUNS = 400
_ROWS = 32
_LOOK_S = 0.002
_MOST_LOOKS = 50
Objective = Literal["latency", "throughput"]


class Stopwatch:
    """Times plans for one objective on rows of ``inputs``, one array for each input of the graph."""

    def __init__(self, inputs: Sequence[Array], objective: Objective) -> None:
        self._inputs = inputs
        self._objective = objective
        self._rows = [_rows(inputs, i, 1) for i in range(min(len(inputs[0]), _ROWS))]

    def look(self, session: Session) -> float:
        """The fastest of a few runs of one row, in µs: enough to see what is hopeless. Two runs, more of tiny graphs,
        after one to warm up."""
        self._one(session, self._rows[0])
        times: list[float] = []
        until = time.perf_counter() + _LOOK_S
        while len(times) < 2 or (len(times) < _MOST_LOOKS and time.perf_counter() < until):
            times.append(self._one(session, self._rows[len(times) % len(self._rows)]))
        return min(times)

    def round(self, plan: Plan, session: Session, slice_s: float, samples: Samples) -> None:
        """One round of a plan, about ``slice_s`` long, added to its samples."""
        if self._objective == "throughput":
            self._streams(plan, session, slice_s, samples)
        else:
            self._alone(session, slice_s, samples)

    def _one(self, session: Session, row: Sequence[Array]) -> float:
        start = time.perf_counter_ns()
        session.run(row)
        return (time.perf_counter_ns() - start) / 1000

    def _alone(self, session: Session, slice_s: float, samples: Samples) -> None:
        session.run(self._rows[0])  # another plan has just used the caches
        times: list[float] = []
        cpu = time.process_time_ns()
        began = time.perf_counter()
        while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and time.perf_counter() - began < slice_s):
            times.append(self._one(session, self._rows[len(times) % len(self._rows)]))
        samples.cpu_us.append((time.process_time_ns() - cpu) / 1000 / len(times))
        samples.medians.append(float(np.median(times)))
        samples.all_us += times

    def _streams(self, plan: Plan, session: Session, slice_s: float, samples: Samples) -> None:
        batch = _rows(self._inputs, 0, plan.batch)
        session.run(batch)
        runs = [0] * plan.streams
        until = time.perf_counter() + slice_s

        def stream(index: int) -> None:
            while runs[index] < 2 or (runs[index] < MAX_RUNS and time.perf_counter() < until):
                samples.all_us.append(self._one(session, batch) / plan.batch)
                runs[index] += 1

        cpu, began = time.process_time_ns(), time.perf_counter()
        others = [threading.Thread(target=stream, args=(index,)) for index in range(1, plan.streams)]
        for other in others:
            other.start()
        stream(0)
        for other in others:
            other.join()
        rows = sum(runs) * plan.batch
        samples.medians.append((time.perf_counter() - began) * 1e6 / rows)
        samples.cpu_us.append((time.process_time_ns() - cpu) / 1000 / rows)


def time_rounds(
    watch: Stopwatch, sessions: Mapping[Plan, Session], samples: Mapping[str, Samples], rounds: int, budget_s: float
) -> None:
    """Run rounds of all plans, their order rotating; about ``budget_s`` in all. ``samples`` is by the plan's name."""
    plans = list(sessions)
    slice_s = budget_s / (rounds * len(plans))
    for turn in range(rounds):
        at = turn % len(plans)
        for plan in plans[at:] + plans[:at]:
            watch.round(plan, sessions[plan], slice_s, samples[plan.name])


def time_batches(session: Session, inputs: Sequence[Array], sizes: Sequence[int], budget_s: float) -> list[float]:
    """The median time in µs of a run with each number of rows, sizes taking turns."""
    batches = [_rows(inputs, 0, size) for size in sizes]
    times: list[list[float]] = [[] for _ in sizes]
    began = time.perf_counter()
    while len(times[0]) < MIN_RUNS or (len(times[0]) < MAX_RUNS and time.perf_counter() - began < budget_s):
        for batch, into in zip(batches, times, strict=True):
            start = time.perf_counter_ns()
            session.run(batch)
            into.append((time.perf_counter_ns() - start) / 1000)
    return [float(np.median(t)) for t in times]


def _rows(inputs: Iterable[Array], first: int, count: int) -> list[Array]:
    """``count`` rows from ``first`` on, beginning anew at the end."""
    return [np.ascontiguousarray(np.take(x, range(first, first + count), axis=0, mode="wrap")) for x in inputs]
