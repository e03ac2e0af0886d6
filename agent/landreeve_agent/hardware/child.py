"""Running one of our child programs with a deadline, from the supervisor's side.

A broken driver hangs or crashes whoever asks it. The child is asked instead, in a session of its own, so that a kill
reaches everything it started; its words go to files, so that a talkative library fills no memory of ours.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Literal

_LAST_BYTES = 4096
_MAX_OUTPUT_BYTES = 1_000_000
_KILLED_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.2
How = Literal["", "hung", "crashed", "failed", "stopped"]
Stop = Callable[[], bool]


def never() -> bool:
    """A `Stop` that does not."""
    return False


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: ``cause`` is empty when it did what it was asked to; ``sentence`` says how it did not."""

    output: bytes
    cause: How = ""
    sentence: str = ""


def run_child(command: Sequence[str], deadline_s: float, stop: Stop = never) -> Ended:
    """Run it to its end, at most for ``deadline_s`` or until ``stop`` says so. Blocks: call it in a thread."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = _wait(process, time.monotonic() + deadline_s, stop)
        finally:
            left = _kill(process)
        if code is None:
            how: How = "stopped" if stop() else "hung"
            return Ended(b"", how, f"did not answer within {deadline_s:g} s{left}")
        if code == 0:
            out.seek(0)
            return Ended(out.read(_MAX_OUTPUT_BYTES))
        return _judge(code, _last_words(err))


def _wait(process: "subprocess.Popen[bytes]", until: float, stop: Stop) -> int | None:
    while (left := until - time.monotonic()) > 0 and not stop():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, _LOOK_EVERY_S))
    return None


def _judge(code: int, words: str) -> Ended:
    said = f": {words}" if words else ""
    if code < 0:
        with contextlib.suppress(ValueError):
            return Ended(b"", "crashed", f"crashed with {signal.Signals(-code).name}{said}")
    return Ended(b"", "failed", f"ended with {code}{said}")


def _kill(process: "subprocess.Popen[bytes]") -> str:
    """End it and all it started. What waits inside the kernel cannot be killed; it is left, and told of."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(_KILLED_WITHIN_S)
        except subprocess.TimeoutExpired:
            return " and cannot be killed: it waits inside the driver, which only a restart of the box ends"
    return ""


def _last_words(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - _LAST_BYTES))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""
