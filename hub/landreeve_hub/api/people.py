"""Signing in and out, people and tokens."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection

from landreeve_hub.access import identity, setup, tokens, users
from landreeve_hub.access.identity import LIFETIME, Person
from landreeve_hub.access.roles import MATRIX, Permission
from landreeve_hub.api.body import read, text_of
from landreeve_hub.api.guard import COOKIE, Open, may, same_origin
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    """The setup code, or name and password."""

    code: str = ""
    user: str = ""
    password: str = ""


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    role: str
    password: str = ""


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    user: str = ""
    name: str = ""
    scopes: list[str] = []
    days: float = tokens.DEFAULT_DAYS


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()

    @routes.post("/sessions", status_code=201, dependencies=[Depends(Open())])
    async def sign_in(request: Request, response: Response) -> dict[str, Any]:
        """A session cookie for the one-time setup code or for user and password."""
        if not same_origin(request):
            raise Problem(403, "Signing in is only possible from the hub's own pages.")
        asked = await read(request, SignIn)
        name = await _enter(services, asked, _caller(request))
        now = services.clock()
        secret = await services.store.write(lambda c: identity.open_session(c, name, now))
        await services.audit.record(now, Act(name, "session.open", "code" if asked.code else "password"))
        response.set_cookie(
            COOKIE,
            secret,
            max_age=int(LIFETIME.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
            path="/",
        )
        return {"user": name}

    @routes.delete("/sessions", status_code=204, dependencies=[Depends(Open())])
    async def sign_out(request: Request, response: Response) -> None:
        """End this session."""
        cookie = request.cookies.get(COOKIE, "")
        if cookie and same_origin(request):
            await services.store.write(lambda c: identity.close_session(c, cookie))
        response.delete_cookie(COOKIE, path="/")

    @routes.post("/setup-codes", status_code=201)
    async def new_code(person: Annotated[Person, may(Permission.USERS)]) -> dict[str, str]:
        """A fresh one-time code that lets one person in as admin within 24 h."""
        now = services.clock()
        code = await setup.issue_code(services.store, now)
        await services.audit.record(now, Act(person.name, "setup.code", identity.SETUP_USER))
        return {"code": code}

    _persons(routes, services)
    return routes


def _persons(routes: APIRouter, services: Services) -> None:
    """Who is asking, and who there is."""

    @routes.get("/me")
    async def me(person: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Who is asking, and what they may do."""
        held = sorted(p.value for p in MATRIX[person.role] if person.may(p))
        return {"user": person.name, "role": person.role.value, "permissions": held}

    @routes.get("/users")
    async def list_users(_: Annotated[Person, may(Permission.USERS)]) -> list[dict[str, Any]]:
        return await services.store.read(users.listed)

    @routes.post("/users", status_code=201)
    async def add_user(request: Request, person: Annotated[Person, may(Permission.USERS)]) -> dict[str, str]:
        asked = await read(request, NewUser)
        role, now = users.parse_role(asked.role), services.clock()

        def add(connection: Connection) -> None:
            users.add(connection, asked.name, role, asked.password, now)
            act = Act(person.name, "user.add", asked.name, data={"role": role.value}, personal={"object": asked.name})
            services.audit.record_in(connection, now, act)

        await services.store.write(add)
        return {"name": asked.name, "role": role.value}


def token_router(services: Services) -> APIRouter:
    """The routes about bearer tokens."""
    routes = APIRouter()

    @routes.get("/tokens")
    async def list_tokens(person: Annotated[Person, may(Permission.TOKENS)]) -> list[dict[str, Any]]:
        """One's own tokens; whoever manages users sees all."""
        own = None if person.may(Permission.USERS) else person.name
        return await services.store.read(lambda c: tokens.listed(c, own))

    @routes.post("/tokens", status_code=201)
    async def add_token(request: Request, person: Annotated[Person, may(Permission.TOKENS)]) -> dict[str, str]:
        """A token's text, shown once. For someone else only by whoever manages users."""
        asked = await read(request, NewToken)
        user, now = asked.user or person.name, services.clock()
        if user != person.name and not person.may(Permission.USERS):
            raise Problem(403, f"{person.name} may only create tokens of their own.")

        def create(connection: Connection) -> str:
            data = {"name": asked.name, "scopes": asked.scopes}
            act = Act(person.name, "token.create", user, data=data, personal={"object": user})
            services.audit.record_in(connection, now, act)
            return tokens.create(connection, user, asked.name, scopes=asked.scopes, days=asked.days, now=now)

        return {"user": user, "token": await services.store.write(create)}

    @routes.delete("/tokens/{short}", status_code=204)
    async def drop_token(short: str, person: Annotated[Person, may(Permission.TOKENS)]) -> None:
        """Revoke a token by the beginning of its hash."""
        now = services.clock()

        def drop(connection: Connection) -> bool:
            own = None if person.may(Permission.USERS) else person.name
            if not any(t["id"] == short for t in tokens.listed(connection, own)):
                return False
            services.audit.record_in(connection, now, Act(person.name, "token.revoke", short))
            return tokens.revoke(connection, short)

        if not await services.store.write(drop):
            raise Problem(404, f"There is no token {text_of(short)} to revoke.")

    return routes


async def _enter(services: Services, asked: SignIn, caller: str) -> str:
    """The name of who may come in; every failure counts against the caller and against the name."""
    keys = [f"from:{caller}", *([f"user:{asked.user}"] if asked.user else [])]
    wait = max(services.limiter.wait_s(key, time.monotonic()) for key in keys)
    if wait > 0:
        raise Problem(429, f"Too many failed attempts; try again in {wait:.0f} s.", {"Retry-After": f"{wait:.0f}"})
    name = await _known(services, asked)
    if name is None:
        for key in keys:
            services.limiter.failed(key, time.monotonic())
        await services.audit.record(services.clock(), _denied(asked.user or "?", caller))
        raise Problem(401, "The code or the password is not right. A code works once and for 24 hours.")
    for key in keys:
        services.limiter.succeeded(key)
    return name


async def _known(services: Services, asked: SignIn) -> str | None:
    now = services.clock()
    if asked.code:
        return await services.store.write(lambda c: setup.redeem_code(c, asked.code, now))
    fits = await services.store.read(lambda c: users.password_fits(c, asked.user, asked.password))
    return asked.user if fits else None


def _denied(user: str, caller: str) -> Act:
    """An address that tried is about a person too: about whom it named, else about itself."""
    return Act(user, "session.open", caller, "denied", personal={"object": user if user != "?" else caller})


def _caller(request: Request) -> str:
    return request.client.host if request.client else "unknown"
