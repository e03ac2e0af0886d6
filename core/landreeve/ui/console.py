"""A console: pages rendered on the server from the public API, kept fresh by one event stream each.

A page is a template and a loader that asks the API (`landreeve.ui.inside`). Blocks of the template whose name
starts with ``live_`` are rendered again every second and sent when they changed; the script of the page puts
the difference in place. So there is one rendering, in one language, with or without the stream.
"""

import asyncio
import functools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from landreeve.ui import assets as files
from landreeve.ui import language
from landreeve.ui.asgi import App, Receive, Request, Response, Scope, Send, redirect, request_of, respond, stream
from landreeve.ui.inside import Api, ApiError

if TYPE_CHECKING:
    from jinja2 import Environment

Loader = Callable[[Api, Mapping[str, str], Mapping[str, str]], Awaitable[Mapping[str, Any]]]
FOREVER = ("cache-control", "public, max-age=31536000, immutable")
THEMES = ("auto", "light", "dark")
REST = 10
"""A page that takes long to look at is looked at less often: it rests so many times as long as it took."""


@dataclass(frozen=True)
class Page:
    """``path`` may hold ``{names}``; ``load(api, names, query)`` answers with the template's values.

    ``active`` names the entry of the navigation. ``open`` pages are shown before anybody signed in. ``period_s`` is how
    often it is looked at anew for whoever has it open: 0 never, None as the console does.
    """

    path: str
    template: str
    load: Loader
    active: str = ""
    open: bool = False
    period_s: float | None = None


@dataclass(frozen=True)
class Entry:
    """One entry of the navigation: ``badge`` names a value of the frame to show as a count."""

    key: str
    path: str
    label: str
    icon: str
    badge: str = ""


