"""HTTP/1.1 on a bare asyncio protocol: the hot path, at about 10 µs of CPU a request.

Knows nothing of models: a whole request goes to the handler, an answer comes back at once or later. Requests of
one connection are answered in order. Every limit answers with what it is and closes the connection.

A large body is received straight into the memory the model reads it from.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec

from landreeve_agent.serving.heads import BadHeadError, Head, Heads

JSON_TYPE = b"application/json"
DEFAULT_BODY_BYTES = 16 * 1024 * 1024
MAX_HEAD_BYTES = 32 * 1024
MAX_PIPELINED = 64
IDLE_S = 75.0
READ_S = 30.0
LINGER_S = 1.0
HALF_CLOSED_S = 1.0
LARGE_BYTES = 64 * 1024
LINE_BYTES = 64  # a cache line: what begins on one is aligned for any number
_REASONS = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict", 413: b"Content Too Large",
    415: b"Unsupported Media Type", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip
_HEADS = {
    status: b"HTTP/1.1 %d %s\r\ncontent-type: " % (status, reason) for status, reason in _REASONS.items()
}  # one formatting less per answer
_END = b"\r\n\r\n"
Body = bytes | memoryview


class Request(msgspec.Struct, eq=False):
    """A whole request. A handler that takes its time may set ``on_gone``, called when the caller has left."""

    head: Head
    body: Body
    on_gone: Callable[[], None] | None = None

    @property
    def method(self) -> str:
        """GET, POST, …"""
        return self.head.method

    @property
    def path(self) -> str:
        """The path without its query."""
        return self.head.path

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Values by lower-case names."""
        return self.head.headers


class Response(msgspec.Struct, frozen=True, gc=False):
    """A whole answer. ``headers`` are extra lines, each ended by CRLF."""

    status: int
    body: bytes
    content_type: bytes = JSON_TYPE
    headers: bytes = b""


Send = Callable[[Response], None]
Handle = Callable[[Request, Send], None]
Refuse = Callable[[int, str], Response]
Admit = Callable[[dict[bytes, bytes], str], Response | None]


@dataclass(slots=True)
class Connections:
    """The open connections of one server and their limits. ``admit`` says who is refused by headers and path."""

    handle: Handle
    refuse: Refuse
    max_body_bytes: int = DEFAULT_BODY_BYTES
    max_open: int = 1024
    admit: Admit | None = None
    open: "set[HttpProtocol]" = field(default_factory=set)
    broken: int = 0
    heads: Heads = field(default_factory=Heads)
    leaving: bool = False  # each connection ends after its next answer

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return any(connection.busy for connection in self.open)

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


class _Body:
    """A body of known length, on its way into its own memory, where its binary part begins on a cache line."""

    __slots__ = ("_at", "_view", "head")

    def __init__(self, head: Head, begun: memoryview) -> None:
        import numpy as np  # a bytearray would be written with zeros first; memory never touched costs nothing

        self.head = head
        memory = np.empty(head.length + LINE_BYTES, np.uint8)
        # Numbers that lie across their own size cost a copy, and 20 times the time to look at them.
        start = -(memory.ctypes.data + head.binary_at) % LINE_BYTES
        self._view = memory.data[start : start + head.length]
        self._view[: len(begun)] = begun
        self._at = len(begun)

    def rest(self) -> memoryview:
        """Where the next bytes go."""
        return self._view[self._at :]

    def received(self, count: int) -> memoryview | None:
        """Count bytes in; the whole body when they were the last."""
        self._at += count
        return self._view if self._at == len(self._view) else None


