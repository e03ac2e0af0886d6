"""What a plan costs besides time: the memory it takes and how long it needs to be ready, in a process of its own.

``python -m landreeve_agent.tuning.weigh --parent PID`` reads one `Load` as JSON and prints a `Weight`. In the process
that measures the plans neither figure could be told apart: libraries are loaded and memory is shared by then.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from landreeve.blobs.files import Opening

from landreeve_agent.hardware.files import read_text
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.deathsig import die_with_parent, give_way
from landreeve_agent.serving.memory import rss_bytes

_COMMAND = (sys.executable, "-m", "landreeve_agent.tuning.weigh")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The plan to weigh, its graph, and a file with one row, a tensor for each of ``inputs``; ``opening`` reads both
    where they are sealed."""

    plan: Plan
    graph: str
    row: str
    inputs: tuple[str, ...]
    opening: Opening = Opening()


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """``memory_mb`` is the most a process with this plan alone held; ``cold_start_s`` the time to import the runtime,
    open the graph and answer one row; ``problem`` why there is neither."""

    memory_mb: float = 0.0
    cold_start_s: float = 0.0
    problem: str = ""


def weigh(load: Load, deadline_s: float) -> Weight:
    """Weigh a plan; a child that hangs, dies or refuses is a `Weight` with a problem."""
    command = [*_COMMAND, "--parent", str(os.getpid())]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(load), capture_output=True, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Weight(problem=f"alone in a process it was not ready within {deadline_s:.0f} s")
    try:
        return msgspec.json.decode(done.stdout, type=Weight)
    except msgspec.DecodeError:
        words = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return Weight(problem=f"alone in a process it ended with {done.returncode}: {words[:200]}")


def peak_mb() -> float:
    """The most memory this process has held, in MB.

    Not `ru_maxrss`: Linux carries that over from the parent through fork and exec, so a large supervisor would make
    every release look too large. VmHWM begins anew with the program.
    """
    for line in read_text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return rss_bytes() / 1e6


def _weigh(load: Load) -> Weight:
    from safetensors.numpy import load as parsed

    files = load.opening.files()
    tensors = parsed(files.read(Path(load.row)))
    row = [np.ascontiguousarray(tensors[name]) for name in load.inputs]
    began = time.perf_counter()
    from landreeve_agent.serving.session import open_session

    opened = open_session(load.plan, files.read(Path(load.graph)))
    if opened.plan.name != load.plan.name:
        return Weight(problem=opened.reason)
    opened.session.run(row)
    cold_start_s = time.perf_counter() - began
    opened.session.run(row)
    return Weight(memory_mb=round(peak_mb(), 1), cold_start_s=round(cold_start_s, 3))


def main() -> None:
    """Weigh the plan on stdin."""
    parser = argparse.ArgumentParser(prog="landreeve-weigh")
    parser.add_argument("--parent", type=int, required=True)
    die_with_parent(parser.parse_args().parent)
    give_way()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not break the answer
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    os.write(out, msgspec.json.encode(_weigh(load)))


if __name__ == "__main__":
    main()
