"""One process on one state folder: the lock, the ports, the two web servers."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from landreeve_hub.errors import AlreadyRunningError, OperatorError

TRIES = 50
GRACE_S = 2
PEER = "peer"
"""Where the certificate (DER) of who called stands in a request's state."""
LINGER_S = 3.0
Note = Callable[[str], None]


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold the state folder; `AlreadyRunningError` names the process that does. A killed hub holds nothing."""
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise AlreadyRunningError(
                f"a hub already runs on {lock.parent.parent} (process {owner}); stop it first, or use another --state"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True, slots=True)
class Port:
    """A place to listen: what it is for, where, and which port is wanted."""

    name: str
    host: str
    wanted: int


class Ports:
    """Finds free ports and remembers them in ``ports.json``.

    A port that was taken instead of the wanted one is preferred at the next start: devices remember it.
    """

    def __init__(self, path: Path, note: Note) -> None:
        self._path = path
        self._note = note
        self._former = _read(path)
        self._found: dict[str, int] = {}
        self._wanted: dict[str, int] = {}

    def listen(self, port: Port) -> socket.socket:
        """A listening socket on the wanted port, or the next free one, said aloud."""
        for candidate in self._candidates(port):
            try:
                opened = self._open(port, candidate)
            except OSError as error:
                if candidate == 0 or not _is_busy(error):
                    raise OperatorError(
                        f"{port.name}: cannot listen on {port.host}:{candidate}: {error.strerror}; "
                        f"set {port.name}.host (broker.bind) and {port.name}.port"
                    ) from error
                continue
            self._remember(port, opened.getsockname()[1])
            return opened
        raise OperatorError(f"{port.name}: no free port from {port.wanted} on; set {port.name}.port")

    def reserve(self, port: Port) -> int:
        """A port that is free now, for a child to listen on."""
        opened = self.listen(port)
        opened.close()
        return self._found[port.name]

    def found(self, name: str) -> int:
        """The port that is listened on."""
        return self._found[name]

    def write(self, more: Mapping[str, Any]) -> None:
        """Say in ``ports.json`` where everything is."""
        document = {**self._found, **more, "wanted": self._wanted}
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self._path)

    def _open(self, port: Port, candidate: int) -> socket.socket:
        """Devices remember the former port: what a killed hub leaves on it for a moment is waited out."""
        deadline = time.monotonic() + (LINGER_S if candidate == self._former.get(port.name) else 0)
        while True:
            try:
                return _open(port.host, candidate)
            except OSError as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)

    def _candidates(self, port: Port) -> list[int]:
        former = self._former.get(port.name)
        same = self._former.get("wanted", {}).get(port.name) == port.wanted
        before = [former] if same and isinstance(former, int) else []
        if port.wanted == 0:
            return [*before, 0]
        return [*before, *(number for number in range(port.wanted, port.wanted + TRIES) if number < 65_536)]

    def _remember(self, port: Port, found: int) -> None:
        self._found[port.name] = found
        self._wanted[port.name] = port.wanted
        if port.wanted not in {0, found}:
            self._note(f"port {port.wanted} is taken; {port.name} is on port {found} instead")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _open(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=256)


def _is_busy(error: OSError) -> bool:
    return error.errno in {errno.EADDRINUSE, errno.EACCES}


class WebServer(uvicorn.Server):
    """uvicorn that leaves signals to the hub: two of them share one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing is captured."""
        yield


@dataclass(frozen=True, slots=True)
class Tls:
    """What a server shows, and whose certificates it lets authenticate a caller (none is demanded)."""

    key: Path
    certificate: Path
    trust: Path


class _WithPeer(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Hands the certificate of who called to the application, in ``scope["state"]``."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state: dict[str, Any] = {**self.app_state, PEER: tls.getpeercert(binary_form=True)}


def web_server(app: Any, *, lifespan: bool, tls: Tls | None = None) -> WebServer:
    """A server for an application, in TLS when it is told what to show."""
    return WebServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on" if lifespan else "off",
            timeout_graceful_shutdown=GRACE_S,
            http=_WithPeer if tls else "auto",
            ssl_keyfile=str(tls.key) if tls else None,
            ssl_certfile=str(tls.certificate) if tls else None,
            ssl_ca_certs=str(tls.trust) if tls else None,
            ssl_cert_reqs=ssl.CERT_OPTIONAL if tls else ssl.CERT_NONE,
        )
    )


def show_anew(server: WebServer, tls: Tls) -> None:
    """From the next connection on: the certificate that is in the files now, and whoever is trusted now as well."""
    context = server.config.ssl
    if context is not None:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.trust)