class _Chunks:
    """A body in chunks, put together by httptools; the connection closes after its answer."""

    def __init__(self, head: Head, data: bytes, max_bytes: int) -> None:
        self.head = head
        self.whole = False
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._bytes = 0
        self._parser = httptools.HttpRequestParser(self)
        head.keep_alive = False
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Parse more; raises `BadHeadError`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.whole:  # what follows the body belongs to nobody
                raise BadHeadError(400, f"no HTTP/1.1 request: {error}") from error
        if self._bytes > self._max_bytes:
            raise BadHeadError(413, f"body: larger than {self._max_bytes} bytes")

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)
        if self._bytes <= self._max_bytes:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self.whole = True

    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self._parts)


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._closing = False
        self._paused = False
        self._ended = False
        self._since = self._loop.time()  # of the first byte of a request being read, or of the last answer
        self._begun = b""
        self._body: _Body | None = None
        self._chunks: _Chunks | None = None

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
        self._body = self._chunks = None
        self._tell_gone()

    def data_received(self, data: bytes) -> None:
        """These bytes have come."""
        if self._closing or (self._current is None and not self._reading and self._take_usual(data)):
            return
        if self._body is not None:
            rest = self._body.rest()
            count = min(len(rest), len(data))
            rest[:count] = data[:count]
            self.body_received(self._body, count)
            data = data[count:]
        try:
            self._read(self._begun + data if self._begun else data)
        except BadHeadError as error:
            self._connections.broken += error.status == 400
            self._refuse(error.status, str(error))

    def _take_usual(self, data: bytes) -> bool:
        """The usual case, decided at once: these bytes are one whole request whose head has come before."""
        connections = self._connections
        end = data.find(_END) + 4
        head = connections.heads.seen.get(data[:end])
        if head is None or head.length != len(data) - end or head.length > connections.max_body_bytes:
            return False
        if connections.admit is not None:
            return False
        request = self._current = Request(head, data[end:])
        connections.handle(request, self._send)
        return True

    def body_received(self, body: _Body, count: int) -> None:
        """That many more bytes of the body are where they belong."""
        whole = body.received(count)
        if whole is not None and not self._closing:
            self._body = None
            self._take(body.head, whole)

    def eof_received(self) -> bool:
        """The client sends no more; it may still wait for its answers. True keeps the connection open."""
        self._ended = True
        if self._current is None or self._closing:
            return False
        # One that has left looks like one that only sends no more; the second kind gets a moment's patience.
        self._loop.call_later(HALF_CLOSED_S, self._tell_gone)
        return True

    def _tell_gone(self) -> None:
        if self._current is not None and self._current.on_gone is not None:
            self._current.on_gone()

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

    # --- requests

    def _read(self, data: bytes) -> None:
        """Take every whole request out of the bytes and keep the rest."""
        self._begun = b""
        if self._chunks is not None:
            self._more_chunks(data)
            return
        at = 0
        while at < len(data) and not self._closing:
            end = data.find(_END, at) + 4
            if end < 4:
                self._keep(data[at:])
                return
            if end - at > MAX_HEAD_BYTES:
                raise BadHeadError(431, f"headers: more than {MAX_HEAD_BYTES} bytes")
            head = self._connections.heads.find(data[at:end])
            if (admit := self._connections.admit) is not None:
                refusal = admit(head.headers, head.path)
                if refusal is not None:
                    self._refuse_with(refusal)
                    return
            if head.length or head.chunked:
                end = self._read_body(head, data, at, end)
                if end < 0:
                    return
            else:
                self._take(head, b"")
            at = end

    def _read_body(self, head: Head, data: bytes, at: int, end: int) -> int:
        """The body that begins at ``end``: where the next request begins, or -1 when more of this one must come."""
        if head.length > self._connections.max_body_bytes:
            raise BadHeadError(413, f"body: larger than {self._connections.max_body_bytes} bytes")
        whole = end + head.length
        if not head.chunked and whole <= len(data):
            self._take(head, data[end:whole])
            return whole
        self._begin()
        if head.expects and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.chunked:
            self._chunks = _Chunks(head, data[at:], self._connections.max_body_bytes)
            self._more_chunks(b"")
        else:
            self._body = _Body(head, memoryview(data)[end:])
            if len(self._body.rest()) > LARGE_BYTES and self._transport is not None:
                self._transport.set_protocol(_Receiving(self, self._transport, self._body))
        return -1

    def _more_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        if chunks is None:
            return
        if data:
            chunks.feed(data)
        if chunks.whole:
            self._chunks = None
            self._take(chunks.head, chunks.body())

    def _keep(self, data: bytes) -> None:
        """The beginning of a head; refused when it cannot become one."""
        if len(data) > MAX_HEAD_BYTES:
            raise BadHeadError(431, f"headers: more than {MAX_HEAD_BYTES} bytes")
        method = data[:16].partition(b" ")[0]
        if not (method.isalpha() and method.isupper()):
            raise BadHeadError(400, "no HTTP/1.1 request: it begins with no method")
        self._begun = data
        self._begin()

    def _begin(self) -> None:
        if self._current is None:
            self._since = self._loop.time()

    @property
    def _reading(self) -> bool:
        return self._begun != b"" or self._body is not None or self._chunks is not None

    def _take(self, head: Head, body: Body) -> None:
        request = Request(head, body)
        if self._current is None:
            self._answer(request)
        else:
            self._waiting.append(request)
            self._flow()

    # --- answers

    def _answer(self, request: Request) -> None:
        self._current = request
        self._connections.handle(request, self._send)

    def _send(self, response: Response) -> None:
        request, self._current = self._current, None
        self._since = self._loop.time()
        transport = self._transport
        if transport is None or self._closing or request is None:
            return
        head = request.head
        last = self._ended or (self._connections.leaving and not self._reading)
        keep = head.keep_alive and not (last and not self._waiting)
        transport.write(_bytes(response, keep, b"" if head.method == "HEAD" else response.body))
        if not keep:
            self._close()
        elif self._waiting:
            # Not from within this call: a long pipeline would become a deep stack.
            self._current = self._waiting[0]
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        if self._waiting and not self._closing:
            self._answer(self._waiting.popleft())
            self._flow()

    def _refuse(self, status: int, text: str) -> None:
        self._refuse_with(self._connections.refuse(status, text))

    def _refuse_with(self, response: Response) -> None:
        """Answer and close; what still comes is read and dropped for a moment, or a reset would eat the answer."""
        if self._transport is None or self._closing:
            return
        self._closing = True
        self._transport.write(_bytes(response, False, response.body))
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
        if self._current is not None or self._closing:
            return
        if self._reading and now - self._since > READ_S:
            self._refuse(408, f"the request did not arrive within {READ_S:g} s")
        elif not self._reading and now - self._since > IDLE_S:
            self._close()

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._current is not None or self._reading

    def drain(self) -> None:
        """The server stops."""
        if not self.busy:
            self._close()


class _Receiving(asyncio.BufferedProtocol):
    """Stands in for a connection while it receives a large body: the kernel writes where the model will read.

    Not for every request: a loop asks such a protocol for memory before each read, which small ones would pay for.
    """

    def __init__(self, connection: HttpProtocol, transport: asyncio.Transport, body: _Body) -> None:
        self._connection = connection
        self._transport = transport
        self._body = body
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """What is missing of the body."""
        return self._body.rest()

    def buffer_updated(self, nbytes: int) -> None:
        """That many bytes have come."""
        if len(self._body.rest()) == nbytes:
            self._transport.set_protocol(self._connection)
        self._connection.body_received(self._body, nbytes)


def _bytes(response: Response, keep_alive: bool, body: bytes) -> bytes:
    return b"%b%b\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        _HEADS[response.status],
        response.content_type,
        len(response.body),
        b"" if keep_alive else b"connection: close\r\n",
        response.headers,
        body,
    )
