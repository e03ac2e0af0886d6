"""Who may call a route: one dependency, and a rule that every route declares one."""

from collections.abc import Iterable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from landreeve_hub.access import identity
from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act

COOKIE = "landreeve_session"


class Require:
    """The dependency: the person asking, when they hold the permission. 401 without a person, 403 without it."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    async def __call__(self, request: Request) -> Person:
        services: Services = request.app.state.services
        person = await whoever(request, services)
        if person is None:
            raise Problem(
                401, "Sign in, or send a valid token (Authorization: Bearer …).", {"WWW-Authenticate": "Bearer"}
            )
        if not person.may(self.permission):
            if request.method != "GET":
                act = Act(person.name, f"{request.method} {request.url.path}", self.permission.value, "denied")
                await services.audit.record(services.clock(), act)
            scope = " (or the token's scopes do not hold it)" if person.scopes is not None else ""
            raise Problem(403, f"{person.name} is {person.role}: that does not include '{self.permission}'{scope}.")
        return person


class Open:
    """Marks the few routes that anyone may call."""

    permission = None

    async def __call__(self) -> None:
        """Nothing to check."""


def may(permission: Permission) -> Any:
    """For a route's signature: ``person: Annotated[Person, may(Permission.VIEW)]``."""
    return Depends(Require(permission))


async def whoever(request: HTTPConnection, services: Services) -> Person | None:
    """The person behind a bearer token or a session cookie. A token that is sent counts alone."""
    now = services.clock()
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return await services.store.read(lambda c: identity.by_token(c, secret.strip(), now))
    cookie = request.cookies.get(COOKIE, "")
    if not cookie or not same_origin(request):
        return None
    person = await services.store.read(lambda c: identity.by_session(c, cookie, now))
    stale = await services.store.read(lambda c: identity.session_is_stale(c, cookie, now))
    if person and stale:
        await services.store.write(lambda c: identity.touch_session(c, cookie, now))
    return person


def same_origin(request: HTTPConnection) -> bool:
    """Whether a browser sent this from our own pages: a cookie alone proves nothing about who made the request."""
    if request.scope.get("method", "GET") in {"GET", "HEAD"}:
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in {"same-origin", "none"}:
        return False
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host", "")


def undeclared(app: FastAPI) -> list[str]:
    """API routes that declare neither a permission nor that they are open; a test wants this empty."""
    return [
        f"{sorted(route.methods or ())} {route.path}"
        for route in walk(app.routes)
        if not any(isinstance(d.call, Require | Open) for d in route.dependant.dependencies)
    ]


def walk(routes: Iterable[object]) -> Iterable[APIRoute]:
    """Every route, also of included routers."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif router := getattr(route, "original_router", None):  # FastAPI keeps an included router as one route
            yield from walk(router.routes)
