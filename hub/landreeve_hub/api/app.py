"""The hub's HTTP application for people: the API under /api/v1, and the console beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api import (
    audit_routes,
    blob_routes,
    broker_routes,
    fleet_routes,
    identity_routes,
    key_routes,
    line_routes,
    oci_errors,
    oci_routes,
    overview_routes,
    people,
    problems,
    rate_routes,
    record_routes,
    release_routes,
    rollout_routes,
)
from landreeve_hub.api.guard import Open, may
from landreeve_hub.api.idempotency import Idempotency
from landreeve_hub.api.services import Services

PREFIX = "/api/v1"


class Shield:
    """Refuses hosts that are not ours (DNS rebinding) and says how the answers may be used."""

    _HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"x-frame-options", b"DENY"),
    )

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"host"), "")
        if _bare(host) not in self._hosts:
            text = f"host: {host[:80]!r} is not a name of this hub; add it to the setting http.hosts if it is"
            await problems.respond(421, text)(scope, receive, send)
            return

        async def dress(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._HEADERS]}
            await send(message)

        await self._app(scope, receive, dress)


def _bare(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()


def build(services: Services) -> FastAPI:
    """The application; it ends its event streams when ``services.closing`` is set."""
    app = FastAPI(
        title="Landreeve hub",
        version=services.version,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
    )
    app.state.services = services
    app.state.closing = services.closing
    app.state.console = None
    problems.install(app)
    oci_errors.install(app)
    steering = (rate_routes, line_routes, broker_routes, key_routes, blob_routes)
    asked = (people, overview_routes, fleet_routes, identity_routes, *steering)
    for room in (*asked, release_routes, rollout_routes, record_routes, audit_routes):
        app.include_router(room.router(services), prefix=PREFIX)
    app.include_router(people.token_router(services), prefix=PREFIX)
    app.include_router(oci_routes.router(services), prefix=oci_routes.PREFIX)
    app.include_router(_live(services), prefix=PREFIX)
    app.add_middleware(Idempotency)
    app.add_middleware(Shield, hosts=services.hosts)
    if find_spec("landreeve_hub.console.pages") is not None:
        from landreeve_hub.console import pages

        app.state.console = pages.install(app)
    return app


def _live(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.get("/events")
    async def events(_: Annotated[Person, may(Permission.VIEW)]) -> Response:
        """Server-sent events: ``changed`` with the part that changed."""
        stream = services.changes.stream(services.closing)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @routes.get("/health", dependencies=[Depends(Open())])
    async def health() -> dict[str, str]:
        """The hub answers."""
        return {"status": "ok", "version": services.version}

    return routes


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open streams would hold the server back when it is asked to stop: the console's end with ours."""

    async def end_streams() -> None:
        await app.state.closing.wait()
        if app.state.console is not None:
            app.state.console.close()

    ending = asyncio.create_task(end_streams())
    try:
        yield
    finally:
        ending.cancel()
