"""One worker process and the conversation with it, over its stdin and stdout."""

import asyncio
import contextlib
import itertools
import logging
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from landreeve_agent.serving.control import (
    NO_SECRETS,
    Apply,
    Ask,
    BadFrameError,
    FromWorker,
    Hello,
    Leave,
    Lost,
    Secrets,
    frame,
    let_go,
    read_frame,
    read_lines,
)
from landreeve_agent.serving.deathsig import exit_words
from landreeve_agent.serving.ending import HUNG, NOTHING
from landreeve_agent.serving.recorder import NOTED, Region

_log = logging.getLogger("landreeve.worker")
# The run that a thread died in, as faulthandler writes its stack; Python's own tracebacks have a comma before "in".
_DIED_IN = re.compile(rf".* line \d+ in {NOTED}([0-9a-f]+)$")


class WorkerGoneError(ConnectionError):
    """The worker ended before it answered."""


class Conversation:
    """One worker process and the conversation with it."""

    def __init__(
        self, process: asyncio.subprocess.Process, lost: Callable[[Lost], None], region: Region | None = None
    ) -> None:
        self._process = process
        self._lost = lost
        self._region = region
        self._died = ""
        self.marks = NOTHING
        """What was under way when it ended, after `gone`."""
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[FromWorker]] = {}
        self._words: deque[str] = deque(maxlen=40)
        self.hello = asyncio.Event()
        self.ended = asyncio.Event()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._hear())]

    @classmethod
    async def spawn(
        cls, listening: socket.socket, arguments: list[str], secret: Secrets, lost: Callable[[Lost], None]
    ) -> "Conversation":
        """Start a worker on the listening socket; ``lost`` hears of the models' own processes."""
        arguments = ["--fd", str(listening.fileno()), "--parent", str(os.getpid()), *arguments]
        region = _region()
        if region is not None:
            arguments += ["--recorder", str(region.descriptor)]
        with _piped(secret) as secrets:
            if secrets:
                arguments += ["--secrets", str(secrets[0])]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "landreeve_agent.serving.worker",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(listening.fileno(), *secrets, *((region.descriptor,) if region else ())),
                # numpy's own thread pool, one thread for each core of the box, has nothing to do in a worker.
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
        return cls(process, lost, region)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    async def ask(self, make: Callable[[int], Apply | Ask | Leave]) -> FromWorker:
        """Send a message and wait for its answer; `WorkerGoneError` when the worker ends first."""
        if self.ended.is_set():
            raise WorkerGoneError("the worker has ended")
        seq = next(self._numbers)
        answer: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        self._asked[seq] = answer
        assert self._process.stdin is not None  # noqa: S101 - it was spawned with a pipe
        try:
            self._process.stdin.write(frame(make(seq)))
            return await answer
        finally:
            self._asked.pop(seq, None)

    async def _listen(self) -> None:
        decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
        assert self._process.stdout is not None  # noqa: S101 - it was spawned with a pipe
        try:
            while (message := await read_frame(self._process.stdout, decoder)) is not None:
                if isinstance(message, Hello):
                    self.hello.set()
                elif isinstance(message, Lost):
                    self._lost(message)
                elif (future := self._asked.get(message.seq)) is not None and not future.done():
                    future.set_result(message)
        except BadFrameError as error:
            self._words.append(str(error))
            self.kill()
        await self._process.wait()
        self.ended.set()
        self.hello.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(WorkerGoneError("the worker has ended"))

    async def _hear(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it was spawned with a pipe
        async for line in read_lines(self._process.stderr):
            self._words.append(line)
            if not self._died and (run := _DIED_IN.match(line)) is not None:
                self._died = run[1]
            _log.info("%s", line)

    def kill(self) -> None:
        """End it by force."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self, patience_s: float) -> None:
        """End it by closing its stdin; by force after ``patience_s``."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(patience_s):
                await self.ended.wait()
        except TimeoutError:
            self.kill()
        await asyncio.gather(*self._tasks)
        await let_go(self._process)
        self._close()

    def _close(self) -> None:
        if self._region is not None:
            self.marks = replace(self._region.read(), died=self._died)
            self._region.close()
            self._region = None

    async def gone(self, *, hung: bool) -> str:
        """Wait for the end; how it ended: ``signal SIGSEGV``, ``exit 1 (last words)``, ``hung``."""
        await asyncio.gather(*self._tasks)
        await let_go(self._process)
        self._close()
        code = self._process.returncode or 0
        if hung:
            return HUNG
        words = f" ({self._words[-1][:200]})" if code >= 0 and self._words else ""
        return exit_words(code) + words


def _region() -> Region | None:
    """Memory for the flight recorder; without any, nobody is suspected."""
    try:
        return Region()
    except OSError as error:
        _log.warning("what the worker runs cannot be noted: %s", error)
        return None


@contextlib.contextmanager
def _piped(secrets: Secrets) -> Iterator[tuple[int, ...]]:
    """A pipe's end that holds the secrets, or none where there are none; closed here once it has been passed on, or
    could not be. Not an argument, nor the environment: those can be read by other programs."""
    if secrets == NO_SECRETS:
        yield ()
        return
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(msgspec.json.encode(secrets))
        yield (reading,)
    finally:
        os.close(reading)