class Console:
    """An ASGI application with pages, their streams, assets and preferences.

    ``app`` is the application that serves the public API. ``frame(api, …)`` gives values every page needs.
    ``close()`` ends all streams; call it when the process was asked to stop, because a server waits for them.
    """

    def __init__(
        self,
        app: App,
        *,
        product: str,
        package: str,
        pages: Sequence[Page],
        navigation: Sequence[Entry],
        frame: Loader,
        period_s: float = 1.0,
    ) -> None:
        self._app = app
        self._fixed = {"product": product, "navigation": tuple(navigation)}
        self._pages = [(_pattern(page.path), page) for page in pages]
        self._frame = frame
        self._period_s = period_s
        self._package = package
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every open stream."""
        self._closing.set()

    @functools.cached_property
    def _assets(self) -> files.Assets:
        return files.load()

    @functools.cached_property
    def _environments(self) -> "dict[str, Environment]":
        """By language, made when the first page is asked for: most boxes are looked at seldom."""
        from landreeve.ui import environment

        make = functools.partial(environment.make, assets=self._assets, packages=(self._package,))
        return {code: make(language.load(code)) for code in language.LANGUAGES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request (the ASGI entry)."""
        if scope["type"] != "http":
            raise NotImplementedError(f"a console answers HTTP only, not {scope['type']}")
        request = request_of(scope)
        if request.method not in {"GET", "HEAD"}:
            return await respond(send, _plain(405, "Method not allowed"))
        if request.path.startswith("/live/"):
            return await self._live(request, receive, send)
        await respond(send, await self._answer(request), head=request.method == "HEAD")
        return None

    async def _answer(self, request: Request) -> Response:
        if request.path.startswith("/assets/"):
            return self._asset(request)
        if request.path == "/preferences":
            return _remember(request)
        if request.path.startswith("/api/"):
            return _problem(404, f"There is no {request.path} in this API.")
        found = self._find(request.path)
        if found is None:
            return await self._refuse(request, 404, "There is no such page.")
        try:
            return await self._show(request, *found)
        except ApiError as error:
            return await self._explain(request, error)

    def _find(self, path: str) -> tuple[Page, dict[str, str]] | None:
        for pattern, page in self._pages:
            if match := pattern.fullmatch(path):
                return page, match.groupdict()
        return None

    async def _show(self, request: Request, page: Page, names: Mapping[str, str]) -> Response:
        values = await self._values(request, page, names)
        template = self._environment(request).get_template(page.template)
        return Response(200, template.render(values).encode())

    async def _values(self, request: Request, page: Page, names: Mapping[str, str]) -> dict[str, Any]:
        api = Api(self._app, request)
        frame = {} if page.open else await self._frame(api, names, request.query)
        own = await page.load(api, names, request.query)
        about = {"active": page.active, "bare": page.open, "still": page.period_s == 0}
        return {**self._shell(request), **frame, **own, **about}

    def _shell(self, request: Request) -> dict[str, Any]:
        theme = request.cookies.get("theme", "auto")
        query = request.scope.get("query_string", b"").decode("latin-1")
        here = request.path.removeprefix("/live") if request.path.startswith("/live/") else request.path
        here = here + (f"?{query}" if query else "")
        theme = theme if theme in THEMES else "auto"
        return {**self._fixed, "theme": theme, "here": here, "now": datetime.now(UTC), "query": request.query}

    def _environment(self, request: Request) -> "Environment":
        code = language.negotiate(request.cookies.get("lang"), request.headers.get("accept-language", ""))
        return self._environments[code]

    async def _explain(self, request: Request, error: ApiError) -> Response:
        if error.status == 401:
            return redirect(f"/login?next={quote(request.path, safe='/')}")
        return await self._refuse(request, error.status, error.detail or error.title)

    async def _refuse(self, request: Request, status: int, sentence: str) -> Response:
        template = self._environment(request).get_template("problem.html")
        about = {"active": "", "bare": True, "still": True, "status": status, "sentence": sentence}
        return Response(status, template.render({**self._shell(request), **about}).encode())

    def _asset(self, request: Request) -> Response:
        asset = self._assets.find(request.path.removeprefix("/assets/"))
        if asset is None:
            return _plain(404, "There is no such file.")
        if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            headers = (FOREVER, ("content-encoding", "gzip"), ("vary", "accept-encoding"))
            return Response(200, asset.packed, asset.kind, headers)
        return Response(200, asset.body, asset.kind, (FOREVER,))

    async def _live(self, request: Request, receive: Receive, send: Send) -> None:
        found = self._find(request.path.removeprefix("/live"))
        if found is None or found[0].period_s == 0:
            return await respond(send, _plain(404, "There is no such page."))
        try:
            await self._values(request, *found)
        except ApiError:
            # 204 tells an EventSource not to come back: the person signed out or the thing is gone
            return await respond(send, Response(204))
        gone = asyncio.create_task(_gone(receive))
        try:
            await stream(send, self._changes(request, *found, gone))
        finally:
            gone.cancel()
        return None

    async def _changes(
        self, request: Request, page: Page, names: Mapping[str, str], gone: asyncio.Task[None]
    ) -> AsyncIterator[bytes]:
        template = self._environment(request).get_template(page.template)
        base = self._environment(request).get_template("base.html")
        blocks = {k: v for k, v in (base.blocks | template.blocks).items() if k.startswith("live_")}
        sent: dict[str, str] = {}
        period_s = self._period_s if page.period_s is None else page.period_s
        yield b"retry: 2000\n\n"
        while not (self._closing.is_set() or gone.done()):
            began = time.monotonic()
            try:
                values = await self._values(request, page, names)
            except ApiError as error:
                yield _event("problem", {"status": error.status, "sentence": str(error)})
                return
            context = template.new_context(values)
            drawn = {name: "".join(block(context)) for name, block in blocks.items()}
            changed = {name: html for name, html in drawn.items() if sent.get(name) != html}
            sent |= changed
            yield _event("patch", changed) if changed else b": nothing new\n\n"
            await self._pause(gone, max(period_s, (time.monotonic() - began) * REST))

    async def _pause(self, gone: asyncio.Task[None], period_s: float) -> None:
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({closing, gone}, timeout=period_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(name: str, value: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def _plain(status: int, text: str) -> Response:
    return Response(status, text.encode(), "text/plain; charset=utf-8")


def _problem(status: int, detail: str) -> Response:
    body = {"type": "about:blank", "title": "Not found", "status": status, "detail": detail}
    return Response(status, json.dumps(body).encode(), "application/problem+json")


def _remember(request: Request) -> Response:
    """Keep language and theme in cookies and go back to where the person was, on this site only."""
    chosen = {"lang": tuple(language.LANGUAGES), "theme": THEMES}
    cookies = [
        f"{name}={request.query[name]}; Path=/; Max-Age=31536000; SameSite=Strict"
        for name, allowed in chosen.items()
        if request.query.get(name) in allowed
    ]
    return redirect(_local(request.query.get("next", "/")), cookies=tuple(cookies))


def _local(target: str) -> str:
    """``target`` if it is a path on this site, else the start page: never a way out to another host."""
    parts = urlsplit(target)
    safe = not parts.scheme and not parts.netloc and target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if safe and target.isascii() and target.isprintable() else "/"
