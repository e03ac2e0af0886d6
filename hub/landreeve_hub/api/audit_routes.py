"""The audit log: reading, checking, erasing."""

import secrets
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from landreeve.audit.finding import Wanted
from sqlalchemy import Connection
from starlette.background import BackgroundTask

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act, Tampered


class Whom(msgspec.Struct, forbid_unknown_fields=True):
    subject: str


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()
    _reading(routes, services)
    _deciding(routes, services)
    return routes


def _reading(routes: APIRouter, services: Services) -> None:
    """What the log holds, and how it stands."""

    @routes.get("/audit")
    async def listed(  # noqa: PLR0917  a query string has no order
        _: Annotated[Person, may(Permission.AUDIT)],
        before: int = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        actor: str = "",
        action: str = "",
        object: str = "",  # noqa: A002  as entries name it
        decision: str = "",
        since: str = "",
        until: str = "",
    ) -> dict[str, Any]:
        """The log, newest first; ``next`` is the cursor of the following page.

        ``actor``, ``action`` and ``object`` match how a member begins, people's names only in full; ``since`` and
        ``until`` are days (both included) or moments.
        """
        wanted = Wanted(actor=actor, action=action, object=object, decision=decision, since=since, until=until)
        found = await services.audit.listed(before, limit, wanted)
        return {"items": msgspec.to_builtins(found), "next": found[-1].seq if len(found) == limit else None}

    @routes.get("/audit/verify")
    async def verify(_: Annotated[Person, may(Permission.AUDIT)]) -> dict[str, Any]:
        """Whether the log is as it was written; reads all of it."""
        answer = await services.audit.verify()
        return {"whole": not isinstance(answer, Tampered), **msgspec.to_builtins(answer)}

    @routes.get("/audit/status")
    async def status(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """How many entries are sealed, who witnessed them, and how the sites' own logs stand."""
        return await services.witnesses.standing()

    @routes.get("/audit/export")
    async def export(person: Annotated[Person, may(Permission.AUDIT)], *, personal: bool = False) -> FileResponse:
        """The whole log as a zip that verifies offline; ``personal`` adds names, which then no erasure reaches."""
        if personal and not person.may(Permission.ERASE):
            raise Problem(403, "Names leave the log only by someone who may also erase them (security, DPO).")
        path = services.work / f"audit-{secrets.token_hex(8)}.zip"
        await services.audit.export(path, services.clock(), person.name, reveal=personal)
        return FileResponse(path, filename="audit.zip", background=BackgroundTask(path.unlink))


def _deciding(routes: APIRouter, services: Services) -> None:
    """What people decide about the log."""

    @routes.post("/audit/erase")
    async def erase(request: Request, person: Annotated[Person, may(Permission.ERASE)]) -> dict[str, Any]:
        """Make what the log holds about someone unreadable for ever; the log still verifies."""
        asked, now = await read(request, Whom), services.clock()
        try:
            return await services.store.write(lambda c: services.audit.erase_in(c, now, asked.subject, person.name))
        except LookupError as error:
            raise Problem(404, str(error)) from error

    @routes.post("/audit/trust")
    async def trust(request: Request, person: Annotated[Person, may(Permission.ERASE)]) -> dict[str, Any]:
        """Begin anew with a site's audit log: someone knows why it is another one (a restored backup)."""
        asked, now = await read(request, Whom), services.clock()

        def begin(connection: Connection) -> bool:
            if not services.witnesses.trust_in(connection, asked.subject):
                return False
            services.audit.record_in(connection, now, Act(person.name, "audit.trust", asked.subject))
            return True

        if not await services.store.write(begin):
            raise Problem(404, f"No audit log of a device {asked.subject[:80]!r} is witnessed here.")
        return {"device": asked.subject}
