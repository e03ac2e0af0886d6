"""Servers as processes: started in sessions of their own, and none of them outlives the bench.

Triton's server and its stubs sit levels below what is started here and used to survive it. So each peer leads a
session, all of which is ended with it, and the bench makes itself the reaper of orphans (Linux:
``PR_SET_CHILD_SUBREAPER``): whoever left the session and lost its parent becomes a child of the bench, ended last.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.peers.environment import HERE, PeerUnavailableError, prepare

PR_SET_CHILD_SUBREAPER = 36
START_S = 90.0
END_S = 4.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens and the processes it is made of."""

    name: str
    port: int
    grpc_port: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """What every peer is told: the folder of graphs, intra-op threads of a run, and how many runs at once."""

    models: Path
    work: Path
    threads: int
    streams: int


def adopt_orphans() -> None:
    """Become the parent of whatever loses its parent below this process."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) was refused")


def free_ports(count: int) -> int:
    """The first of ``count`` neighbouring ports of 127.0.0.1 that are free now."""
    for _ in range(50):
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for offset in range(1, count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except (OSError, OverflowError):
                continue
            return port
    raise OSError(f"no {count} neighbouring free ports on 127.0.0.1")


@contextlib.contextmanager
def peer(name: str, ready_path: str, options: Options) -> Iterator[Server]:
    """The peer, serving; ended with all its descendants on leaving. Raises `PeerUnavailableError`."""
    python, port = prepare(name), free_ports(3)
    work = options.work / name
    work.mkdir(parents=True)
    command = [str(python), str(HERE / name / "serve.py"), "--port", str(port)]
    for option in ("models", "threads", "streams"):
        command += [f"--{option}", str(getattr(options, option))]
    if setpriv := shutil.which("setpriv"):  # ended even when the bench itself is killed
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environ |= {"PYTHONPATH": str(HERE / "bare"), "TMPDIR": str(work)}
    log_path = work / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--work", str(work / "state")],
            env=environ,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_ready(name, process, f"http://127.0.0.1:{port}{ready_path}", log_path)
        yield Server(name, port, port + 1, (process.pid,))
    finally:
        end(process)


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.1)
    words = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise PeerUnavailableError(f"{name}: did not become ready: {' / '.join(words) or 'it said nothing'}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all there is in its session: gently, then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    # It leads a session of its own, so its number names nothing but what it started.
    family = [one for one in psutil.process_iter() if _session(one.pid) == process.pid]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(END_S)
    psutil.wait_procs(family, timeout=END_S)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below this one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end_orphans() -> list[str]:
    """End what was left to this process when its parent died; their names, for there should be none."""
    left = descendants(os.getpid())
    names = []
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(one.name())
            one.kill()
    psutil.wait_procs(left, timeout=END_S)
    return names
