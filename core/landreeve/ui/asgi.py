"""The little of ASGI the consoles need: a request to read, a response to send, a stream to keep open.

Both consoles are plain ASGI so that this floor needs no web framework: any server or framework can mount them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Everything a page needs comes from its own origin, nothing runs or styles inline, nobody may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Request:
    """What a page may look at: ``path`` below the mount point, query, headers (lower case) and cookies."""

    method: str
    path: str
    root: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    scope: Scope = field(repr=False)


@dataclass(frozen=True)
class Response:
    """A whole answer; ``headers`` are added to the security headers."""

    status: int
    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


def request_of(scope: Scope) -> Request:
    """Read an HTTP scope. ``root_path`` is taken off the path, as a mounted application expects."""
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
    root = str(scope.get("root_path", ""))
    path = str(scope["path"])
    path = path[len(root) :] if root and path.startswith(root) else path
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
    return Request(scope["method"], path or "/", root, query, headers, _cookies(headers.get("cookie", "")), scope)


def _cookies(text: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(text).items()}
    except CookieError:  # somebody else's cookie on this host: the page works without any of ours
        return {}


def redirect(to: str, *, cookies: tuple[str, ...] = ()) -> Response:
    """303 See Other, optionally setting cookies."""
    return Response(303, headers=(("location", to), *(("set-cookie", cookie) for cookie in cookies)))


async def respond(send: Send, response: Response, *, head: bool = False) -> None:
    """Send ``response`` with the security headers; ``head`` leaves the body out."""
    pairs = [("content-type", response.kind), ("content-length", str(len(response.body))), *SECURITY.items()]
    named = {name for name, _ in response.headers}
    if "cache-control" not in named:
        pairs.append(("cache-control", "no-store"))
    await send(_start(response.status, (*pairs, *response.headers)))
    await send({"type": "http.response.body", "body": b"" if head else response.body})


async def stream(send: Send, events: AsyncIterator[bytes]) -> None:
    """Send server-sent events until the iterator ends."""
    pairs = (("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no"))
    await send(_start(200, (*pairs, *SECURITY.items())))
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _start(status: int, pairs: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    return {"type": "http.response.start", "status": status, "headers": headers}
