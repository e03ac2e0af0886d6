"""Children that never outlive their parent, on Linux; elsewhere the closed pipe must do.

A child of ours exits when its stdin ends. That covers a parent that dies, but not a child that hangs in native
code and reads nothing: the kernel's own signal does.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
WORKER_OOM = 500
HOST_OOM = 700
ASIDE_OOM = 900
"""What works beside what serves (a preflight, a training) goes first when memory runs out."""
ASIDE_NICE = 10


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; exit at once if that has happened already.

    The kernel means the *thread* that started this process: whoever starts one must live as long as it.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"parent {parent} is gone")


def prefer_for_oom(score: int = WORKER_OOM) -> None:
    """Let the kernel take this process before the supervisor when memory runs out."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError:
        return  # not Linux, or forbidden: the supervisor is then as likely a victim as anybody


def give_way() -> None:
    """Leave processor and memory to whatever serves: for children whose work can wait, or be done again."""
    prefer_for_oom(ASIDE_OOM)
    os.nice(max(0, ASIDE_NICE - os.nice(0)))


def exit_words(code: int) -> str:
    """How a child ended.

    >>> exit_words(-11), exit_words(3)
    ('signal SIGSEGV', 'exit 3')
    """
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit {code}"
