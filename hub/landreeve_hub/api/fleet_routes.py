"""Fleet, devices, enrolment, delivery, drift, learning."""

import asyncio
from functools import lru_cache, partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from landreeve.release.manifest import BadReleaseError
from landreeve.wire.ids import check_id
from sqlalchemy import Connection, select

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api import drift_views, views
from landreeve_hub.api.body import read, text_of
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.desired import lines
from landreeve_hub.desired.rates import rate_of
from landreeve_hub.learning.retrain import Train
from landreeve_hub.learning.runner import why
from landreeve_hub.store import tables

BASELINE = "baseline.json"


class NewEnrolment(msgspec.Struct, forbid_unknown_fields=True):
    site: str
    labels: dict[str, str] = {}
    replaces: bool = False


class NewCommand(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    args: dict[str, Any] = {}


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()
    _fleet(routes, services)
    _orders(routes, services)
    _insight(routes, services)
    return routes


def _fleet(routes: APIRouter, services: Services) -> None:
    """What the fleet is, and how each device does."""
    store = services.store

    @routes.get("/fleet")
    async def fleet(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """The verdict over the fleet: counts, devices, what runs and what is waited for."""
        now = services.clock()
        return await store.read(lambda c: views.fleet(c, now, services.version))

    @routes.get("/devices")
    async def devices(_: Annotated[Person, may(Permission.VIEW)]) -> list[dict[str, Any]]:
        now = services.clock()
        return await store.read(lambda c: views.devices(c, now))

    @routes.get("/devices/{device}")
    async def device(device: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """One device by id or site name."""
        now = services.clock()
        found = await store.read(lambda c: views.device(c, device, now))
        if found is None:
            raise Problem(404, f"There is no device or site {text_of(device)}.")
        rate = await store.read(lambda c: rate_of(c, found["id"], services.facts_per_s))
        line = await store.read(lambda c: lines.shown_of(c, found["id"])) or services.line
        return {**found, "facts_per_s": rate, "line": line}


def _orders(routes: APIRouter, services: Services) -> None:
    """What people ask of a device, and who may join."""
    store = services.store

    @routes.post("/devices/{device}/commands", status_code=202)
    async def command(
        device: str, request: Request, person: Annotated[Person, may(Permission.DEVICES)]
    ) -> dict[str, str]:
        """A one-off command; its answer is an event."""
        asked, now = await read(request, NewCommand), services.clock()

        def issue(connection: Connection) -> str:
            own = _device_id(connection, device)
            if own is None:
                raise Problem(404, f"There is no device or site {text_of(device)}.")
            act = Act(person.name, "device.command", own, data={"name": asked.name})
            services.audit.record_in(connection, now, act)
            return services.commands.issue_in(connection, now, own, check_id(asked.name), asked.args)

        issued = await store.write(issue)
        await services.commands.resend(now)
        return {"id": issued}

    @routes.get("/commands/{command_id}")
    async def command_answer(command_id: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """A command and, once the device gave it, its answer."""
        table = tables.commands
        found = await store.read(lambda c: c.execute(select(table).where(table.c.id == command_id)).mappings().first())
        if found is None:
            raise Problem(404, f"There is no command {text_of(command_id)}.")
        return dict(found)

    @routes.post("/enrolment-tokens", status_code=201)
    async def enrol(request: Request, person: Annotated[Person, may(Permission.ENROL)]) -> dict[str, str]:
        """A single-use token that lets one box of that site join within 24 h; ``replaces`` lets it take the place of
        the site's present box."""
        asked, now = await read(request, NewEnrolment), services.clock()
        token = await services.mint(check_id(asked.site), asked.labels, now, replaces=asked.replaces)
        act = Act(person.name, "enrolment.mint", asked.site, data={"replaces": True} if asked.replaces else {})
        await services.audit.record(now, act)
        return {"site": asked.site, "token": str(token)}


def _insight(routes: APIRouter, services: Services) -> None:
    """What happened, what arrived, what drifts, what is learnt."""
    store = services.store
    # A release never changes under its digest, and an open page asks every second.
    reference = lru_cache(maxsize=16)(partial(_reference, services))

    @routes.get("/happened")
    async def happened(
        _: Annotated[Person, may(Permission.VIEW)],
        before: int = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        device: str = "",
    ) -> dict[str, Any]:
        """What happened on the devices, newest first; ``next`` is the cursor of the following page."""
        found = await store.read(lambda c: views.events(c, device=device, before=before, limit=limit))
        return {"items": found, "next": found[-1]["n"] if len(found) == limit else None}

    @routes.get("/delivery")
    async def delivery(_: Annotated[Person, may(Permission.VIEW)]) -> list[dict[str, Any]]:
        """Facts received, high-water marks, gaps and suppressed repeats of each device."""
        return await services.delivery.view()

    @routes.get("/drift/{model}")
    async def drift(model: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Features by site, the fleet's merged sketches, and what the release was trained on."""
        found = await store.read(lambda c: drift_views.drift(c, model))
        return {**found, "reference": await asyncio.to_thread(reference, found["merged"]["release"])}

    @routes.get("/retrains")
    async def retrains(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Trainings asked for and offered, and what learning does about each model now, in words."""
        return await store.read(_retrains)


def _reference(services: Services, release: str) -> dict[str, Any]:
    """The sketches of a release's training data; empty where there is no release or the hub does not hold it."""
    if not release:
        return {"release": "", "sketches": {}}
    try:
        baseline = services.releases.pull(release).file(BASELINE)
    except (LookupError, BadReleaseError, OSError):
        # A window may speak of a release that this hub, restored from a backup, has never had.
        return {"release": release, "sketches": {}}
    return {"release": release, "sketches": msgspec.json.decode(baseline)["columns"]}


def _device_id(connection: Connection, name: str) -> str | None:
    table = tables.devices
    where = ((table.c.id == name) | (table.c.site == name)) & ~table.c.revoked
    return connection.execute(select(table.c.id).where(where)).scalar_one_or_none()


def _retrains(connection: Connection) -> dict[str, Any]:
    devices = tables.devices
    sites = dict(connection.execute(select(devices.c.id, devices.c.site)).all())
    runs = connection.execute(select(tables.runs).order_by(tables.runs.c.at.desc())).mappings()
    waiting = {}
    for model in connection.execute(select(tables.models)):
        answer = why(connection, model.name, model.definition)
        waiting[model.name] = f"Training is due: {answer.reason}" if isinstance(answer, Train) else answer.words
    return {"runs": [{**run, "site": sites.get(run["device"], "")} for run in runs], "waiting": waiting}
