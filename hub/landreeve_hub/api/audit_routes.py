"""The audit log: reading, checking, erasing."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Tampered


class Whom(msgspec.Struct, forbid_unknown_fields=True):
    subject: str


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()

    @routes.get("/audit")
    async def listed(
        _: Annotated[Person, may(Permission.AUDIT)], before: int = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """The log, newest first; ``next`` is the cursor of the following page."""
        found = await services.audit.listed(before, limit)
        return {"items": msgspec.to_builtins(found), "next": found[-1].seq if len(found) == limit else None}

    @routes.get("/audit/verify")
    async def verify(_: Annotated[Person, may(Permission.AUDIT)]) -> dict[str, Any]:
        """Whether the log is as it was written; reads all of it."""
        answer = await services.audit.verify()
        return {"whole": not isinstance(answer, Tampered), **msgspec.to_builtins(answer)}

    @routes.post("/audit/erase")
    async def erase(request: Request, person: Annotated[Person, may(Permission.ERASE)]) -> dict[str, Any]:
        """Make what the log holds about someone unreadable for ever; the log still verifies."""
        asked, now = await read(request, Whom), services.clock()
        try:
            return await services.store.write(lambda c: services.audit.erase_in(c, now, asked.subject, person.name))
        except LookupError as error:
            raise Problem(404, str(error)) from error

    return routes
