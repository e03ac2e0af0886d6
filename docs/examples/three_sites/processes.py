"""Start the programs of the demo, keep them up, end them all.

A site's service manager (systemd) restarts a service that dies; here `Keeper` does. Every child asks the kernel
to end with this process, so a killed demo leaves nothing behind.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Runs in the child before exec: SIGTERM when the demo is gone, and its own signal group."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Service:
    """One kept program: its command, its log, whether it should run."""

    name: str
    command: list[str]
    log: Path
    environ: dict[str, str] = field(default_factory=dict)
    wanted: bool = False
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.environ},
                preexec_fn=die_with_parent,  # noqa: PLW1509  (one prctl call, no locks are taken)
                start_new_session=True,
            )
        self.starts += 1

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Keeper:
    """Keeps services up from a thread of its own until told otherwise."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._thread.start()

    def keep(self, service: Service) -> None:
        """Start it and start it again whenever it ends."""
        with self._lock:
            self._services[service.name] = service
            service.wanted = True
            service.start()

    def kill(self, name: str) -> None:
        """SIGKILL, and do not restart until `revive`."""
        with self._lock:
            service = self._services[name]
            service.wanted = False
            if service.process:
                service.process.kill()
                service.process.wait()

    def revive(self, name: str) -> None:
        with self._lock:
            service = self._services[name]
            service.wanted = True
            service.start()

    def service(self, name: str) -> Service:
        return self._services[name]

    def starts(self) -> dict[str, int]:
        return {name: service.starts for name, service in self._services.items()}

    def close(self, grace_s: float = 12.0) -> None:
        """SIGTERM to all, SIGKILL to what is still there after the grace."""
        self._closing.set()
        with self._lock:
            running = [s for s in self._services.values() if s.running()]
            for service in running:
                service.wanted = False
                _signal(service, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            for service in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if service.process:
                        service.process.wait(max(0.1, deadline - time.monotonic()))
                if service.running():
                    print(f"{service.name} did not end within {grace_s:.0f} s and is killed", file=sys.stderr)
                    _signal(service, signal.SIGKILL)

    def _watch(self) -> None:
        while not self._closing.wait(0.3):
            with self._lock:
                for service in self._services.values():
                    if service.wanted and not service.running() and not self._closing.is_set():
                        service.start()


def _signal(service: Service, number: signal.Signals) -> None:
    if service.process:
        with contextlib.suppress(ProcessLookupError):
            os.kill(service.process.pid, number)


class Program:
    """A child that is talked to line by line: the site's application."""

    def __init__(self, command: list[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  (as above)
            start_new_session=True,
        )
        self.name = command[1]

    @property
    def lines(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """The next line it prints; `EOFError` when it has ended."""
        line = self.lines.readline()
        if not line:
            raise EOFError(f"the application ended with code {self._process.wait()}; see {self._log.name}")
        return line

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._log.close()
