"""The fleet's signing keys: how they stand, changes that await signatures, and people's own keys."""

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.signing.request import MAX_BYTES

Row = dict[str, Any]


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """``new_key``: the text of the public half of a key made elsewhere; empty makes the new key at the hub."""

    new_key: str = ""


class NewRole(msgspec.Struct, forbid_unknown_fields=True):
    """``paths`` as ``models/flight-*/*``; no ``people`` means everyone whose key is admitted."""

    name: str
    paths: tuple[str, ...]
    threshold: int
    people: tuple[str, ...] = ()


class Brought(msgspec.Struct, forbid_unknown_fields=True):
    """``public``: the text of the file that `keys make` wrote beside the private key."""

    public: str


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, desk = APIRouter(), services.keys

    @routes.get("/keys")
    async def keys(_: Annotated[Person, may(Permission.VIEW)]) -> Row:
        """Every signing role: keys and where they are, threshold, expiry; and what to do."""
        return await asyncio.to_thread(desk.status)

    @routes.get("/keys/changes")
    async def changes(_: Annotated[Person, may(Permission.VIEW)]) -> list[Row]:
        """What awaits signatures of keys that are kept elsewhere."""
        return await asyncio.to_thread(desk.changes)

    @routes.get("/keys/changes/{change}")
    async def export(change: str, _: Annotated[Person, may(Permission.VIEW)]) -> Row:
        """The signing request of a change: a file to be signed where the key is (`landreeve-hub keys sign`)."""
        return await asyncio.to_thread(desk.export, change)

    @routes.post("/keys/changes")
    async def take(request: Request, person: Annotated[Person, may(Permission.APPROVE)]) -> Row:
        """A signing request with signatures made elsewhere. Who sends it does not matter, whose keys signed does."""
        data = b""
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BYTES:
                raise Problem(413, f"body: a signing request has at most {MAX_BYTES} bytes")
        taken = await asyncio.to_thread(desk.take, data)
        return await _done(services, person, "keys.import", taken)

    @routes.delete("/keys/changes/{change}")
    async def drop(change: str, person: Annotated[Person, may(Permission.KEYS)]) -> Row:
        """Call a change off."""
        dropped = await asyncio.to_thread(desk.drop, change)
        return await _done(services, person, "keys.drop", dropped)

    @routes.post("/keys/rotate/{name}")
    async def rotate(name: str, request: Request, person: Annotated[Person, may(Permission.KEYS)]) -> Row:
        """Replace a key: at once, or as a change that awaits signatures."""
        asked = await read(request, Rotation)
        made = await asyncio.to_thread(desk.rotate, name, asked.new_key, person.name)
        return await _done(services, person, "keys.rotate", made, name)

    @routes.post("/keys/renew/{role}")
    async def renew(role: str, person: Annotated[Person, may(Permission.KEYS)]) -> Row:
        """Sign the roots or a list again, for a later expiry."""
        made = await asyncio.to_thread(desk.renew, role, person.name)
        return await _done(services, person, "keys.renew", made, role)

    _people(routes, services)
    return routes


def _people(routes: APIRouter, services: Services) -> None:
    """Approvers with keys of their own."""
    desk = services.keys

    @routes.get("/keys/approvers")
    async def approvers(_: Annotated[Person, may(Permission.VIEW)]) -> list[Row]:
        """Whose keys are known, and which roles they are in."""
        return await asyncio.to_thread(desk.approvers)

    @routes.post("/keys/approvers", status_code=201)
    async def bring(request: Request, person: Annotated[Person, may(Permission.APPROVE)]) -> Row:
        """Bring the public half of one's own key; someone else admits it."""
        asked = await read(request, Brought)
        brought = await asyncio.to_thread(desk.bring, asked.public, person.name)
        return await _done(services, person, "keys.bring", brought, brought["keyid"])

    @routes.post("/keys/approvers/{key}/admit")
    async def admit(key: str, person: Annotated[Person, may(Permission.KEYS)]) -> Row:
        """Let a key be named in roles; not by whose key it is."""
        admitted = await asyncio.to_thread(desk.admit, key, person.name)
        return await _done(services, person, "keys.admit", admitted, admitted["keyid"])

    @routes.post("/keys/approvers/{key}/dismiss")
    async def dismiss(key: str, person: Annotated[Person, may(Permission.KEYS)]) -> Row:
        """Take a key out of every role."""
        dismissed = await asyncio.to_thread(desk.dismiss, key, person.name)
        return await _done(services, person, "keys.dismiss", dismissed, dismissed["keyid"])

    @routes.post("/keys/roles")
    async def require(request: Request, person: Annotated[Person, may(Permission.KEYS)]) -> Row:
        """Let releases of some models be approved by so many people's own keys."""
        asked = await read(request, NewRole)
        made = await asyncio.to_thread(
            desk.require, asked.name, asked.paths, asked.threshold, asked.people, person.name
        )
        return await _done(services, person, "keys.require", made, asked.name)


async def _done(services: Services, person: Person, action: str, result: Row, about: str = "") -> Row:
    """Record it, and let releases and documents follow what is in force now."""
    data = {name: result[name] for name in ("state", "signatures") if result.get(name)}
    await services.audit.record(services.clock(), Act(person.name, action, about or result["id"], data=data))
    await services.resigned()
    services.changes.say("releases")
    return result
