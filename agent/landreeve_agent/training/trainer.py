"""The trainer process: ``python -m landreeve_agent.training.trainer JOBDIR``.

Reads ``job.json`` and ``rows.jsonl``, writes checkpoints, and in the end a folder ``candidate`` (a whole release) and
``outcome.json``. Frames on stdout tell its supervisor how far it is; it ends when its stdin closes, so a trainer never
outlives its supervisor. Killed at any moment and started again it gives the same candidate, bit for bit.
"""

import fcntl
import os
import sys
import threading
from pathlib import Path
from typing import IO

import msgspec
from landreeve.blobs.durable import write_durably
from landreeve.release.layout import write_folder

from landreeve_agent.serving.control import frame
from landreeve_agent.training.job import Job, LabelledRow, Outcome, Progress

CANDIDATE = "candidate"
OUTCOME_FILE = "outcome.json"
JOB_FILE = "job.json"
ROWS_FILE = "rows.jsonl"
NICE = 10


def main() -> int:
    """Run the job in the folder of the first argument; exit code 0 when there is an outcome."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    os.nice(NICE)
    with (folder / "lock").open("w") as lock:
        # A trainer that is being killed may still hold the folder for a moment: wait, never write beside it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = read_outcome(folder) or run(folder, sys.stdout.buffer)
        tell(sys.stdout.buffer, outcome)
    return 0


def run(folder: Path, out: IO[bytes]) -> Outcome:
    """Train, write the candidate, then the outcome: whoever sees an outcome that passed sees its candidate too."""
    from landreeve_agent.training.fitting import gather, train

    job = msgspec.json.decode((folder / JOB_FILE).read_bytes(), type=Job)
    decoder = msgspec.json.Decoder(LabelledRow)
    lines = [decoder.decode(line) for line in (folder / ROWS_FILE).read_bytes().splitlines()]
    rows = gather(lines)
    outcome, packed = train(job, rows, folder, lambda share, words: tell(out, Progress(share=share, sentence=words)))
    if packed is not None:
        write_folder(packed, folder / CANDIDATE)
    write_durably(folder / OUTCOME_FILE, msgspec.json.encode(outcome))
    return outcome


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome of a job that is over, or None."""
    try:
        return msgspec.json.decode((folder / OUTCOME_FILE).read_bytes(), type=Outcome)
    except FileNotFoundError:
        return None


def tell(out: IO[bytes], message: Progress | Outcome) -> None:
    """One frame to the supervisor."""
    out.write(frame(message))
    out.flush()


def _end_with_supervisor() -> None:
    # The file descriptor and not sys.stdin: a thread inside a buffered read would abort a normal exit.
    while os.read(0, 4096):
        continue
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
