"""A job's folder from the store: the labelled samples of a range of event time, and who must be beaten."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from landreeve.blobs.durable import write_durably
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.training.job import Job, LabelledRow, TrainRequest, canonical
from landreeve_agent.training.trainer import JOB_FILE, ROWS_FILE

# Samples whose run failed count too: the row is real, and so is its label.
_LABELLED = (
    'SELECT s.at, s."row", l.label FROM samples AS s JOIN labels AS l ON l.model = s.model AND l.id = s.id '
    "WHERE s.model = ? AND s.at >= ? AND s.at < ? ORDER BY s.at, s.id"
)
_BATCH = 2000


class Pointer(msgspec.Struct, frozen=True):
    """What ``active.json`` says of the release in use."""

    release: str = ""
    version: str = ""


def write_rows(db: SqliteDatabase, request: TrainRequest, folder: Path) -> int:
    """Write ``rows.jsonl`` with every labelled row of the range, first <= at < last; how many there are."""
    count = 0
    beside = folder / "rows.tmp"
    with beside.open("wb") as out:
        for batch in _batches(db, request):
            out.write(b"".join(canonical(line) + b"\n" for line in batch))
            count += len(batch)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(folder / ROWS_FILE)
    return count


def _batches(db: SqliteDatabase, request: TrainRequest) -> Iterator[list[LabelledRow]]:
    cursor = db.conn.execute(_LABELLED, (request.model, request.first, request.last))
    while found := list(itertools.islice(cursor, _BATCH)):
        yield [LabelledRow(at=at, row=_row(text), label=label) for at, text, label in found]


def _row(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])


def write_job(job: Job, folder: Path) -> None:
    """``job.json``, written last: a folder that has it is complete and is never gathered again."""
    write_durably(folder / JOB_FILE, msgspec.json.encode(job))


def champion(models: Path, model: str) -> tuple[str, str]:
    """Folder and digest of the release in use, or two empty texts."""
    try:
        pointer = msgspec.json.decode((models / model / "active.json").read_bytes(), type=Pointer)
    except (FileNotFoundError, msgspec.DecodeError):
        return "", ""
    folder = models / model / pointer.release[:12]
    return (str(folder), pointer.release) if pointer.release and folder.is_dir() else ("", "")
