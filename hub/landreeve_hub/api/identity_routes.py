"""Who belongs to the fleet: boxes that wait, devices that are thrown out, the authority and its roll."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.fleet import waiting
from landreeve_hub.fleet.authority import RollError


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class Finish(msgspec.Struct, forbid_unknown_fields=True):
    force: bool = False


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()
    _waiting(routes, services)
    _ending(routes, services)
    _authority(routes, services)
    return routes


def _waiting(routes: APIRouter, services: Services) -> None:
    @routes.get("/enrolments")
    async def enrolments(_: Annotated[Person, may(Permission.VIEW)]) -> list[dict[str, Any]]:
        """Boxes that wait for a person: site, key's fingerprint, where they asked from, whom they would replace."""
        return await services.store.read(waiting.listed)

    @routes.post("/enrolments/{device}/approve")
    async def approve(device: str, person: Annotated[Person, may(Permission.ENROL)]) -> dict[str, Any]:
        """Let the box in whose key has that fingerprint."""
        return await _decide(device, person, approved=True)

    @routes.post("/enrolments/{device}/deny")
    async def deny(device: str, person: Annotated[Person, may(Permission.ENROL)]) -> dict[str, Any]:
        """Turn the box away; its token is worth nothing any more."""
        return await _decide(device, person, approved=False)

    async def _decide(device: str, person: Person, *, approved: bool) -> dict[str, Any]:
        try:
            return await services.identities.decide(device, approved=approved, by=person.name)
        except LookupError as error:
            raise Problem(404, str(error)) from error


def _ending(routes: APIRouter, services: Services) -> None:
    @routes.post("/devices/{device}/revoke")
    async def revoke(
        device: str, request: Request, person: Annotated[Person, may(Permission.DEVICES)]
    ) -> dict[str, Any]:
        """Throw a device out: its session is cut, its certificates and tokens are worth nothing."""
        asked = await read(request, Reason)
        try:
            cut = await services.identities.revoke(device, by=person.name, reason=asked.reason)
        except LookupError as error:
            raise Problem(404, str(error)) from error
        return {"device": cut.device, "cut_s": cut.seconds, "sentence": cut.sentence}


def _authority(routes: APIRouter, services: Services) -> None:
    @routes.get("/authority")
    async def status(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """The authorities in force, how many devices have moved to the newest, and the revocation list's age."""
        return await services.identities.status()

    @routes.post("/authority/roll")
    async def roll(person: Annotated[Person, may(Permission.DEVICES)]) -> dict[str, Any]:
        """Begin a new authority beside the present one."""
        try:
            return await services.identities.roll(person.name)
        except RollError as error:
            raise Problem(409, str(error)) from error

    @routes.post("/authority/finish")
    async def finish(request: Request, person: Annotated[Person, may(Permission.DEVICES)]) -> dict[str, Any]:
        """Drop the former authority; refused while devices would be stranded, unless forced."""
        asked = await read(request, Finish)
        try:
            return await services.identities.finish(person.name, force=asked.force)
        except RollError as error:
            raise Problem(409, str(error)) from error
