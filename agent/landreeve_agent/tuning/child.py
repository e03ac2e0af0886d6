"""The preflight child: ``python -m landreeve_agent.tuning.child --parent PID``.

Reads one `Task` frame, tells each step before it begins (`Trying`), and ends with a report or a refusal. It may
hang or die at any step: its parent then knows which one, and starts another child without that candidate. It gives
way to whatever serves, and is the first to go when memory runs out.
"""

import argparse
import os
import resource
import signal
import sys
import tempfile

import msgspec

from landreeve_agent.serving.control import frame
from landreeve_agent.serving.deathsig import die_with_parent, give_way
from landreeve_agent.tuning.inputs import RefusedError
from landreeve_agent.tuning.proving import Proving
from landreeve_agent.tuning.report import FromChild, PreflightFailed, Task

_MAX_ADDRESS_SPACE_BYTES = 32 * 1024**3
_MAX_FILE_BYTES = 2 * 1024**3


def _limit(task: Task) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE_BYTES, _MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    cpu_s = int(task.time_s * max(task.threads, 2)) + 120
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))


def main() -> None:
    """Carry out one task from stdin."""
    parser = argparse.ArgumentParser(prog="landreeve-preflight")
    parser.add_argument("--parent", type=int, required=True)
    die_with_parent(parser.parse_args().parent)
    give_way()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor ends us
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not break a frame
    length = int.from_bytes(sys.stdin.buffer.read(4), "big")
    task = msgspec.json.decode(sys.stdin.buffer.read(length), type=Task)
    _limit(task)
    if task.raw:
        tempfile.tempdir = task.raw  # quantisers write graphs and samples to temporary files
        os.environ["TMPDIR"] = task.raw

    def tell(message: FromChild) -> None:
        out.write(frame(message))
        out.flush()

    try:
        tell(Proving(task, tell).run())
    except RefusedError as error:
        tell(PreflightFailed(cause=error.cause, sentence=error.sentence))


if __name__ == "__main__":
    main()
