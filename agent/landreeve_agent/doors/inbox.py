"""A folder that is watched: files of rows put into ``<model>/in`` come back answered in ``<model>/out``.

``python -m landreeve_agent.doors.inbox --parent PID``, kept by the supervisor (`landreeve_agent.doors.child`).

A file is taken once it has rested (its size and time stand still), by renaming it into ``.work``. There its answer
grows; when that is whole the file is renamed into ``done``: this is the one step that says it has been dealt with.
Then the answer is renamed into ``out``. Each start first finishes what an earlier life left in ``.work``, so a kill
at any moment loses no row and doubles none.
"""

import errno
import itertools
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from landreeve_agent.doors.asking import Patience
from landreeve_agent.doors.batch import Job, Progress, form_of, run_job
from landreeve_agent.doors.connection import Connection, Server
from landreeve_agent.doors.errors import BadFileError, BadModelError, ChangedError, SetupError, UnreachableError
from landreeve_agent.doors.kept import Stop, live
from landreeve_agent.doors.part import Part, rejected_beside

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
_SLOWEST_S = 30.0
_RESULT = ".result"
_UNFINISHED = (".part", ".tmp", ".crdownload", ".filepart", "~")


class InboxOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``folder`` is watched every ``poll_s`` seconds; a file is complete when it has rested ``settle_s``; ``rows`` go
    into one request; files dealt with are kept ``keep_days``."""

    server: Server
    folder: str
    poll_s: float = 2.0
    settle_s: float = 5.0
    rows: int = 256
    keep_days: float = 14.0


class StopError(Exception):
    """The supervisor wants the door closed in the middle of a file; the next life goes on with it."""


class Inbox:
    """The folder. `look` does everything that can be done now."""

    def __init__(self, options: InboxOptions, connection: Connection, *, now: Callable[[], datetime]) -> None:
        self._options = options
        self._connection = connection
        self._now = now
        self._seen: dict[Path, tuple[int, int, float]] = {}
        self._told: dict[Path, str] = {}

    def look(self, monotonic: float, stop: Stop) -> int:
        """Finish what was begun, then take what has come; how many files were dealt with.

        Raises `UnreachableError` when there is no server, `StopError` when ``stop`` came in between.
        """
        dealt = 0
        for model in self._models():
            room = Room(Path(self._options.folder) / model)
            room.prepare()
            room.deliver_orphans()
            for source in room.begun():
                dealt += self._deal(model, room, source, stop)
            for arrived in list(self._rested(room, monotonic)):
                if reason := _unfit(arrived):
                    room.refuse(arrived, reason)
                else:
                    dealt += self._deal(model, room, room.take(arrived), stop)
            room.forget_old(self._now() - timedelta(days=self._options.keep_days))
        return dealt

    def _models(self) -> list[str]:
        """The models that answer now; a folder is made for each, so that people find where to put their files."""
        names = self._connection.get("/v2/models").document.get("models", [])
        names = [name for name in names if "/" not in name and not name.startswith(".")]
        return [name for name in names if self._connection.get(f"/v2/models/{name}/ready").status == 200]

    def _rested(self, room: "Room", monotonic: float) -> Iterator[Path]:
        """Files whose size and time have stood still long enough, oldest first."""
        for path, status in room.arrived():
            seen = self._seen.get(path)
            if seen is None or seen[:2] != (status.st_size, status.st_mtime_ns):
                self._seen[path] = (status.st_size, status.st_mtime_ns, monotonic)
            if monotonic - self._seen[path][2] >= self._options.settle_s:
                del self._seen[path]
                yield path

    def _deal(self, model: str, room: "Room", source: Path, stop: Stop) -> int:
        """One file from ``.work``; 1 when it is dealt with, 0 when it has to wait."""

        def told(_: Progress) -> None:
            if stop.wanted:
                raise StopError

        try:
            done = None
            if not room.result_of(source).exists():
                job = Job(model, source, room.result_of(source), form_of(source), rows=self._options.rows)
                done = run_job(job, self._connection, Patience(_PATIENCE_S), told)
                logger.info("%s/%s: %d rows answered, %d rejected", model, source.name, done.answered, done.rejected)
            if done and done.rejected and not done.answered:
                reason = f"none of its {done.rejected} rows could be answered; {done.first_reason}"
                room.refuse(source, reason)
            else:
                room.commit(source, self._now())
        except BadFileError as error:
            logger.warning("%s/%s: %s", model, source.name, error)
            room.refuse(source, str(error))
        except (BadModelError, ChangedError) as error:
            self._tell_once(source, f"{model}/{source.name} has to wait: {error}")
            return 0
        self._told.pop(source, None)
        return 1

    def _tell_once(self, source: Path, text: str) -> None:
        if self._told.get(source) != text:
            self._told[source] = text
            logger.warning("%s", text)


class Room:
    """One model's folder: ``in``, ``out``, ``failed``, ``done`` and ``.work``."""

    def __init__(self, folder: Path) -> None:
        self._in, self._out, self._failed = folder / "in", folder / "out", folder / "failed"
        self._done, self._work = folder / "done", folder / ".work"

    def prepare(self) -> None:
        """Make what is missing; `SetupError` when that is not allowed."""
        try:
            for folder in (self._in, self._out, self._failed, self._done, self._work):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"batch.folder: {error.filename}: {error.strerror}") from error

    def arrived(self) -> list[tuple[Path, os.stat_result]]:
        """Plain files that do not look unfinished, oldest first."""
        found = []
        for path in self._in.iterdir():
            if path.name.startswith(".") or path.name.endswith(_UNFINISHED):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # whoever put it there has taken it away again
                continue
            if stat.S_ISREG(status.st_mode):  # a link could lead to any file that this process may read
                found.append((path, status))
        return sorted(found, key=lambda pair: (pair[1].st_mtime_ns, pair[0].name))

    def take(self, arrived: Path) -> Path:
        """Move it to where it is worked on, under a name that no file in work or in ``out`` has."""
        for name in _names(arrived):
            target = self._work / name
            used = (target, self.result_of(target), self._out / name, rejected_beside(self._out / name))
            if not any(path.exists() for path in used):
                return arrived.replace(target)
        raise AssertionError("the names do not end")

    def begun(self) -> list[Path]:
        """What an earlier life took and did not finish."""
        return sorted(
            path
            for path in self._work.iterdir()
            if not path.name.startswith(".") and not path.name.endswith((_RESULT, ".rejected.jsonl"))
        )

    def result_of(self, source: Path) -> Path:
        """Where its answer is made."""
        return source.with_name(source.name + _RESULT)

    def commit(self, source: Path, now: datetime) -> None:
        """It is answered: keep it as done, then hand its answer out."""
        kept = self._done / f"{source.stem}.{now:%Y%m%dT%H%M%S.%fZ}{source.suffix}"
        source.replace(kept)
        os.utime(kept, (now.timestamp(), now.timestamp()))
        self._deliver(self.result_of(source))

    def deliver_orphans(self) -> None:
        """Answers whose file is done, but that a kill kept from ``out``."""
        for path in self._work.iterdir():
            base = path.name.removesuffix(_RESULT).removesuffix(".rejected.jsonl")
            if base != path.name and not path.name.startswith(".") and not (self._work / base).exists():
                self._deliver(self._work / f"{base}{_RESULT}")

    def _deliver(self, result: Path) -> None:
        target = self._out / result.name.removesuffix(_RESULT)
        for source, final in ((rejected_beside(result), rejected_beside(target)), (result, target)):
            if source.exists():
                source.replace(final)

    def refuse(self, source: Path, reason: str) -> None:
        """It cannot be answered: into ``failed`` with the reason. The answer goes first: while the file is in work,
        an answer beside it means that it was dealt with."""
        result = self.result_of(source)
        result.unlink(missing_ok=True)
        Part(result).forget()
        target = _free(self._failed / source.name)
        rejected = rejected_beside(result)
        if rejected.exists():
            rejected.replace(rejected_beside(target))
        target.with_name(f"{target.name}.reason.txt").write_text(f"{reason}\n")
        source.replace(target)

    def forget_old(self, before: datetime) -> None:
        """Delete what has been done for long enough."""
        for path in self._done.iterdir():
            if path.lstat().st_mtime < before.timestamp():
                path.unlink()


