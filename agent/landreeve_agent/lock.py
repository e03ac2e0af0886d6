"""One supervisor for each state folder: an advisory lock the kernel drops when its holder dies."""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from landreeve_agent.errors import AlreadyRunningError, StateError

_TRIES = 5
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Lock:
    """A held lock; keep it for as long as the process lives."""

    descriptor: int

    def release(self) -> None:
        """Let go. The file stays: deleting it would let two holders lock two files of one name."""
        os.close(self.descriptor)


def take(path: Path) -> Lock:
    """Take the lock; `AlreadyRunningError` names the process that holds it."""
    descriptor = _open(path)
    for _ in range(_TRIES):
        if _lock(descriptor, fcntl.LOCK_EX):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return Lock(descriptor)
        time.sleep(_PAUSE_S)  # `is_held` takes it for a moment to look
    holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
    os.close(descriptor)
    raise AlreadyRunningError(
        f"another landreeve runs on {path.parent.parent} (process {holder}); stop it first, "
        "or give this one its own folder with --state"
    )


def is_held(path: Path) -> bool:
    """Whether a supervisor holds the lock now."""
    if not path.exists():
        return False
    descriptor = _open(path)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; the state folder must be writable") from error


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
