"""How many facts a second devices may send."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from sqlalchemy import Connection, select

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read, text_of
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.desired import rates
from landreeve_hub.store import tables


class NewRate(msgspec.Struct, forbid_unknown_fields=True):
    """For one ``device`` (id or site) or for all with a ``label`` (key=value). ``facts_per_s`` null forgets the rate,
    0 sets no limit."""

    facts_per_s: Annotated[float, Meta(ge=0, le=rates.MAX_FACTS_PER_S)] | None
    device: str = ""
    label: str = ""


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, store = APIRouter(), services.store

    @routes.get("/rates")
    async def listed(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """The fleet's rate and every rate set for a device or a label; null sets no limit."""
        return {"fleet": services.facts_per_s, "rates": await store.read(rates.listed)}

    @routes.post("/rates")
    async def change(request: Request, person: Annotated[Person, may(Permission.STEER)]) -> dict[str, Any]:
        """Ask one device, or all with a label, for at most so many facts a second."""
        asked, now = await read(request, NewRate), services.clock()

        def write(connection: Connection) -> tuple[str, str, set[str]]:
            scope, name = _target(connection, asked)
            concerned = rates.set_rate(connection, (scope, name), asked.facts_per_s, person.name, now)
            data = {"facts_per_s": asked.facts_per_s, "devices": len(concerned)}
            services.audit.record_in(connection, now, Act(person.name, "device.rate", f"{scope}:{name}", data=data))
            return scope, name, concerned

        scope, name, concerned = await store.write(write)
        services.runner.touch(concerned)
        services.changes.say("fleet")
        return {"scope": scope, "name": name, "facts_per_s": asked.facts_per_s, "devices": sorted(concerned)}

    return routes


def _target(connection: Connection, asked: NewRate) -> tuple[str, str]:
    if bool(asked.device) == bool(asked.label):
        raise Problem(422, "body: name one of device and label")
    if asked.label:
        key, equals, value = asked.label.partition("=")
        if not (key and equals and value) or len(asked.label) > 200:
            raise Problem(422, f"body.label: {text_of(asked.label)} is no label: write it as key=value")
        return rates.LABEL, rates.label_name(key, value)
    table = tables.devices
    where = ((table.c.id == asked.device) | (table.c.site == asked.device)) & ~table.c.revoked
    found = connection.execute(select(table.c.id).where(where)).scalar_one_or_none()
    if found is None:
        raise Problem(404, f"There is no device or site {text_of(asked.device)}.")
    return rates.DEVICE, str(found)
