"""The door of the local API: host, origin and identity are settled before any route runs (pure ASGI)."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from landreeve_agent.console.access import COOKIE, Actor, Doors, Scope, Sessions, Tokens
from landreeve_agent.console.problems import Problem, problem_bytes

AsgiScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

_SAFE = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True)
class Guard:
    """Wraps the application and tells it who calls: ``scope["state"]["actor"]``, or None.

    What a caller may do is the API's own rule for each route; pages ask the API in the name of their reader.
    """

    app: App
    doors: Doors
    tokens: Tokens
    sessions: Sessions

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request (the ASGI entry)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        actor = self._actor(headers)
        refusal = self._refuse(scope["method"], headers, actor)
        if refusal is not None:
            return await _answer(send, refusal)
        scope.setdefault("state", {})["actor"] = actor
        return await self.app(scope, receive, _with_headers(send))

    def _actor(self, headers: dict[str, str]) -> Actor | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.tokens.actor(given.strip())
        secret = cookie_of(headers.get("cookie", ""))
        return Actor("console", Scope.FULL, cookie=True) if secret and self.sessions.holds(secret) else None

    def _refuse(self, method: str, headers: dict[str, str], actor: Actor | None) -> Problem | None:
        host = headers.get("host", "")
        if not self.doors.host_allowed(host):
            return Problem(
                421, "Unknown host", f"This console does not answer to {host[:80]!r}; allow it: console.hosts"
            )
        if method not in _SAFE and not self.doors.origin_allowed(headers.get("origin"), host, actor):
            return Problem(403, "Foreign page", "A change must come from this console's own pages or from a program.")
        return None


def cookie_of(header: str) -> str | None:
    """The session's secret in a Cookie header."""
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel else None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", ())}
            message["headers"] = [*message.get("headers", ()), *(h for h in _HEADERS if h[0] not in present)]
        await send(message)

    return sending


_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


async def _answer(send: Send, problem: Problem) -> None:
    headers: Iterable[tuple[bytes, bytes]] = [(b"content-type", b"application/problem+json"), *_HEADERS]
    await send({"type": "http.response.start", "status": problem.status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": problem_bytes(problem)})
