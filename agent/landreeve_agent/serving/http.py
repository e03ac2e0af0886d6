"""HTTP/1.1 on a bare `asyncio.Protocol` with httptools: the hot path, at about 20 µs of CPU a request.

Knows nothing of models: a whole request goes to the handler, an answer comes back at once or later. Requests of
one connection are answered in order. Every limit answers with what it is and closes the connection.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

JSON_TYPE = b"application/json"
DEFAULT_BODY_BYTES = 16 * 1024 * 1024
MAX_HEAD_BYTES = 32 * 1024
MAX_PIPELINED = 64
IDLE_S = 75.0
READ_S = 30.0
LINGER_S = 1.0
_REASONS = {
    200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 413: b"Content Too Large", 415: b"Unsupported Media Type", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 503: b"Service Unavailable",
}  # fmt: skip
_HEADS = {
    status: b"HTTP/1.1 %d %s\r\ncontent-type: " % (status, reason) for status, reason in _REASONS.items()
}  # one formatting less per answer


@dataclass(slots=True)
class Request:
    """A whole request. Header names are lower case."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes = b""
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. ``headers`` are extra lines, each ended by CRLF."""

    status: int
    body: bytes
    content_type: bytes = JSON_TYPE
    headers: bytes = b""


Send = Callable[[Response], None]
Handle = Callable[[Request, Send], None]
Refuse = Callable[[int, str], Response]


@dataclass(slots=True)
class Connections:
    """The open connections of one server and their limits."""

    handle: Handle
    refuse: Refuse
    max_body_bytes: int = DEFAULT_BODY_BYTES
    max_open: int = 1024
    open: "set[HttpProtocol]" = field(default_factory=set)
    broken: int = 0

    def protocol(self) -> "HttpProtocol":
        """A protocol for a new connection."""
        return HttpProtocol(self)

    def sweep(self, now: float) -> None:
        """Close connections that idle or dribble; call every few seconds with the loop's time."""
        for connection in tuple(self.open):
            connection.sweep(now)

    def drain(self) -> None:
        """Close what is idle now and everything else after its answer."""
        for connection in tuple(self.open):
            connection.drain()


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._answering = False
        self._closing = False
        self._paused = False
        self._ended = False
        self._since = self._loop.time()  # of the first byte of a request being read, or of the last answer
        self._reading = False
        self._reset()

    def _reset(self) -> None:
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._body_bytes = 0

    # --- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast("asyncio.Transport", transport)
        self._connections.open.add(self)
        if len(self._connections.open) > self._connections.max_open:
            self._refuse(503, f"{self._connections.max_open} connections are open already")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.open.discard(self)
        self._closing = True
        self._transport = None
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if not self._reading:
            self._reading = True
            self._since = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "upgrade: this server speaks HTTP/1.1 only")
        except httptools.HttpParserError as error:
            if not self._closing:
                self._connections.broken += 1
                self._refuse(400, f"no HTTP/1.1 request: {error}")

    def eof_received(self) -> bool:
        """The client sends no more; it may still wait for its answers. True keeps the connection open."""
        self._ended = True
        return self._answering and not self._closing

    def pause_writing(self) -> None:
        """The client does not read its answers: read no more of its requests."""
        self._paused = True
        self._flow()

    def resume_writing(self) -> None:
        self._paused = False
        self._flow()

    def _flow(self) -> None:
        if self._transport is None or self._closing:
            return
        if self._paused or len(self._waiting) >= MAX_PIPELINED:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # --- the parser's calls

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"headers: more than {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._connections.max_body_bytes:
            self._too_large()
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport and not self._closing:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._closing:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._connections.max_body_bytes:
            self._too_large()
            return
        self._parts.append(body)

    def _too_large(self) -> None:
        self._refuse(413, f"body: larger than {self._connections.max_body_bytes} bytes")

    def on_message_complete(self) -> None:
        if self._closing:
            return
        parts = self._parts
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._path.partition(b"?")[0].decode("latin-1"),
            self._headers,
            parts[0] if len(parts) == 1 else b"".join(parts),
            self._parser.should_keep_alive(),
        )
        self._reading = False
        self._reset()
        if self._answering:
            self._waiting.append(request)
            self._flow()
        else:
            self._answer(request)

    # --- answers

    def _answer(self, request: Request) -> None:
        self._answering = True
        self._connections.handle(request, lambda response: self._send(request, response))

    def _send(self, request: Request, response: Response) -> None:
        self._answering = False
        self._since = self._loop.time()
        if self._transport is None or self._closing:
            return
        keep = request.keep_alive and not (self._ended and not self._waiting)
        self._transport.write(_head(response, keep) + (b"" if request.method == "HEAD" else response.body))
        if not keep:
            self._close()
        elif self._waiting:
            # Not from within this call: a long pipeline would become a deep stack.
            self._answering = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        if self._waiting and not self._closing:
            self._answer(self._waiting.popleft())
            self._flow()

    def _refuse(self, status: int, text: str) -> None:
        """Answer and close; what still comes is read and dropped for a moment, or a reset would eat the answer."""
        if self._transport is None or self._closing:
            return
        self._closing = True
        response = self._connections.refuse(status, text)
        self._transport.write(_head(response, keep_alive=False) + response.body)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(LINGER_S, self._abandon)

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _abandon(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close when idle for too long, or when a request takes too long to arrive."""
        if self._answering or self._closing:
            return
        if self._reading and now - self._since > READ_S:
            self._refuse(408, f"the request did not arrive within {READ_S:g} s")
        elif not self._reading and now - self._since > IDLE_S:
            self._close()

    def drain(self) -> None:
        """The server stops."""
        if not self._answering and not self._reading:
            self._close()


def _head(response: Response, keep_alive: bool) -> bytes:
    connection = b"" if keep_alive else b"connection: close\r\n"
    length = b"\r\ncontent-length: %d\r\n" % len(response.body)
    return _HEADS[response.status] + response.content_type + length + connection + response.headers + b"\r\n"
