"""Rollouts: preview, start, steer."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api import rollout_views
from landreeve_hub.api.body import read
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.release_routes import find
from landreeve_hub.api.services import Services
from landreeve_hub.rollout import book
from landreeve_hub.rollout.policy import parse_plan, resolve
from landreeve_hub.rollout.runner import Proposal
from landreeve_hub.rollout.sight import fleet_sites


class NewRollout(msgspec.Struct, forbid_unknown_fields=True):
    """``release`` (digest or its beginning) or ``version`` of the model; ``force`` is the reason to take a
    quarantined release; ``preview`` only shows who would be in which wave."""

    model: str
    release: str = ""
    version: str = ""
    plan: dict[str, Any] = {}
    force: str = ""
    preview: bool = False


class Steering(msgspec.Struct, forbid_unknown_fields=True):
    emergency: str = ""


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, store = APIRouter(), services.store

    @routes.get("/rollouts")
    async def rollouts(_: Annotated[Person, may(Permission.VIEW)], model: str = "") -> list[dict[str, Any]]:
        """Rollouts, newest first."""
        now = services.clock()
        return await store.read(lambda c: rollout_views.rows(c, now, model))

    @routes.get("/rollouts/{rollout}")
    async def one(rollout: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        return await _row(services, rollout)

    @routes.post("/rollouts", status_code=201)
    async def start(request: Request, person: Annotated[Person, may(Permission.PROPOSE)]) -> dict[str, Any]:
        """Propose a rollout; it runs once someone else approved it."""
        asked = await read(request, NewRollout)
        plan = parse_plan(asked.plan)
        if asked.preview:
            sites = await store.read(fleet_sites)
            return {"waves": [[sites[device] for device in wave] for wave in resolve(plan, sites)]}
        if not (asked.release or asked.version):
            raise Problem(422, "release: name the release by digest, or give its version")
        name = asked.release or f"{asked.model}@{asked.version}"
        found = await store.read(lambda c: find(c, name))
        proposal = Proposal(asked.model, found["digest"], plan, asked.force)
        made = await services.runner.create(proposal, person.name, services.clock())
        return await _row(services, made.id)

    def steer(verb: str, permission: Permission, doc: str) -> None:
        async def route(rollout: str, request: Request, person: Annotated[Person, may(permission)]) -> dict[str, Any]:
            asked = await read(request, Steering)
            await services.runner.command(rollout, verb, person, services.clock(), asked.emergency)
            return await _row(services, rollout)

        routes.add_api_route(f"/rollouts/{{rollout}}/{verb}", route, methods=["POST"], description=doc, name=verb)

    steer("approve", Permission.APPROVE, "Begin the first wave. Not by whoever proposed it.")
    steer("pause", Permission.STEER, "No further orders until resumed; devices under way go on.")
    steer("resume", Permission.STEER, "Go on, accepting what is known until now.")
    steer("next", Permission.STEER, "Begin the next wave now.")
    steer("abort", Permission.STEER, "End here: who committed keeps the release, who is on the way returns.")
    steer("rollback", Permission.ROLL_BACK, "Every device returns to its own last good release.")
    return routes


async def _row(services: Services, rollout: str) -> dict[str, Any]:
    now = services.clock()
    return await services.store.read(lambda c: rollout_views.row(c, book.load(c, rollout), now))