def _unfit(path: Path) -> str:
    """Why a file is not even tried; empty when it is."""
    if path.name.endswith(".rejected.jsonl"):
        return "a list of rejected rows: put the rows themselves, corrected, into a file of their own"
    return "" if form_of(path) else f"{path.suffix or 'no suffix'}: only .csv, .tsv, .jsonl and .ndjson files are read"


def _names(path: Path) -> Iterator[str]:
    """Its own name, then numbered ones."""
    yield path.name
    for number in itertools.count(2):
        yield f"{path.stem}-{number}{path.suffix}"


def _free(path: Path) -> Path:
    """The path, or a numbered one when there is such a file already."""
    return next(path.with_name(name) for name in _names(path) if not path.with_name(name).exists())


def run(options: InboxOptions, stop: Stop) -> None:
    """Watch until told to stop."""
    with Connection(options.server) as connection:
        inbox = Inbox(options, connection, now=lambda: datetime.now(UTC))
        pause_s = options.poll_s
        while not stop.wait(pause_s):
            try:
                inbox.look(time.monotonic(), stop)
                pause_s = options.poll_s
            except UnreachableError:
                pause_s = min(2 * pause_s, max(_SLOWEST_S, options.poll_s))  # the supervisor tells about its worker
            except StopError:
                return
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise SetupError(f"batch.folder {options.folder}: it must not span file systems") from error
                raise


if __name__ == "__main__":
    live(InboxOptions, run)
