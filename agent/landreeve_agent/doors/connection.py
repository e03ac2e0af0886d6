"""One kept connection to the inference server of this box, for doors that ask it on behalf of others.

It speaks just the HTTP/1.1 that our own worker speaks (every answer has a content length): a general client costs
more CPU for one request than the prediction does. Not safe for threads: each thread has its own.
"""

import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import msgspec

from landreeve_agent.doors.errors import SetupError, UnreachableError

TIMEOUT_S = 120.0
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_MAX_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024
AGAIN = (429, 503)  # the same request may well be answered a moment later


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and a body, JSON in all we ask for."""

    status: int
    body: bytes

    @property
    def document(self) -> Any:
        """The body's document; `UnreachableError` when whoever listens there does not speak JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise UnreachableError(f"the inference server answered {self.body[:80]!r}, no JSON") from error

    @property
    def reason(self) -> str:
        """The sentence of a refusal."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        text = found.get("error") if isinstance(found, dict) else None
        return str(text) if text else f"HTTP status {self.status}"


class Server(msgspec.Struct, frozen=True):
    """Where the inference server of this box is. Bound beyond loopback it speaks TLS and wants a token: then
    ``certificate`` and ``token_file`` name the files of both."""

    host: str
    port: int
    certificate: str = ""
    token_file: str = ""

    def context(self) -> ssl.SSLContext | None:
        """TLS to nobody but the holder of that very certificate; None without one. `SetupError` when it is unusable."""
        if not self.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # it is issued for the box's public name; we ask by address and pin it instead
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(self.certificate)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"{self.certificate}: {error}") from error
        return context

    def token(self) -> str:
        """The token in the file, empty without one. Raises `SetupError`."""
        try:
            return Path(self.token_file).read_text(encoding="ascii").strip() if self.token_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"{self.token_file}: {error}") from error


class Connection:
    """Asks and waits. A connection that the other side has closed meanwhile is made anew once: every request may be
    repeated, for its rows carry ids. Close it, or use it in a ``with``."""

    def __init__(self, server: Server, timeout_s: float = TIMEOUT_S) -> None:
        self._address = (server.host.strip("[]"), server.port)
        self._timeout_s = timeout_s
        self._context = server.context()
        token = server.token()
        self._authorization = f"authorization: Bearer {token}\r\n" if token else ""
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def infer(self, model: str, version: str | None, body: bytes) -> Reply:
        """``POST /v2/models/{model}[/versions/{version}]/infer``. Raises `UnreachableError`."""
        tail = f"/versions/{quote(version, safe='')}" if version else ""
        return self.ask("POST", f"/v2/models/{quote(model, safe='')}{tail}/infer", body)

    def get(self, path: str) -> Reply:
        """GET a path. Raises `UnreachableError`."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """One request and its answer. Raises `UnreachableError` when there is none."""
        kept = self._socket is not None
        try:
            return self._exchange(method, path, body)
        except TimeoutError as error:
            self.close()
            raise UnreachableError(f"{self._where}: no answer within {self._timeout_s:g} s") from error
        except OSError as error:
            self.close()
            if not kept:
                raise UnreachableError(f"{self._where}: {error.strerror or error}") from error
        return self.ask(method, path, body)

    def close(self) -> None:
        """Give the connection up; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def _where(self) -> str:
        return f"inference server {self._address[0]}:{self._address[1]}"

    def _exchange(self, method: str, path: str, body: bytes) -> Reply:
        if self._socket is None:
            self._socket = self._connect()
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{self._authorization}content-length: {len(body)}"
        self._socket.sendall(head.encode() + b"\r\n\r\n" + body)
        return self._receive(self._socket)

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, self._timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(sock) if self._context else sock

    def _receive(self, sock: socket.socket) -> Reply:
        got = bytearray()
        while (end := got.find(b"\r\n\r\n")) < 0:
            if len(got) > _MAX_HEAD_BYTES:
                raise ConnectionError("the head of the answer does not end")
            got += _piece(sock)
        first, *lines = bytes(got[:end]).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if length > MAX_ANSWER_BYTES:
            raise ConnectionError(f"an answer of {length} bytes")
        del got[: end + 4]
        while len(got) < length:
            got += _piece(sock)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(int(first.split(" ", 2)[1]), bytes(got))


def _piece(sock: socket.socket) -> bytes:
    piece = sock.recv(_PIECE_BYTES)
    if not piece:
        raise ConnectionResetError("the connection was closed")
    return piece
