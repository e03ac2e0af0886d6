"""Incidents."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection, select

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.incidents import incidents
from landreeve_hub.store import tables


class Note(msgspec.Struct, forbid_unknown_fields=True):
    note: str = ""


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, store = APIRouter(), services.store

    @routes.get("/incidents")
    async def listed(
        _: Annotated[Person, may(Permission.VIEW)],
        state: str = "",
        limit: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    ) -> list[dict[str, Any]]:
        """Incidents, newest first; all of them without a limit."""
        return await store.read(lambda c: incidents.listed(c, state, limit))

    @routes.get("/incidents/{incident}")
    async def shown(incident: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        return await store.read(lambda c: incidents.shown(c, incident))

    @routes.post("/incidents/{incident}/acknowledge")
    async def acknowledge(
        incident: str, request: Request, person: Annotated[Person, may(Permission.INCIDENTS)]
    ) -> dict[str, Any]:
        """Someone takes care of it."""
        return await _move(services, "acknowledge", incident, person, (await read(request, Note)).note)

    @routes.post("/incidents/{incident}/close")
    async def close(
        incident: str, request: Request, person: Annotated[Person, may(Permission.INCIDENTS)]
    ) -> dict[str, Any]:
        """It is over. An emergency approval is closed by its review: by someone else than who approved."""
        return await _move(services, "close", incident, person, (await read(request, Note)).note)

    return routes


async def _move(services: Services, verb: str, incident: str, person: Person, note: str) -> dict[str, Any]:
    now = services.clock()

    def move(connection: Connection) -> dict[str, Any]:
        if verb == "close":
            _check_review(connection, incident, person)
            services.incidents.close_in(connection, now, incident, person.name, note)
        else:
            services.incidents.acknowledge_in(connection, now, incident, person.name, note)
        services.audit.record_in(connection, now, Act(person.name, f"incident.{verb}", incident))
        return incidents.shown(connection, incident)

    shown = await services.store.write(move)
    services.changes.say("incidents")
    return shown


def _check_review(connection: Connection, incident: str, person: Person) -> None:
    """The second review of an emergency approval is a second person's."""
    row = connection.execute(select(tables.incidents).where(tables.incidents.c.id == incident)).first()
    if row is not None and row.kind == "emergency_review" and row.subject.get("approved_by") == person.name:
        raise Problem(403, f"{person.name} gave this emergency approval; someone else must review it.")
