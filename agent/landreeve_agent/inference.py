"""The worker, started when the first model is wanted, on an address that is known from the start."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from landreeve_agent.serving.control import Route, WorkerStatus
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.supervise import WorkerProcess

logger = logging.getLogger(__name__)

OnRestart = Callable[[str, int], None]


@dataclass
class Inference:
    """Serves routes; without any there is no process. ``hold`` keeps the port until the worker listens on it."""

    spool: Path
    hold: socket.socket
    on_restart: OnRestart
    _worker: WorkerProcess | None = field(default=None)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the inference server."""
        host, port = self.hold.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """Its base URL."""
        host, port = self.address
        return f"http://{host}:{port}"

    async def apply(self, routes: tuple[Route, ...]) -> None:
        """Serve exactly these routes. Raises `landreeve_agent.serving.errors.LoadFailedError`."""
        if self._worker is None and not routes:
            return
        await (await self._started()).apply(routes)

    async def status(self) -> WorkerStatus | None:
        """How the worker is; None while none was wanted."""
        return await self._worker.status() if self._worker is not None else None

    async def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            await self._worker.stop()
            self._worker = None

    async def _started(self) -> WorkerProcess:
        if self._worker is None:
            host, port = self.address
            worker = WorkerProcess(self.spool, host, port, on_restart=self.on_restart)
            try:
                await worker.start()
            except OSError as error:
                raise LoadFailedError(
                    "port_taken", f"{self.url}: {error.strerror}; set another serving.port"
                ) from error
            self._worker = worker
            logger.info("the inference server answers on %s", self.url)
        return self._worker


def hold_port(host: str, port: int, tried: int = 50) -> socket.socket:
    """A socket bound, not listening, to that port or the next free one (0 takes any).

    Bound with SO_REUSEADDR, it lets the worker's own socket listen there and keeps the number ours meanwhile.
    """
    failed: OSError | None = None
    for candidate in range(port, min(port + tried, 65536)) if port else (0,):
        try:
            return _bind_only(host, candidate)
        except OSError as error:
            failed = error
    raise OSError(f"serving.port: no free port from {port} on {host}: {failed}")


def _bind_only(host: str, port: int) -> socket.socket:
    if port and is_taken(host, port):
        raise OSError(f"port {port} is in use")
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there: asked by listening, because connecting would disturb whoever it is."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return True
    return False
