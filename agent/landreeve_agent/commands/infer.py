"""A file of rows through a model of this box."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_agent.commands.client import connected
from landreeve_agent.commands.options import Output, state_of

if TYPE_CHECKING:
    from landreeve_agent.doors.connection import Connection

_TOLD_EVERY_S = 1.0


def install(app: typer.Typer) -> None:
    """Add this command."""
    app.command("infer")(infer)


def infer(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="the model's name")],
    file: Annotated[Path, typer.Argument(help="file of rows: .csv, .jsonl or .parquet")],
    *,
    to: Annotated[
        Path | None, typer.Option("--to", help="where the result goes; else NAME.result beside the file")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="csv, jsonl or parquet; else by the file's name")] = "",
    version: Annotated[str | None, typer.Option("--version", help="ask this version; else the one that serves")] = None,
    id_column: Annotated[str, typer.Option("--id-column", help="column with the rows' ids; else: id")] = "",
    at_column: Annotated[str, typer.Option("--at-column", help="column with the rows' own times; else: at")] = "",
    rows: Annotated[int, typer.Option("--rows", min=1, max=4096, help="rows in one request")] = 256,
    patience_s: Annotated[float, typer.Option("--patience", help="seconds to wait for a busy or absent model")] = 60.0,
    output: Output = Format.TABLE,
) -> None:
    """Answer every row of a file: the result has the file's columns and the model's. Safe to run again.

    Rows that cannot be answered are listed beside the result with their line and the reason. Exit code 3 when there
    are any.
    """
    from landreeve_agent.doors.asking import Patience
    from landreeve_agent.doors.batch import Job, form_of, run_job
    from landreeve_agent.doors.errors import (
        BadFileError,
        BadModelError,
        ChangedError,
        DoorError,
        UnreachableError,
    )

    chosen = form or form_of(file) or ("parquet" if file.suffix.lower() == ".parquet" else "")
    if chosen not in ("csv", "jsonl", "parquet"):
        fail(Exit.USAGE, f"{file}: format {chosen!r} is unknown; say --format csv, jsonl or parquet")
    target = to or file.with_name(f"{file.stem}.result{file.suffix}")
    if target.absolute() == file.absolute():
        fail(Exit.USAGE, f"{target}: the result would replace the file itself; choose another with --to")
    job = Job(model, file, target, chosen, version, id_column, at_column, rows)
    run: Any = run_job
    if chosen == "parquet":
        from landreeve_agent.doors.parquet import run_parquet

        run = run_parquet
    try:
        with _connection(context) as connection:
            done = run(job, connection, Patience(patience_s), _Shown().tell)
    except BadFileError as error:
        fail(Exit.USAGE, str(error))
    except BadModelError as error:
        fail(Exit.NOT_FOUND, str(error))
    except ChangedError as error:
        fail(Exit.CONFLICT, str(error))
    except UnreachableError as error:
        fail(Exit.UNREACHABLE, f"{error}; run the same command again: it goes on where it stopped")
    except DoorError as error:
        fail(Exit.FAILURE, str(error))
    _tell_result(target, done, output)


def _tell_result(target: Path, done: Any, output: Format) -> None:
    from landreeve_agent.doors.part import rejected_beside

    summary = {"result": str(target), "answered": done.answered, "rejected": done.rejected}
    if done.rejected:
        summary["rejected_rows"] = str(rejected_beside(target))
        note(f"{done.rejected} rows were not answered, the first: {done.first_reason}")
    emit(summary, output)
    if done.rejected:
        raise SystemExit(int(Exit.PROBLEMS))


def _connection(context: typer.Context) -> "Connection":
    """The inference server of the running agent."""
    from landreeve_agent.doors.connection import Connection, Server

    state = state_of(context)
    connected(state)
    ports = json.loads(state.ports.read_bytes())
    certificate = str(ports.get("serving_certificate") or "")
    token = str(state.tokens / "app") if certificate else ""
    return Connection(Server(str(ports["serving_host"]), int(ports["serving"]), certificate, token))


class _Shown:
    """Progress on the terminal: a line that is written over; once a second at most, nothing when it is no terminal."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._began = self._last

    def tell(self, progress: Any) -> None:
        now = time.monotonic()
        if now - self._last < _TOLD_EVERY_S:
            return
        self._last = now
        rate = (progress.answered + progress.rejected) / max(now - self._began, 0.001)
        share = 100 * progress.read_bytes / max(progress.all_bytes, 1)
        text = f"{share:3.0f} %  {progress.answered:,} answered, {progress.rejected:,} rejected, {rate:,.0f} rows/s"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            note(text)
