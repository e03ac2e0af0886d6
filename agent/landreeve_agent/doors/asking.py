"""Rows as requests: many in one, each with an id; a refused request is halved until the rows at fault are found.

The ids are those of the rows' ``id`` column, else the file's digest with the line number: the same file asked about
again is recognised row by row, so every request may be repeated.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from landreeve_agent.doors.connection import AGAIN, Connection, Reply
from landreeve_agent.doors.errors import BadModelError, UnreachableError
from landreeve_agent.doors.layout import BadRowError, Layout, decode_answer, encode_rows
from landreeve_agent.doors.tables import Record

ROW_REFUSALS = (400, 413, 422, 500)  # about the rows; anything else is about the request as a whole
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


@dataclass(slots=True)
class Patience:
    """How long to wait for a server that is away or busy: ``seconds`` in a row without any answer."""

    seconds: float
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None)
    _pause_s: float = field(default=_FIRST_PAUSE_S)

    def calm(self) -> None:
        """There was an answer."""
        self._since, self._pause_s = None, _FIRST_PAUSE_S

    def wait(self, reason: str) -> None:
        """Wait a little longer than the last time; `UnreachableError` once patience has ended."""
        now = self.clock()
        self._since = now if self._since is None else self._since
        if now - self._since >= self.seconds:
            raise UnreachableError(f"{reason}; given up after {self.seconds:g} s")
        self.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask: ``version`` None is whichever serves. ``id_column`` and ``at_column`` hold the rows' ids and
    times; empty when the rows have none. ``digest`` names the file in the ids made for it."""

    model: str
    version: str | None
    id_column: str
    at_column: str
    digest: str


@dataclass(frozen=True, slots=True)
class Row:
    """A record that can be asked about."""

    record: Record
    id: str
    at: str | None
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record: its answer by output name and the version that gave it, or the reason why not."""

    record: Record
    id: str = ""
    version: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def read_layout(connection: Connection, model: str, version: str | None, patience: Patience) -> Layout:
    """The model's inputs, waiting for it while it is being loaded. Raises `BadModelError`, `UnreachableError`."""
    tail = f"/versions/{quote(version, safe='')}" if version else ""
    path = f"/v2/models/{quote(model, safe='')}{tail}"
    while True:
        try:
            if (ready := connection.get(f"{path}/ready")).status == 200:
                return Layout.parse(connection.get(path).body)
        except UnreachableError as error:
            patience.wait(str(error))
            continue
        if ready.status not in AGAIN:
            raise BadModelError(ready.reason)
        patience.wait(f"model {model!r} is not ready")


class Asker:
    """Asks one model about records. Not safe for threads."""

    def __init__(self, target: Target, layout: Layout, connection: Connection, patience: Patience) -> None:
        self._target = target
        self._layout = layout
        self._connection = connection
        self._patience = patience

    def batches(self, records: Iterable[Record], rows: int) -> Iterator[list[Row | Record]]:
        """Records in file order, as many as go into one request; those that are wrong already stand as they are."""
        batch: list[Row | Record] = []
        ids: set[str] = set()
        timed: bool | None = None
        for record in records:
            row = self._prepare(record)
            # A repeated id must be a request of its own, and so must rows with and without a time.
            cut = isinstance(row, Row) and (row.id in ids or timed not in (None, row.at is not None))
            if cut or len(batch) >= rows:
                yield batch
                batch, ids, timed = [], set(), None
            if isinstance(row, Row):
                ids.add(row.id)
                timed = row.at is not None
            batch.append(row)
        if batch:
            yield batch

    def outcomes(self, batch: Sequence[Row | Record]) -> list[Outcome]:
        """What became of each, in order. Raises `BadModelError`, `UnreachableError`."""
        good = [row for row in batch if isinstance(row, Row)]
        asked = iter(self._ask(good) if good else ())
        return [next(asked) if isinstance(row, Row) else Outcome(row, reason=row.problem) for row in batch]

    def _prepare(self, record: Record) -> Row | Record:
        if record.problem:
            return record
        try:
            cells = self._layout.cells(record.cells)
        except BadRowError as error:
            return _wrong(record, str(error))
        if not cells:
            return _wrong(record, f"none of the inputs of {self._target.model!r} is there")
        identity = record.cells.get(self._target.id_column)
        at = record.cells.get(self._target.at_column)
        name = str(identity) if identity not in (None, "") else f"{self._target.digest[:16]}-{record.line}"
        return Row(record, name, _time_text(at) if at else None, cells)

    def _ask(self, rows: Sequence[Row]) -> list[Outcome]:
        cells, ids, ats = zip(*((row.cells, row.id, row.at) for row in rows), strict=True)
        name = f"{self._target.digest[:16]}-{rows[0].record.line}"
        reply = self._patient(encode_rows(self._layout, cells, ids, ats, name))
        if reply.status == 200:
            answer = decode_answer(reply.body, len(rows))
            return [Outcome(row.record, row.id, answer.version, answer.rows[index]) for index, row in enumerate(rows)]
        if reply.status not in ROW_REFUSALS:
            raise BadModelError(reply.reason)
        if len(rows) == 1:
            return [Outcome(rows[0].record, rows[0].id, reason=reply.reason)]
        half = len(rows) // 2
        return self._ask(rows[:half]) + self._ask(rows[half:])

    def _patient(self, body: bytes) -> Reply:
        while True:
            try:
                reply = self._connection.infer(self._target.model, self._target.version, body)
            except UnreachableError as error:
                self._patience.wait(str(error))
                continue
            if reply.status not in AGAIN:
                self._patience.calm()
                return reply
            self._patience.wait(reply.reason)


def _wrong(record: Record, problem: str) -> Record:
    return Record(record.line, record.next_line, record.end, record.cells, problem)


def _time_text(value: Any) -> str:
    """A time as the inference server takes it, RFC 3339; one of a typed file without a zone is taken as UTC."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return str(value)
