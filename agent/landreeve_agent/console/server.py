"""The HTTP server of console and local API, inside the supervisor's event loop."""

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from landreeve_agent.console.access import Doors, Sessions, Tokens
from landreeve_agent.console.api import LocalApi
from landreeve_agent.console.guard import Guard
from landreeve_agent.launch import sockets
from landreeve_agent.serving.door import Door

logger = logging.getLogger(__name__)

TRIED_PORTS = 50
BACKLOG = 1024


class _Server(uvicorn.Server):
    """The supervisor owns the signals: uvicorn's own handlers would end only the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class ConsoleServer:
    """Serves until `stop`; then open streams end and the server with them."""

    app: Any
    listener: socket.socket
    on_stop: Callable[[], None]
    _server: uvicorn.Server | None = None

    async def run(self) -> None:
        """Serve; returns after `stop`."""
        config = uvicorn.Config(
            self.app,
            lifespan="off",
            ws="none",  # nothing here speaks WebSocket; its library would be loaded all the same
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        self._server = _Server(config)
        # A copy of the socket: uvicorn closes what it is given, and a restarted room must find it open.
        await self._server.serve(sockets=[self.listener.dup()])

    def stop(self) -> None:
        """Ask it to end."""
        self.on_stop()
        if self._server is not None:
            self._server.should_exit = True


def build(
    api: LocalApi, doors: Doors, tokens: Tokens, sessions: Sessions, version: str, *, inference: Door | None = None
) -> tuple[Guard, Callable[[], None]]:
    """The guarded application, and what must be called to end its open streams. ``inference`` is the door of the
    inference server, for a console that asks it."""
    app = FastAPI(
        title="Landreeve on this box",
        version=version,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.state.inference = inference or Door()
    api.install(app)
    close_pages = _install_pages(app)

    def stop() -> None:
        api.closing.set()
        close_pages()

    return Guard(app, doors, tokens, sessions), stop


def _install_pages(app: FastAPI) -> Callable[[], None]:
    from landreeve_agent.console import pages

    return pages.install(app).close


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on that port, or on the next free one when it is busy (0 takes any).

    Raises OSError when none of the next 50 is free or the address is not this box's.
    """
    for candidate in range(port, min(port + TRIED_PORTS, 65536)) if port else (0,):
        try:
            return sockets.listen(host, candidate, BACKLOG)
        except OSError as error:
            if not isinstance(error, PermissionError) and error.errno != errno.EADDRINUSE:
                raise
            failed = error
    raise OSError(f"no free port from {port} to {port + TRIED_PORTS - 1} on {host}: {failed}")
