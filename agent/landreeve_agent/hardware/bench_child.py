"""Measures one thing: ``python -m landreeve_agent.hardware.bench_child WHAT TARGET THREADS PARENT`` prints figures.

``WHAT`` is ``memory`` or a runtime. Rounds are short and the best counts, because other work only ever adds time.
"""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from landreeve_agent.hardware import tiny
from landreeve_agent.hardware.bench import Figures
from landreeve_agent.hardware.confined import answer, begin
from landreeve_agent.hardware.graphs import PRODUCTS, SIZE
from landreeve_agent.hardware.runners import open_runner

_ROUND_S = 0.6
_LEAST, _MOST = 3, 2000
# Well beyond the last cache of a small server, and little enough for a board of 1 GB.
_COPIED_BYTES = 48 * 1024**2


def measure(what: str, target: str, threads: int) -> Figures:
    """The figures, or the error of whoever failed."""
    try:
        if what == "memory":
            return Figures(gbytes_s=round(_bandwidth(threads), 2))
        latency = statistics.median(_times(_tiny(what, target, threads)))
        product = min(_times(_products(what, target, threads)))
        return Figures(latency_us=round(latency * 1e6, 1), gflops=round(2e-9 * PRODUCTS * SIZE**3 / product, 2))
    except Exception as error:  # noqa: BLE001 - runtimes and drivers raise what they like
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Figures(error=lines[0][:300])


def _tiny(what: str, target: str, threads: int) -> Callable[[], object]:
    runner, x = open_runner(what, target, "tiny", threads), tiny.example(0)
    return lambda: runner.run(x)


def _products(what: str, target: str, threads: int) -> Callable[[], object]:
    runner = open_runner(what, target, "matmul", threads)
    a = np.sin(np.arange(1, SIZE * SIZE + 1, dtype=np.float64)).reshape(SIZE, SIZE).astype(np.float32)
    b = np.ascontiguousarray(a.T) / np.float32(32)  # about as large after eight products as before
    return lambda: runner.run(a, b)


def _bandwidth(threads: int) -> float:
    """GB/s read and written by copies, one thread each."""
    pairs = [(np.ones(_COPIED_BYTES // 8), np.ones(_COPIED_BYTES // 8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def copy_all() -> None:
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        return 2e-9 * _COPIED_BYTES * threads / min(_times(copy_all))


def _times(work: Callable[[], object]) -> list[float]:
    """Seconds of each run after the first, which loads and allocates."""
    work()
    times: list[float] = []
    until = time.perf_counter() + _ROUND_S
    while len(times) < _LEAST or (time.perf_counter() < until and len(times) < _MOST):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    answer(begin(int(sys.argv[4])), measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
