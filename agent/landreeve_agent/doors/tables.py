"""Tables of rows as files: CSV and JSON lines, read from any record on, written by appending.

A reader tells for each record where the next one begins, so that a reading that was interrupted goes on there.
CSV follows RFC 4180 in UTF-8 (a byte order mark is skipped); the delimiter is the one of ``, ; TAB |`` that the
header has most of. JSON lines are one object a line.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import msgspec

from landreeve_agent.doors.errors import BadFileError

MAX_LINE_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t|"
_ENCODE = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Record:
    """One record: the number of its first line (from 1), where the next one begins in bytes, its cells by name, and
    what is wrong with it (empty when nothing is)."""

    line: int
    next_line: int
    end: int
    cells: Mapping[str, Any]
    problem: str = ""


class Table(Protocol):
    """A kind of file."""

    @property
    def names(self) -> Sequence[str]:
        """The columns, as far as they are known before the first record."""

    def records(self, offset: int, line: int) -> Iterator[Record]:
        """The records from ``offset`` on, whose first line has number ``line``; from the start for offset 0.

        Raises `BadFileError` when the file cannot be read on.
        """

    def head(self, added: Sequence[str]) -> bytes:
        """What an output of this kind begins with."""

    def row(self, cells: Mapping[str, Any], added: Mapping[str, Any]) -> bytes:
        """One record of the output."""


class JsonLines:
    """One JSON object a line."""

    names: Sequence[str] = ()

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def records(self, offset: int, line: int) -> Iterator[Record]:
        """See `Table.records`."""
        for number, raw, end in _lines(self._file, offset, line):
            if not raw.strip():
                continue
            cells, problem = _object(raw)
            yield Record(number, number + 1, end, cells, problem)

    def head(self, added: Sequence[str]) -> bytes:
        """Nothing."""
        return b""

    def row(self, cells: Mapping[str, Any], added: Mapping[str, Any]) -> bytes:
        """The object with the added members."""
        return _ENCODE({**cells, **added}) + b"\n"


class Csv:
    """Comma-separated values with a header. Raises `BadFileError` when there is none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        first, self._start = _first_record(file)
        self._delimiter = max(_DELIMITERS, key=first.count)
        rows = list(csv.reader(io.StringIO(first, newline=""), delimiter=self._delimiter))
        self._names = [name.strip() for name in rows[0]] if rows else []
        if not any(self._names):
            raise BadFileError("line 1: a header with the names of the columns is missing")
        twice = {name for name in self._names if self._names.count(name) > 1}
        if twice:
            raise BadFileError(f"line 1: the header names {', '.join(sorted(twice))!r} twice")
        self._head_lines = max(1, first.count("\n"))

    @property
    def names(self) -> Sequence[str]:
        """The header."""
        return self._names

    def records(self, offset: int, line: int) -> Iterator[Record]:
        """See `Table.records`."""
        if offset < self._start:
            offset, line = self._start, 1 + self._head_lines
        place = [line, offset]  # the next line's number, the next record's first byte

        def texts() -> Iterator[str]:
            for number, raw, end in _lines(self._file, offset, line):
                place[:] = number + 1, end
                yield raw.decode(errors="surrogateescape")

        reader = csv.reader(texts(), delimiter=self._delimiter)
        while True:
            first = place[0]
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(first, place[0], place[1], {}, str(error))
                continue
            if values:
                yield self._record(first, place[0], place[1], values)

    def _record(self, line: int, next_line: int, end: int, values: list[str]) -> Record:
        cells = dict(zip(self._names, values, strict=False))
        problem = ""
        if len(values) != len(self._names):
            problem = f"{len(values)} cells, the header has {len(self._names)}"
        if any("\udc80" <= char <= "\udcff" for value in values for char in value):
            cells = {name: value.encode(errors="replace").decode() for name, value in cells.items()}
            problem = "not UTF-8"
        return Record(line, next_line, end, cells, problem)

    def head(self, added: Sequence[str]) -> bytes:
        """The header with the added columns."""
        return self._line([*self._names, *added])

    def row(self, cells: Mapping[str, Any], added: Mapping[str, Any]) -> bytes:
        """The line as it came, with the added cells."""
        return self._line([*(cells[name] for name in self._names), *(_cell(value) for value in added.values())])

    def _line(self, values: Sequence[Any]) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self._delimiter, lineterminator="\n").writerow(values)
        return text.getvalue().encode()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _object(raw: bytes) -> tuple[Mapping[str, Any], str]:
    try:
        cells = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"text": raw[:1000].decode(errors="replace").rstrip("\n")}, f"no JSON: {error}"
    if not isinstance(cells, dict):
        return {"value": cells}, "no JSON object"
    return cells, ""


def _first_record(file: BinaryIO) -> tuple[str, int]:
    """The header's text and where the records begin. A header may hold line breaks inside quotes."""
    file.seek(0)
    mark = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    text = ""
    for _, raw, end in _lines(file, mark, 1):
        try:
            text += raw.decode()
        except UnicodeDecodeError as error:
            raise BadFileError(f"line 1: the header is no UTF-8: {error}") from error
        if text.count('"') % 2 == 0 and text.strip():
            return text, end
    raise BadFileError("the file is empty or its header does not end")


def _lines(file: BinaryIO, offset: int, line: int) -> Iterator[tuple[int, bytes, int]]:
    """Each line from a place on: its number, its bytes with the line break, and where the next one begins."""
    file.seek(offset)
    while raw := file.readline(MAX_LINE_BYTES + 1):
        if len(raw) > MAX_LINE_BYTES:
            raise BadFileError(f"line {line}: longer than {MAX_LINE_BYTES // 1024**2} MiB")
        offset += len(raw)
        yield line, raw, offset
        line += 1
