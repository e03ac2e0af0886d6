"""A file of rows through the inference server: many rows a request, each with an id, nothing lost, nothing twice.

A row that cannot be read, or that the model refuses, goes to a file beside the output with its line and the reason.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from landreeve_agent.doors.asking import Asker, Outcome, Patience, Target, read_layout
from landreeve_agent.doors.connection import Connection
from landreeve_agent.doors.errors import BadFileError, ChangedError
from landreeve_agent.doors.layout import Layout
from landreeve_agent.doors.part import Mark, Part
from landreeve_agent.doors.tables import Csv, JsonLines, Table

FORMS: dict[str, Callable[[BinaryIO], Table]] = {"csv": Csv, "jsonl": JsonLines}
DEFAULT_ROWS = 256
_ENCODE = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Job:
    """What to do. ``version`` None asks for whichever serves; empty ``id_column`` and ``at_column`` mean ``id`` and
    ``at`` unless the model has inputs of these names; ``rows`` go into one request."""

    model: str
    source: Path
    output: Path
    form: str = "csv"
    version: str | None = None
    id_column: str = ""
    at_column: str = ""
    rows: int = DEFAULT_ROWS

    def target(self, layout: Layout, digest: str) -> Target:
        """Whom to ask about a file with that digest."""
        inputs = {field.name for field in layout.fields}
        id_column = self.id_column or ("" if "id" in inputs else "id")
        at_column = self.at_column or ("" if "at" in inputs else "at")
        return Target(self.model, self.version, id_column, at_column, digest)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: rows answered and rejected so far, bytes read of all bytes."""

    answered: int
    rejected: int
    read_bytes: int
    all_bytes: int
    first_reason: str = ""


Told = Callable[[Progress], None]


def form_of(path: Path) -> str:
    """``csv`` or ``jsonl`` by the file's name; empty for another."""
    return {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(path.suffix.lower(), "")


def run_job(job: Job, connection: Connection, patience: Patience, told: Told) -> Progress:
    """Do it, from where an earlier attempt stopped; ``told`` hears of every batch.

    Raises `BadFileError`, `BadModelError`, `ChangedError`, `UnreachableError`; the same call made later goes on.
    """
    layout = read_layout(connection, job.model, job.version, patience)
    try:
        with job.source.open("rb") as file:
            before = state_of(job.source)
            target = job.target(layout, digest_of(file))
            run = _Run(job, layout, file, target, Asker(target, layout, connection, patience))
            return run.run(before, told)
    except OSError as error:
        raise BadFileError(f"{error.filename or job.source}: {error.strerror or error}") from error


class Shape:
    """What the output adds to a row: the model's answer, its version, and the row's id when it has none."""

    def __init__(self, names: Sequence[str], target: Target, outputs: Sequence[str]) -> None:
        self._names = names
        self._outputs = outputs
        self._id = target.id_column or "row_id"
        self._adds_id = bool(names) and self._id not in names

    @property
    def added(self) -> list[str]:
        """The names of what is added."""
        names = [self._id] if self._adds_id else []
        return [*names, *(self._free(name) for name in (*self._outputs, "model_version"))]

    def added_to(self, outcome: Outcome) -> dict[str, Any]:
        """What an answered row gets."""
        added: dict[str, Any] = {self._id: outcome.id} if self._adds_id else {}
        added |= {self._free(name): outcome.answer.get(name) for name in self._outputs}
        added[self._free("model_version")] = outcome.version
        return added

    def named(self, outcome: Outcome) -> Mapping[str, Any]:
        """The row's own cells, its id filled in where it had none: labels come by id."""
        cells = outcome.record.cells
        if self._adds_id or cells.get(self._id) not in (None, ""):
            return cells
        return {**cells, self._id: outcome.id}

    def _free(self, name: str) -> str:
        """The name of a result, moved aside when the file has a column of that name."""
        return f"{name}.result" if name in self._names else name


class _Run:
    """One attempt at a job."""

    def __init__(self, job: Job, layout: Layout, file: BinaryIO, target: Target, asker: Asker) -> None:
        self._job = job
        self._asker = asker
        self._table = FORMS[job.form](file)
        if self._table.names:
            layout.check_names(self._table.names)
        self._shape = Shape(self._table.names, target, layout.outputs)
        self._key = "|".join((target.digest, job.form, job.model, job.version or "", *self._shape.added))

    def run(self, before: tuple[int, int], told: Told) -> Progress:
        part = Part(self._job.output)
        mark = part.open(self._key)

        def progress() -> Progress:
            return Progress(mark.answered, mark.rejected, mark.offset, before[0], mark.first_reason)

        try:
            if not mark.whole and mark.out_bytes == 0:
                mark = part.append(mark, self._table.head(self._shape.added), b"")
            records = () if mark.whole else self._table.records(mark.offset, mark.line)
            for batch in self._asker.batches(records, self._job.rows):
                mark = self._write(part, mark, self._asker.outcomes(batch))
                told(progress())
            if state_of(self._job.source) != before:
                part.forget()
                raise ChangedError(f"{self._job.source}: it changed while it was read; ask again when it is complete")
            part.finish(mark)
            part.forget()
        finally:
            part.close()
        return progress()

    def _write(self, part: Part, mark: Mark, outcomes: Sequence[Outcome]) -> Mark:
        good = [outcome for outcome in outcomes if not outcome.reason]
        bad = [outcome for outcome in outcomes if outcome.reason]
        out = b"".join(self._table.row(self._shape.named(one), self._shape.added_to(one)) for one in good)
        last = outcomes[-1].record
        grown = msgspec.structs.replace(
            mark,
            offset=last.end,
            line=last.next_line,
            answered=mark.answered + len(good),
            rejected=mark.rejected + len(bad),
            first_reason=mark.first_reason or first_reason(bad),
        )
        return part.append(grown, out, rejected_lines(bad))


def rejected_lines(bad: Sequence[Outcome]) -> bytes:
    """The refused rows as JSON lines: where, why, and the row itself."""
    return b"".join(
        _ENCODE({"line": one.record.line, "reason": one.reason, "row": one.record.cells}) + b"\n" for one in bad
    )


def first_reason(bad: Sequence[Outcome]) -> str:
    """The first refusal in words; empty when there is none."""
    return f"line {bad[0].record.line}: {bad[0].reason}" if bad else ""


def digest_of(file: BinaryIO) -> str:
    """The sha256 of the whole file."""
    file.seek(0)
    return hashlib.file_digest(cast("Any", file), "sha256").hexdigest()


def state_of(path: Path) -> tuple[int, int]:
    """What changes when a file is written to: its size and the time of its last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
