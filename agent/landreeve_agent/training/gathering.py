"""A job's folder from the store: the labelled samples of a range of event time, and who must be beaten."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from landreeve.blobs.files import PLAIN, Files
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.training.job import Job, LabelledRow, TrainRequest, canonical
from landreeve_agent.training.trainer import JOB_FILE, ROWS, rows_file

# Samples whose run failed count too: the row is real, and so is its label.
_LABELLED = (
    'SELECT s.at, s."row", l.label FROM samples AS s JOIN labels AS l ON l.model = s.model AND l.id = s.id '
    "WHERE s.model = ? AND s.at >= ? AND s.at < ? ORDER BY s.at, s.id"
)
_BATCH = 2000
_PART_BYTES = 8 * 1024 * 1024


class Pointer(msgspec.Struct, frozen=True):
    """What ``active.json`` says of the release in use."""

    release: str = ""
    version: str = ""


def write_rows(db: SqliteDatabase, request: TrainRequest, folder: Path, files: Files = PLAIN) -> int:
    """Write every labelled row of the range, first <= at < last, as ``rows-0000.jsonl`` and so on; how many there are.

    In parts, since a sealed file is written at once; an attempt that was cut short is written over.
    """
    count, parts, part = 0, itertools.count(), bytearray()
    for left in folder.glob(ROWS):
        left.unlink()
    for batch in _batches(db, request):
        part += b"".join(canonical(line) + b"\n" for line in batch)
        count += len(batch)
        if len(part) >= _PART_BYTES:
            files.write(folder / rows_file(next(parts)), bytes(part))
            part.clear()
    files.write(folder / rows_file(next(parts)), bytes(part))
    return count


def _batches(db: SqliteDatabase, request: TrainRequest) -> Iterator[list[LabelledRow]]:
    cursor = db.conn.execute(_LABELLED, (request.model, request.first, request.last))
    while found := list(itertools.islice(cursor, _BATCH)):
        yield [LabelledRow(at=at, row=_row(text), label=label) for at, text, label in found]


def _row(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])


def write_job(job: Job, folder: Path, files: Files = PLAIN) -> None:
    """``job.json``, written last: a folder that has it is complete and is never gathered again."""
    files.write(folder / JOB_FILE, msgspec.json.encode(job))


def champion(models: Path, model: str) -> tuple[str, str]:
    """Folder and digest of the release in use, or two empty texts."""
    try:
        pointer = msgspec.json.decode((models / model / "active.json").read_bytes(), type=Pointer)
    except (FileNotFoundError, msgspec.DecodeError):
        return "", ""
    folder = models / model / pointer.release[:12]
    return (str(folder), pointer.release) if pointer.release and folder.is_dir() else ("", "")
