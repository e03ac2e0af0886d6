"""Parquet files through the inference server. Needs pyarrow, which the agent itself does not depend on.

A Parquet file cannot be gone on with, so an attempt that was interrupted begins anew; the rows' ids make that
harmless.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from landreeve_agent.doors.asking import Asker, Outcome, Patience, read_layout
from landreeve_agent.doors.batch import (
    Job,
    Progress,
    Shape,
    Told,
    digest_of,
    first_reason,
    rejected_lines,
    state_of,
)
from landreeve_agent.doors.connection import Connection
from landreeve_agent.doors.errors import BadFileError, ChangedError
from landreeve_agent.doors.part import Mark, Part
from landreeve_agent.doors.tables import Record


def run_parquet(job: Job, connection: Connection, patience: Patience, told: Told) -> Progress:
    """As `landreeve_agent.doors.batch.run_job`, for a Parquet file; a row's line is its number, from 1."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise BadFileError("Parquet needs pyarrow: pip install pyarrow, or convert the file to CSV") from error
    layout = read_layout(connection, job.model, job.version, patience)
    before = state_of(job.source)
    try:
        with job.source.open("rb") as file:
            target = job.target(layout, digest_of(file))
            source = parquet.ParquetFile(file)
            names = source.schema_arrow.names
            layout.check_names(names)
            shape = Shape(names, target, layout.outputs)
            asker = Asker(target, layout, connection, patience)
            return _Run(job, asker, shape, source, pa).run(before, told)
    except pa.ArrowInvalid as error:
        raise BadFileError(f"{job.source}: {error}") from error


class _Run:
    """One attempt."""

    def __init__(self, job: Job, asker: Asker, shape: Shape, source: Any, pyarrow: Any) -> None:
        self._job = job
        self._asker = asker
        self._shape = shape
        self._source = source
        self._pyarrow = pyarrow
        self._writer: Any = None

    def run(self, before: tuple[int, int], told: Told) -> Progress:
        part = Part(self._job.output)
        part.forget()
        mark = part.open("")
        total = self._source.metadata.num_rows
        try:
            for batch in self._asker.batches(self._records(), self._job.rows):
                mark = self._write(part, mark, self._asker.outcomes(batch))
                told(Progress(mark.answered, mark.rejected, mark.offset, total, mark.first_reason))
            if self._writer is None:
                raise BadFileError(f"{self._job.source}: no row was answered, the first: {mark.first_reason or '-'}")
            self._writer.close()
            if state_of(self._job.source) != before:
                raise ChangedError(f"{self._job.source}: it changed while it was read; ask again when it is complete")
            part.finish(mark)
            return Progress(mark.answered, mark.rejected, total, total, mark.first_reason)
        finally:
            part.forget()

    def _records(self) -> Iterator[Record]:
        line = 0
        for piece in self._source.iter_batches(batch_size=self._job.rows):
            for cells in piece.to_pylist():
                line += 1
                yield Record(line, line + 1, line, cells)

    def _write(self, part: Part, mark: Mark, outcomes: list[Outcome]) -> Mark:
        good = [outcome for outcome in outcomes if not outcome.reason]
        bad = [outcome for outcome in outcomes if outcome.reason]
        if good:
            self._append(part, good)
        grown = msgspec.structs.replace(
            mark,
            offset=outcomes[-1].record.end,
            answered=mark.answered + len(good),
            rejected=mark.rejected + len(bad),
            first_reason=mark.first_reason or first_reason(bad),
        )
        return part.append(grown, b"", rejected_lines(bad))

    def _append(self, part: Part, good: list[Outcome]) -> None:
        from pyarrow import parquet

        rows = [{**self._shape.named(one), **self._shape.added_to(one)} for one in good]
        schema = self._writer.schema if self._writer else None
        if schema is None:
            kept = self._source.schema_arrow
            fresh = self._pyarrow.Table.from_pylist(rows).schema
            added = [field for field in fresh if field.name not in kept.names]
            schema = self._pyarrow.schema([*kept, *added])
            self._writer = parquet.ParquetWriter(part.out, schema)
        self._writer.write_table(self._pyarrow.Table.from_pylist(rows, schema=schema))
