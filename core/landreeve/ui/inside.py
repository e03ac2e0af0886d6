"""Reading the public API from inside the process that serves it.

A console shows what the API answers to the person looking, with that person's own cookie: it can never show
more than the API would give, and every number on a page can be had by a program too.
"""

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from landreeve.ui.asgi import App, Request


class ApiError(Exception):
    """The API answered with a problem. ``status`` is the HTTP status, ``detail`` its plain sentence."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail or title)
        self.status, self.title, self.detail = status, title, detail


@dataclass(frozen=True)
class Api:
    """``app``'s HTTP API, asked in the name of whoever sent ``request``."""

    app: App
    request: Request

    async def get(self, *segments: str, query: Mapping[str, str] | None = None) -> Any:
        """GET ``/api/v1/<segments>`` and decode its JSON. Raises `ApiError` for any answer but 2xx."""
        path = "/api/v1/" + "/".join(quote(segment, safe="") for segment in segments)
        status, body = await self._ask(path, urlencode(query or {}))
        if 200 <= status < 300:
            return json.loads(body)
        raise _problem(status, body)

    async def find(self, *segments: str, query: Mapping[str, str] | None = None) -> Any:
        """Like `get`, but None where the API has nothing there (404): the page then says what to do next."""
        try:
            return await self.get(*segments, query=query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def ask(self, *segments: str, body: Mapping[str, Any]) -> Any:
        """Like `get` for a question that is asked by POST, since it needs a body: a preview, of which nothing is kept.
        A page that is only looked at must ask for nothing else."""
        path = "/api/v1/" + "/".join(quote(segment, safe="") for segment in segments)
        status, answer = await self._ask(path, "", json.dumps(body).encode())
        if 200 <= status < 300:
            return json.loads(answer)
        raise _problem(status, answer)

    async def _ask(self, path: str, query: str, body: bytes | None = None) -> tuple[int, bytes]:
        status, chunks = 500, list[bytes]()

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))

        await self.app(_scope(self.request, path, query, "GET" if body is None else "POST"), receive, send)
        return status, b"".join(chunks)


def _scope(request: Request, path: str, query: str, method: str) -> dict[str, Any]:
    kept = ("cookie", "host", "user-agent", "x-forwarded-for", "x-forwarded-proto")
    headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in request.headers.items() if k in kept]
    outer = request.scope
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": outer.get("scheme", "http"),
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [*headers, (b"accept", b"application/json"), (b"content-type", b"application/json")],
        "client": outer.get("client"),
        "server": outer.get("server"),
        "state": dict(outer.get("state", {})),
    }


def _problem(status: int, body: bytes) -> ApiError:
    try:
        document = json.loads(body)
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    return ApiError(status, str(document.get("title", f"HTTP {status}")), str(document.get("detail", "")))
