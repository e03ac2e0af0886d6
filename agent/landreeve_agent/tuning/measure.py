"""Times plans against each other on this box, in rounds.

Plans take turns within each round and the order rotates, so a busy neighbour or a falling clock rate hits all
alike; each round yields a ratio to the default plan, and the median of the ratios is what counts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.session import Array, Session
from landreeve_agent.tuning.choose import Timed

ROUNDS = 7
MIN_RUNS = 3
MAX_RUNS = 400


@dataclass(slots=True)
class _Samples:
    medians: list[float] = field(default_factory=list)
    all_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def time_plans(sessions: Mapping[Plan, Session], inputs: Sequence[Array], budget_s: float) -> list[Timed]:
    """Time each plan on rows of ``inputs``, one at a time; the first plan is the default. Takes about ``budget_s``."""
    plans = list(sessions)
    samples = {plan: _Samples() for plan in plans}
    slice_s = budget_s / (ROUNDS * len(plans))
    for turn in range(ROUNDS):
        at = turn % len(plans)
        for plan in plans[at:] + plans[:at]:
            _round(sessions[plan], inputs, slice_s, samples[plan])
    default = samples[plans[0]]
    return [_timed(plan, samples[plan], default) for plan in plans]


def _round(session: Session, inputs: Sequence[Array], slice_s: float, samples: _Samples) -> None:
    rows = [[np.ascontiguousarray(x[i : i + 1]) for x in inputs] for i in range(min(len(inputs[0]), 32))]
    session.run(rows[0])  # another plan has just used the caches
    times: list[float] = []
    cpu = time.process_time_ns()
    began = time.perf_counter()
    while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and time.perf_counter() - began < slice_s):
        start = time.perf_counter_ns()
        session.run(rows[len(times) % len(rows)])
        times.append((time.perf_counter_ns() - start) / 1000)
    samples.cpu_us.append((time.process_time_ns() - cpu) / 1000 / len(times))
    samples.medians.append(float(np.median(times)))
    samples.all_us += times


def _timed(plan: Plan, samples: _Samples, default: _Samples) -> Timed:
    ratios = [mine / base for mine, base in zip(samples.medians, default.medians, strict=True)]
    return Timed(
        plan=plan,
        p50_us=round(float(np.median(samples.medians)), 2),
        p95_us=round(float(np.percentile(samples.all_us, 95)), 2),
        cpu_us=round(float(np.median(samples.cpu_us)), 2),
        ratio=float(np.median(ratios)),
    )


def time_batches(session: Session, inputs: Sequence[Array], sizes: Sequence[int], budget_s: float) -> list[float]:
    """The median time in µs of a run with each number of rows, sizes taking turns."""
    batches = [[np.ascontiguousarray(np.resize(x, (size, *x.shape[1:]))) for x in inputs] for size in sizes]
    times: list[list[float]] = [[] for _ in sizes]
    began = time.perf_counter()
    while len(times[0]) < MIN_RUNS or (len(times[0]) < MAX_RUNS and time.perf_counter() - began < budget_s):
        for batch, into in zip(batches, times, strict=True):
            start = time.perf_counter_ns()
            session.run(batch)
            into.append((time.perf_counter_ns() - start) / 1000)
    return [float(np.median(t)) for t in times]
