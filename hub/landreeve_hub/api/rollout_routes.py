"""Rollouts: preview, start, steer."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request
from landreeve.audit import ledger
from sqlalchemy import Connection, select

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api import rollout_views, why_views
from landreeve_hub.api.body import read, text_of
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.release_routes import find
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Entry
from landreeve_hub.audit.shelf import HubShelf
from landreeve_hub.rollout import book
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.propose import Preview, Proposal, Risk, preview
from landreeve_hub.store import tables

MOST_KEY = 200


class NewRollout(msgspec.Struct, forbid_unknown_fields=True):
    """``release`` (digest or its beginning) or ``version`` of the model; ``force`` is the reason to take a
    quarantined release; ``preview`` only shows who would be in which wave; ``queue`` lets it wait behind a rollout of
    the same model. ``why``, ``risk`` and ``rollback_plan`` go into the change record."""

    model: str
    release: str = ""
    version: str = ""
    plan: dict[str, Any] = {}
    force: str = ""
    preview: bool = False
    queue: bool = False
    why: str = ""
    risk: Risk = ""
    rollback_plan: str = ""


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    """A plan to look at; with ``model`` also what must come first is looked at as for a rollout of it."""

    plan: dict[str, Any] = {}
    model: str = ""


class Steering(msgspec.Struct, forbid_unknown_fields=True):
    """``wave`` (from 1) is the one to begin with ``next``, so that a repeat begins no other; ``devices`` (ids or site
    names) those to ``retry``, none meaning all that failed, fell silent or were left out."""

    emergency: str = ""
    wave: int = 0
    devices: tuple[str, ...] = ()


class Resolution(msgspec.Struct, forbid_unknown_fields=True):
    """Who is right about a device in conflict: ``adopt`` takes over what it runs, ``override`` orders what the hub
    wants."""

    adopt: bool = False
    override: bool = False


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()
    _look(routes, services)
    _start(routes, services)
    _steer(routes, services)
    _devices(routes, services)
    return routes


def _look(routes: APIRouter, services: Services) -> None:
    store = services.store

    @routes.get("/rollouts")
    async def rollouts(
        _: Annotated[Person, may(Permission.VIEW)],
        model: str = "",
        *,
        ended: bool = False,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> list[dict[str, Any]]:
        """Rollouts, newest first. ``ended`` answers with at most ``limit`` of those that are over, in brief: all their
        waves as one, no gates, devices or log."""
        if ended:
            return await store.read(lambda c: rollout_views.ended(c, limit, model))
        now, pools = services.clock(), services.runner.pools()
        return await store.read(lambda c: rollout_views.rows(c, now, model, pools))

    @routes.get("/rollouts/{rollout}")
    async def one(rollout: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        return await _row(services, rollout)

    @routes.get("/rollouts/{rollout}/record")
    async def record(rollout: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """The change record: who, why, risk, way back, approvals, timeline, outcome of every device."""

        def made(connection: Connection) -> dict[str, Any]:
            kept = book.load(connection, rollout)
            return rollout_views.record(connection, kept, _audited(connection, rollout))

        return await store.read(made)


def _audited(connection: Connection, rollout: str) -> list[dict[str, Any]]:
    """What the audit log holds about the rollout, with the names of people as far as they are not erased."""
    table = tables.audit
    query = select(table).where(table.c.object == rollout).order_by(table.c.seq)
    entries = [Entry(**row) for row in connection.execute(query).mappings()]
    shown = ledger.revealed(HubShelf(connection), entries)
    names = ("at", "actor", "action", "decision", "data")
    return [{name: getattr(entry, name) for name in names} for entry in shown]


def _start(routes: APIRouter, services: Services) -> None:
    store = services.store

    async def shown(raw: dict[str, Any], model: str) -> dict[str, Any]:
        plan, now = parse_plan(raw), services.clock()
        return _preview(await store.read(lambda c: preview(c, plan, now, model)))

    @routes.post("/rollouts/preview")
    async def plan(request: Request, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Exactly which devices a plan would take, wave by wave. Nothing is kept."""
        asked = await read(request, Plan)
        return await shown(asked.plan, asked.model)

    @routes.post("/rollouts", status_code=201)
    async def start(request: Request, person: Annotated[Person, may(Permission.PROPOSE)]) -> dict[str, Any]:
        """Propose a rollout; it runs once someone else approved it."""
        asked = await read(request, NewRollout)
        if asked.preview:
            return await shown(asked.plan, asked.model)
        parsed = parse_plan(asked.plan)
        if not (asked.release or asked.version):
            raise Problem(422, "release: name the release by digest, or give its version")
        name = asked.release or f"{asked.model}@{asked.version}"
        found = await store.read(lambda c: find(c, name))
        if found["model"] != asked.model:
            raise Problem(422, f"release: {text_of(name)} is a release of {found['model']}, not of {asked.model!r}")
        more = {name: getattr(asked, name) for name in ("force", "queue", "why", "risk", "rollback_plan")}
        proposal = Proposal(asked.model, found["digest"], parsed, **more)
        made = await services.runner.create(proposal, person.name, services.clock())
        return await _row(services, made.id)


