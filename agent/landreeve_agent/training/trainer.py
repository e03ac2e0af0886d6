"""The trainer process: ``python -m landreeve_agent.training.trainer JOBDIR``.

Reads ``job.json`` and the rows, writes checkpoints, and in the end a folder ``candidate`` (a whole release) and
``outcome.json``. Its stdin begins with a frame that says how these files lie on the disk, and it ends when that closes,
so a trainer never outlives its supervisor. Frames on stdout tell its supervisor how far it is.
Killed at any moment and started again it gives the same candidate, bit for bit.
"""

import fcntl
import os
import sys
import threading
from pathlib import Path
from typing import IO

import msgspec
from landreeve.blobs.files import PLAIN, Files, Opening
from landreeve.release.layout import write_folder

from landreeve_agent.serving.control import frame
from landreeve_agent.serving.deathsig import give_way
from landreeve_agent.training.job import Job, LabelledRow, Outcome, Progress

CANDIDATE = "candidate"
OUTCOME_FILE = "outcome.json"
JOB_FILE = "job.json"
ROWS = "rows*.jsonl"


def main() -> int:
    """Run the job in the folder of the first argument; exit code 0 when there is an outcome."""
    folder = Path(sys.argv[1])
    files = _opening().files()
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    give_way()
    with (folder / "lock").open("w") as lock:
        # A trainer that is being killed may still hold the folder for a moment: wait, never write beside it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = read_outcome(folder, files) or run(folder, sys.stdout.buffer, files)
        tell(sys.stdout.buffer, outcome)
    return 0


def rows_file(part: int) -> str:
    """The name of one part of the rows; in order of their names they are in order of time."""
    return f"rows-{part:04}.jsonl"


def run(folder: Path, out: IO[bytes], files: Files = PLAIN) -> Outcome:
    """Train, write the candidate, then the outcome: whoever sees an outcome that passed sees its candidate too."""
    from landreeve_agent.training.fitting import gather, train

    job = msgspec.json.decode(files.read(folder / JOB_FILE), type=Job)
    decoder = msgspec.json.Decoder(LabelledRow)
    lines = [decoder.decode(line) for part in sorted(folder.glob(ROWS)) for line in files.read(part).splitlines()]
    rows = gather(lines)

    def told(share: float, words: str) -> None:
        tell(out, Progress(share=share, sentence=words))

    outcome, packed = train(job, rows, folder, told, files)
    if packed is not None:
        write_folder(packed, folder / CANDIDATE, files)
    files.write(folder / OUTCOME_FILE, msgspec.json.encode(outcome))
    return outcome


def read_outcome(folder: Path, files: Files = PLAIN) -> Outcome | None:
    """The outcome of a job that is over, or None."""
    try:
        return msgspec.json.decode(files.read(folder / OUTCOME_FILE), type=Outcome)
    except FileNotFoundError:
        return None


def tell(out: IO[bytes], message: Progress | Outcome) -> None:
    """One frame to the supervisor."""
    out.write(frame(message))
    out.flush()


def _opening() -> Opening:
    """The first frame on stdin; read by descriptor, and not a byte more than it has."""
    head = os.read(0, 4)
    length, body = int.from_bytes(head, "big"), b""
    while len(body) < length and (piece := os.read(0, length - len(body))):
        body += piece
    return msgspec.json.decode(body, type=Opening) if body else Opening()


def _end_with_supervisor() -> None:
    # The file descriptor and not sys.stdin: a thread inside a buffered read would abort a normal exit.
    while os.read(0, 4096):
        continue
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
