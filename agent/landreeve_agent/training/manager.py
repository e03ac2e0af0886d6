"""The supervisor's side of training: one job at a time, in a process of its own, to its end across any restart."""

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path

import msgspec
from landreeve.blobs.files import PLAIN, Files
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import read_folder
from landreeve.release.manifest import BadReleaseError
from landreeve_models.definition import Definition
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.errors import OperatorError
from landreeve_agent.intake.event_time import BadTimeError, event_time
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.serving.control import frame, read_frame
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp
from landreeve_agent.training import gathering, runs
from landreeve_agent.training.job import Job, Outcome, Progress, TrainRequest
from landreeve_agent.training.runs import Run
from landreeve_agent.training.trainer import CANDIDATE, JOB_FILE, read_outcome

logger = logging.getLogger(__name__)

MAX_CRASHES = 3
# A run that takes the whole supervisor down with it must end some time, too.
MAX_STARTS = 50
_LAST_WORDS_BYTES = 2000
_FRAMES = msgspec.json.Decoder(Progress | Outcome)


class TrainingRefusedError(OperatorError):
    """A request that cannot be carried out; the text names the field that is wrong."""


class Trainings:
    """Runs asked for by people, schedules and the hub.

    ``folder`` holds a folder for each open run, ``models`` the materialised releases, whose active one is the
    champion; ``threads`` bounds the trainer's; ``clock`` gives the wall time as aware UTC. ``files`` says how both lie
    on the disk; on a sealed site ``raw`` is a folder in memory for what a trainer says in its pain.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        definitions: Mapping[str, Definition],
        blobs: BlobStore,
        *,
        folder: Path,
        models: Path,
        site: str,
        clock: Callable[[], datetime],
        threads: int = 1,
        files: Files = PLAIN,
        raw: Path | None = None,
    ) -> None:
        self._database, self._outbox, self._definitions, self._blobs = database, outbox, definitions, blobs
        self._folder, self._models, self._site = folder, models, site
        self._clock, self._threads = clock, threads
        self._files, self._raw = files, raw
        self._wake = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self.progress: dict[str, Progress] = {}

    async def request(self, request: TrainRequest) -> str:
        """The id of the run that will answer the request; the same ``request_id`` again gives the same run.

        Raises `TrainingRefusedError` for a model that is not defined here or a range that is none.
        """
        checked = self._check(request)
        now = self._clock()

        def put(db: SqliteDatabase) -> str:
            held = runs.known(db, checked.request_id)
            if held is not None:
                return held
            run = f"{now:%Y%m%d%H%M%S}-{os.urandom(3).hex()}"
            runs.add(db, run, checked, now)
            return run

        run = await self._database.write(put)
        self._wake.set()
        return run

    async def run(self) -> None:
        """Work on open runs for ever, one at a time. Cancelled, it ends the trainer; the run goes on at the next
        start from its checkpoint."""
        while True:
            self._wake.clear()
            if not await self.step():
                await self._wake.wait()

    async def step(self) -> bool:
        """Work on one open run to its end; False when there is none."""
        run = await self._database.read(runs.oldest_open)
        if run is None:
            return False
        starts = await self._database.write(lambda db: runs.note_start(db, self._outbox, run, self._clock()))
        if run.model not in self._definitions:
            await self._fail(run, "undefined", "the model's definition was removed; add it and ask again")
        elif starts > MAX_STARTS:
            await self._fail(run, "crashed", f"begun {MAX_STARTS} times without an end; {self._last_words(run)}")
        else:
            await self._attempt(run)
        return True

    @property
    def pid(self) -> int | None:
        """The trainer's process id while one runs."""
        return self._process.pid if self._process is not None else None

    async def _attempt(self, run: Run) -> None:
        folder = self._folder / run.id
        try:
            if not (folder / JOB_FILE).is_file():
                await self._prepare(run, folder)
            outcome = await self._train(run, folder) or read_outcome(folder, self._files)
        except OSError as error:
            await self._fail(run, "disk", f"{error.strerror}: {error.filename}; free some space and ask again")
            return
        if outcome is not None:
            await self._finish(run, folder, outcome)
        elif await self._database.write(lambda db: runs.note_crash(db, run.id)) >= MAX_CRASHES:
            await self._fail(run, "crashed", f"the trainer died {MAX_CRASHES} times; {self._last_words(run)}")

    async def _prepare(self, run: Run, folder: Path) -> None:
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        rows = await self._database.read(lambda db: gathering.write_rows(db, run.request, folder, self._files))
        logger.info("training %s: %d labelled rows of %s", run.id, rows, run.model)
        champion, release = gathering.champion(self._models, run.model)
        job = Job(
            run=run.id,
            site=self._site,
            request=run.request,
            definition=self._definitions[run.model],
            champion=champion,
            champion_release=release,
            code=f"landreeve {metadata.version('landreeve')}",
            created=stamp(self._clock()),
            threads=self._threads,
        )
        await asyncio.to_thread(gathering.write_job, job, folder, self._files)

    async def _train(self, run: Run, folder: Path) -> Outcome | None:
        """Start the trainer and listen until it ends; its outcome, or None when it died before."""
        temporary = await asyncio.to_thread(self._temporary, run)
        with self._log(run).open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "landreeve_agent.training.trainer", str(folder)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_environment(self._threads, temporary),
            )
        outcome = None
        try:
            assert self._process.stdout is not None  # noqa: S101 - asked for above
            assert self._process.stdin is not None  # noqa: S101 - likewise
            self._process.stdin.write(frame(self._files.opening))
            while (message := await read_frame(self._process.stdout, _FRAMES)) is not None:
                if isinstance(message, Outcome):
                    outcome = message
                else:
                    self.progress[run.id] = message
            code = await self._process.wait()
        finally:
            await self._end_trainer()
            self.progress.pop(run.id, None)
        if outcome is None:
            logger.warning("training %s: the trainer ended with %s and no outcome", run.id, _exit_words(code))
        return outcome

    async def _end_trainer(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _finish(self, run: Run, folder: Path, outcome: Outcome) -> None:
        size = 0
        if outcome.passed:
            try:
                packed = await asyncio.to_thread(read_folder, folder / CANDIDATE, self._files)
            except BadReleaseError as error:
                await self._fail(run, "bad_candidate", f"the candidate on disk is damaged: {error}; ask again")
                return
            for data in (*packed.blobs.values(), packed.manifest_bytes):
                await asyncio.to_thread(self._blobs.put, data)
            size = len(packed.manifest_bytes)
        now = self._clock()
        await self._database.write(lambda db: runs.finish(db, self._outbox, run, outcome, manifest_bytes=size, now=now))
        await self._tidy(run)

    async def _fail(self, run: Run, cause: str, sentence: str) -> None:
        now = self._clock()
        await self._database.write(lambda db: runs.fail(db, self._outbox, run, cause, sentence, now=now))
        await self._tidy(run)

    async def _tidy(self, run: Run) -> None:
        """The folder holds raw rows: it goes as soon as the result is safe."""
        await asyncio.to_thread(shutil.rmtree, self._folder / run.id, ignore_errors=True)
        self._log(run).unlink(missing_ok=True)
        if self._raw is not None:
            await asyncio.to_thread(shutil.rmtree, self._raw / run.id, ignore_errors=True)

    def _temporary(self, run: Run) -> Path | None:
        """Where libraries put temporary files on a sealed site; torch leaves some of its own."""
        if self._raw is None:
            return None
        (self._raw / run.id).mkdir(mode=0o700, exist_ok=True)
        return self._raw / run.id

    def _log(self, run: Run) -> Path:
        """Where the trainer's stderr goes; a traceback may quote a row."""
        return self._raw / f"trainer-{run.id}.log" if self._raw else self._folder / run.id / "trainer.log"

    def _last_words(self, run: Run) -> str:
        try:
            with self._log(run).open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(log.tell() - _LAST_WORDS_BYTES, 0))
                words = log.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            words = []
        last = words[-1] if words else "it wrote nothing; out of memory is likely"
        return f"its last words: {last}"

    def _check(self, request: TrainRequest) -> TrainRequest:
        if request.model not in self._definitions:
            known = ", ".join(sorted(self._definitions)) or "none"
            raise TrainingRefusedError(f"model: {request.model[:80]!r} is not defined on this site; known: {known}")
        try:
            first, last = event_time(request.first), event_time(request.last)
        except BadTimeError as error:
            raise TrainingRefusedError(f"first, last: {error}") from error
        if first >= last:
            raise TrainingRefusedError(f"first: {request.first} is not before last {request.last}")
        return msgspec.structs.replace(request, first=first, last=last)


def _environment(threads: int, temporary: Path | None) -> dict[str, str]:
    bounds = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(max(threads, 1)))
    return dict(os.environ) | bounds | ({"TMPDIR": str(temporary)} if temporary else {})


def _exit_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
