"""Runs the tiny model: ``python -m landreeve_agent.hardware.prove_child RUNTIME TARGET PARENT`` prints what came of it.

It may hang or crash in a driver: that is what it is for. Judging is the parent's.
"""

import statistics
import sys
import time

from landreeve_agent.hardware import tiny
from landreeve_agent.hardware.confined import answer, begin
from landreeve_agent.hardware.prove import Ran
from landreeve_agent.hardware.runners import Runner, open_runner

_EXAMPLES = 3
_TIMED = 20


def prove(runtime: str, target: str) -> Ran:
    """Compare some answers, read back where they were computed, then time an untraced runner."""
    try:
        runner = open_runner(runtime, target, "tiny", traced=True)
        worst = max(_difference(runner.run(x), x) for x in map(tiny.example, range(_EXAMPLES)))
        where = tuple(runner.where())
        return Ran(where=where, difference=worst, latency_us=round(_latency_us(runtime, target), 1))
    except Exception as error:  # noqa: BLE001 - runtimes and drivers raise what they like
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Ran(error=lines[0][:300])


def _difference(got: tiny.Array, x: tiny.Array) -> float:
    found = tiny.difference(got, tiny.answer(x))
    return min(found, 1e9)  # JSON has no infinity


def _latency_us(runtime: str, target: str) -> float:
    runner, x = open_runner(runtime, target, "tiny"), tiny.example(0)
    runner.run(x)
    return statistics.median(_timed(runner, x) for _ in range(_TIMED)) * 1e6


def _timed(runner: Runner, x: tiny.Array) -> float:
    began = time.perf_counter()
    runner.run(x)
    return time.perf_counter() - began


if __name__ == "__main__":
    answer(begin(int(sys.argv[3])), prove(sys.argv[1], sys.argv[2]))
