"""What stands before a body: parsed once by httptools, and found again by its bytes.

A client sends the same head again and again; strangers may send any number of different ones, so what is kept is
bounded.
"""

from typing import Any

import httptools


class Head:
    """What stands before a body. Header names are lower case. ``binary_at`` is where the binary part of the body
    begins, 0 when it is told of none. ``known`` is the handler's own note on this head: the same object comes again
    whenever the same bytes come again."""

    __slots__ = ("binary_at", "chunked", "expects", "headers", "keep_alive", "known", "length", "method", "path")

    def __init__(self, method: str, path: str, headers: dict[bytes, bytes], *, keep_alive: bool) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.keep_alive = keep_alive
        self.length = int(headers.get(b"content-length", b"0"))
        self.chunked = b"transfer-encoding" in headers
        self.expects = headers.get(b"expect", b"").lower() == b"100-continue"
        begins = headers.get(b"inference-header-content-length", b"")
        self.binary_at = int(begins) if begins.isdigit() and len(begins) < 12 else 0
        self.known: Any = None


class BadHeadError(ValueError):
    """Bytes that are no head of a request; carries the status to refuse it with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _HeadParser:
    """Collects what httptools finds in one head."""

    def __init__(self) -> None:
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.parser = httptools.HttpRequestParser(self)
        self.keep_alive = True

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        # Here and not later: at the end of a message the parser forgets.
        self.keep_alive = self.parser.should_keep_alive()


def parse_head(data: bytes) -> Head:
    """The head in bytes that end with an empty line; `BadHeadError` when it is none."""
    found = _HeadParser()
    try:
        found.parser.feed_data(data)
    except httptools.HttpParserUpgrade as error:
        raise BadHeadError(400, "upgrade: this server speaks HTTP/1.1 only") from error
    except httptools.HttpParserError as error:
        raise BadHeadError(400, f"no HTTP/1.1 request: {error}") from error
    method, path = found.parser.get_method().decode("latin-1"), found.path.partition(b"?")[0].decode("latin-1")
    return Head(method, path, found.headers, keep_alive=found.keep_alive)


class Heads:
    """Heads seen before, by their bytes."""

    MOST = 512
    LONGEST = 2048

    def __init__(self) -> None:
        self.seen: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head:
        """The head in the bytes, parsed once; raises `BadHeadError`."""
        head = self.seen.get(data)
        if head is None:
            head = parse_head(data)
            if len(data) <= self.LONGEST and not head.chunked:
                if len(self.seen) >= self.MOST:  # bounded: strangers may send any number of different ones
                    self.seen.clear()
                self.seen[data] = head
        return head