def _preview(seen: Preview) -> dict[str, Any]:
    return {
        "waves": [[seen.sites[device] for device in wave] for wave in seen.waves],
        "devices": [[{"id": d, "site": seen.sites[d], "place": seen.places.get(d, "")} for d in w] for w in seen.waves],
        "notes": list(seen.notes),
    }


def _steer(routes: APIRouter, services: Services) -> None:
    def steer(verb: str, permission: Permission, doc: str) -> None:
        async def route(
            rollout: str,
            request: Request,
            person: Annotated[Person, may(permission)],
            idempotency_key: Annotated[str, Header(max_length=MOST_KEY)] = "",
        ) -> dict[str, Any]:
            steering, now = await read(request, Steering), services.clock()
            key = f"{verb}:{person.name}:{idempotency_key}" if idempotency_key else ""
            asked = Asked(person.name, now, key, steering.wave, steering.devices)
            await services.runner.command(rollout, verb, person, now, steering.emergency, asked)
            return await _row(services, rollout)

        routes.add_api_route(f"/rollouts/{{rollout}}/{verb}", route, methods=["POST"], description=doc, name=verb)

    steer("approve", Permission.APPROVE, "Begin the first wave. Not by whoever proposed it.")
    steer("pause", Permission.STEER, "No further orders until resumed; devices under way go on.")
    steer("resume", Permission.STEER, "Go on, accepting what is known until now.")
    steer("next", Permission.STEER, "Begin the next wave now.")
    steer("abort", Permission.STEER, "End here: who committed keeps the release, who is on the way returns.")
    steer("retry", Permission.STEER, "Try again where it failed, fell silent or was left out.")
    steer("rollback", Permission.ROLL_BACK, "Every device returns to its own last good release.")


def _devices(routes: APIRouter, services: Services) -> None:
    store = services.store

    @routes.get("/devices/{device}/why")
    async def why(device: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Why the device is on the version it is on, from what was stored when it happened."""
        now = services.clock()
        found = await store.read(lambda c: why_views.why(c, device, now))
        if found is None:
            raise Problem(404, f"There is no device or site {text_of(device)}.")
        return found

    @routes.post("/devices/{device}/resolve")
    async def resolve(
        device: str, request: Request, person: Annotated[Person, may(Permission.STEER)]
    ) -> dict[str, str]:
        """The hub was restored from an older backup and the device obeys a newer document: say who is right."""
        asked = await read(request, Resolution)
        if asked.adopt == asked.override:
            raise Problem(422, "adopt, override: say exactly one of them")
        table = tables.devices
        own = select(table.c.id).where((table.c.id == device) | (table.c.site == device), ~table.c.revoked)
        found = await store.read(lambda c: c.execute(own).scalar())
        if found is None:
            raise Problem(404, f"There is no device or site {text_of(device)}.")
        return {"id": found, "sentence": await services.runner.resolve(found, asked.adopt, person, services.clock())}


async def _row(services: Services, rollout: str) -> dict[str, Any]:
    now, pools = services.clock(), services.runner.pools()
    return await services.store.read(lambda c: rollout_views.row(c, book.load(c, rollout), now, pools))
