"""Become another program that ends when its parent does: ``python -m landreeve_hub.broker.tether PARENT PROGRAM …``.

A hub that is killed cannot stop its broker; the kernel can (Linux, ``PR_SET_PDEATHSIG``). It is asked for here,
after the fork and in a process without threads, because code between fork and exec of a threaded parent may
deadlock. Elsewhere the program just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tether(parent: int) -> None:
    """Ask the kernel to kill this process with its parent; leave when the parent is gone already."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise SystemExit(0)


def raise_file_limit() -> None:
    """As many connections as the system allows: the usual soft limit of 1,024 open files is fewer than a fleet has
    devices, and mosquitto takes it as it finds it."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: list[str]) -> None:
    """Tether, then become the program."""
    tether(int(arguments[0]))
    raise_file_limit()
    os.execv(arguments[1], arguments[1:])  # noqa: S606  becoming the broker is the point


if __name__ == "__main__":
    main(sys.argv[1:])
