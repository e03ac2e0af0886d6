"""The floor: the graph called in a process that does nothing else. Prints one JSON line of figures.

    python call.py --models FOLDER --model NAME --threads N --streams N --seconds S

``FOLDER/NAME.onnx`` is called with the first input of ``FOLDER/NAME.npy``; ``streams`` threads call it at once.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
from onnx_session import Graph

WARM_S = 0.2


def calls(graph: Graph, x: np.ndarray, seconds: float, times: list[int]) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter_ns()
        graph.run(x)
        times.append(time.perf_counter_ns() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    graph = Graph(options.models / f"{options.model}.onnx", options.threads, options.streams)
    x = np.load(options.models / f"{options.model}.npy")[:1]
    calls(graph, x, WARM_S, [])
    each: list[list[int]] = [[] for _ in range(options.streams)]
    threads = [threading.Thread(target=calls, args=(graph, x, options.seconds, times)) for times in each[1:]]
    cpu, began = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    calls(graph, x, options.seconds, each[0])
    for thread in threads:
        thread.join()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    times = [t for one in each for t in one]
    p50, p99 = np.percentile(times, [50, 99]) / 1000
    figures = {"requests": len(times), "failures": 0, "seconds": seconds, "cpu_s": cpu_s}
    print(json.dumps(figures | {"p50_us": float(p50), "p99_us": float(p99)}))


if __name__ == "__main__":
    main()
