"""Prove a release on this box before it serves: the supervisor's side, which imports no ML runtime.

The child does the work and may hang or die in a driver. When it does so on a candidate plan, that plan is left
out and another child goes on; when on the default plan, the release is refused.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from landreeve.blobs.files import PLAIN, Files

from landreeve_agent.serving.control import BadFrameError, Plan, frame, let_go, read_frame, read_lines
from landreeve_agent.tuning.report import WORK, FromChild, Limits, PreflightFailed, PreflightReport, Task, Trying

_CHILD = (sys.executable, "-m", "landreeve_agent.tuning.child")
_MAX_CHILDREN = 6
_OWN_SHARE = 0.85  # of the deadline: what the child may spend by its own clock


class Preflight:
    """Runs preflights. ``budget_s`` is the time given to timing plans; ``wanted`` the device that is asked for
    (``auto``, ``npu``, ``gpu``, ``cpu``); ``objective`` what a plan is chosen for and ``limits`` what it may cost
    besides; ``exhaustive`` tries what facts of graph and box speak against, too; ``fresh`` takes no earlier result;
    ``command`` starts the child. ``files`` reads the releases' folders; on a sealed site ``raw`` is a folder in memory
    for what libraries write."""

    def __init__(
        self,
        budget_s: float = 3.0,
        command: Sequence[str] = _CHILD,
        *,
        wanted: str = "auto",
        objective: Literal["latency", "throughput"] = "latency",
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        exhaustive: bool = False,
        fresh: bool = False,
        files: Files = PLAIN,
        raw: Path | None = None,
    ) -> None:
        self._budget_s = budget_s
        self._wanted = wanted
        self._objective = objective
        self._limits = limits
        self._exhaustive = exhaustive
        self._fresh = fresh
        self._files = files
        self._raw = raw
        self._command = tuple(command)

    async def run(
        self,
        folder: Path,
        *,
        current: Path | None = None,
        threads: int,
        deadline_s: float,
        wanted: str = "",
        hints: tuple[Plan, ...] = (),
    ) -> PreflightReport | PreflightFailed:
        """Prove the release in ``folder`` and choose its plan, within ``deadline_s``.

        ``current`` is the release that serves now, if any; ``wanted`` overrides the device asked for; ``hints`` are
        plans that won on boxes of this class.
        """
        until = asyncio.get_running_loop().time() + deadline_s
        # Children of one preflight share the graphs they make; those of one that was killed may be of other quantisers.
        await asyncio.to_thread(shutil.rmtree, folder / WORK, ignore_errors=True)
        try:
            raw = await asyncio.to_thread(tempfile.mkdtemp, dir=self._raw) if self._raw else ""
        except OSError as error:
            return PreflightFailed(cause="preflight_broken", sentence=f"{self._raw}: {error.strerror}")
        task = Task(
            folder=str(folder),
            current=str(current) if current else None,
            threads=threads,
            budget_s=min(self._budget_s, deadline_s / 3),
            wanted=wanted or self._wanted,
            hints=hints,
            objective=self._objective,
            limits=self._limits,
            exhaustive=self._exhaustive,
            fresh=self._fresh,
            opening=self._files.opening,
            raw=raw,
        )
        try:
            return await self._prove(task, until, deadline_s)
        finally:
            if raw:
                await asyncio.to_thread(shutil.rmtree, raw, ignore_errors=True)

    async def _prove(self, task: Task, until: float, deadline_s: float) -> PreflightReport | PreflightFailed:
        """Children one after the other, each without what the ones before it died of."""
        loop, skip = asyncio.get_running_loop(), dict[str, str]()
        for _ in range(_MAX_CHILDREN):
            time_s = max(1.0, (until - loop.time()) * _OWN_SHARE)
            child = _Child(self._command, step_s=deadline_s / 2)
            ended = await child.run(msgspec.structs.replace(task, skip=skip, time_s=time_s), until - loop.time())
            if ended is not None:
                return ended
            if child.step.vital:
                return PreflightFailed(cause=child.cause, sentence=f"{child.how} at: {child.step.what}")
            if loop.time() >= until:
                return PreflightFailed(cause="deadline", sentence=f"not done within {deadline_s:g} s")
            skip[child.step.what] = child.how
        return PreflightFailed(cause="crashed", sentence=f"{_MAX_CHILDREN} children died, last at: {child.step.what}")


class _Child:
    """One child's life."""

    def __init__(self, command: tuple[str, ...], step_s: float) -> None:
        self._command = command
        self._step_s = step_s
        self.step = Trying(what="start", vital=True)
        self.cause = "crashed"
        self.how = ""

    async def run(self, task: Task, deadline_s: float) -> PreflightReport | PreflightFailed | None:
        """The child's last word, or None when it ended without one (see ``step``, ``cause``, ``how``)."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            "--parent",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        words = asyncio.create_task(_last_words(process.stderr))
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the child was started without pipes")
            process.stdin.write(frame(task))
            async with asyncio.timeout(deadline_s):
                ended = await self._follow(process.stdout)
                if ended is None:
                    await process.wait()  # its own way to end tells more than our kill would
        except TimeoutError:
            self.cause, self.how = "hung", f"the child did not answer within {min(self._step_s, deadline_s):.0f} s"
            return None
        except BadFrameError as error:
            self.cause, self.how = "preflight_broken", f"the child spoke no frame: {error}"
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
            said = await words
            await let_go(process)
        if ended is None:
            self.how = f"the child died ({_named(code)}{': ' + said if said else ''})"
        return ended

    async def _follow(self, reader: asyncio.StreamReader) -> PreflightReport | PreflightFailed | None:
        decoder: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
        while True:
            coming = read_frame(reader, decoder)
            async with asyncio.timeout(self._step_s):
                message = await coming
            if not isinstance(message, Trying):
                return message
            self.step = message


async def _last_words(stream: asyncio.StreamReader | None) -> str:
    last = ""
    if stream is not None:
        async for line in read_lines(stream):
            last = line.strip() or last
    return last[:200]


def _named(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit {code}"
