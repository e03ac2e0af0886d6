"""What a process of its own costs a model: the same graph called in this process and over shared memory, in turns.

Medians of one run, with one core for both processes and with all: on one core the wake-up of another core is not in
the figure, which on a virtual machine is most of it. Writes build/bench/isolated.json.
"""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Plan  # noqa: E402 - needs the path above
from landreeve_agent.serving.remote import RemoteSession  # noqa: E402
from landreeve_agent.serving.session import Session, open_session  # noqa: E402

from tests.agent.onnx_models import graph  # noqa: E402

ROUNDS, CALLS = 9, 400
BAR_US = 15.0


def call_us(session: Session, x: Any) -> float:
    """Median wall time of a call."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        session.run([x])
        times.append(time.perf_counter_ns() - began)
    return float(np.median(times)) / 1000


def pair(folder: Path, hidden: int, rows: int) -> tuple[float, float]:
    """The graph's call here and in its own process: the best of several rounds, taken in turns."""
    path = folder / f"{hidden}.onnx"
    path.write_bytes(graph(hidden=hidden, width=256))
    here, there = open_session(Plan(), path.read_bytes()).session, RemoteSession.open(Plan(), path)
    x = np.random.default_rng(1).random((rows, 256), np.float32)
    found = [(call_us(here, x), call_us(there, x)) for _ in range(ROUNDS)]
    there.close()
    return min(a for a, _ in found), min(b for _, b in found)


def wake_up_us() -> float:
    """The floor: 16 bytes to another process and back over a socket pair, median."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while said := theirs.recv(16):
            theirs.send(said)
        os._exit(0)
    theirs.close()
    times = []
    for _ in range(CALLS * 3):
        began = time.perf_counter_ns()
        ours.send(b"x" * 16)
        ours.recv(16)
        times.append(time.perf_counter_ns() - began)
    ours.close()
    os.waitpid(child, 0)
    return float(np.median(times)) / 1000


def pinned(work: Callable[[], Any]) -> Any:
    """Do it on one core, the children too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        return work()
    finally:
        os.sched_setaffinity(0, before)


def measure(folder: Path) -> list[dict[str, object]]:
    found = [row("an empty round trip between two processes, one core", pinned(wake_up_us), "µs")]
    for what, hidden, rows in (("a tiny graph", 16, 1), ("a graph of 1 ms", 4096, 64)):
        for where, do in (("one core", pinned), ("all cores", lambda work: work())):
            here, there = do(lambda hidden=hidden, rows=rows: pair(folder, hidden, rows))
            bar = BAR_US if (what, where) == ("a tiny graph", "one core") else None
            found.append(row(f"{what}, {where}: called here", here, "µs"))
            found.append(row(f"{what}, {where}: its own process adds", there - here, "µs", bar))
    return found


def row(what: str, value: float, unit: str, bar: float | None = None) -> dict[str, object]:
    shown, holds = (None, None) if bar is None else (f"≤ {bar:g}", value <= bar)
    return {"what": what, "value": round(value, 1), "unit": unit, "bar": shown, "holds": holds}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(Path(temporary))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for each in found:
        verdict = "" if each["bar"] is None else f"bar {each['bar']}: {'holds' if each['holds'] else 'missed'}"
        print(f"{each['what']:60}{each['value']:>10} {each['unit']:3} {verdict}")
    target = ROOT / "build/bench/isolated.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
