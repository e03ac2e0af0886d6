"""A door's process, as the supervisor keeps it (`landreeve_agent.doors.kept` is the other side).

A door talks to strangers' brokers and files, so it does so in a process of its own: what goes wrong there costs the
supervisor nothing. It gets its options as one line of JSON on stdin, where no other user of the box can read them,
and ends when stdin ends.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from landreeve_agent.errors import RoomFailedError
from landreeve_agent.serving.control import let_go, read_lines

_END_S = 5.0


@dataclass
class Door:
    """A child that runs ``module`` with ``options``; `run` is a room of the supervisor."""

    name: str
    module: str
    options: Callable[[], msgspec.Struct]

    async def run(self) -> None:
        """Keep one child until cancelled; `RoomFailedError` with its last words when it ends by itself."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self.module, "--parent", str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        words: deque[str] = deque(maxlen=1)
        hearing = asyncio.create_task(self._hear(process, words))
        try:
            assert process.stdin is not None  # noqa: S101 - it was spawned with a pipe
            process.stdin.write(msgspec.json.encode(self.options()) + b"\n")
            code = await process.wait()
            await hearing
            raise RoomFailedError(f"{self.name} ended with code {code}: {' '.join(words) or 'no last words'}")
        finally:
            await _end(process)
            await hearing
            await let_go(process)

    async def _hear(self, process: asyncio.subprocess.Process, words: deque[str]) -> None:
        log = logging.getLogger(f"landreeve.{self.name}")
        assert process.stderr is not None  # noqa: S101 - it was spawned with a pipe
        async for line in read_lines(process.stderr):
            words.append(line)
            log.info("%s", line)


async def _end(process: asyncio.subprocess.Process) -> None:
    """By closing its stdin; by force when that takes too long."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
