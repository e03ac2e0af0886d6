"""A fleet at a glance, at any size: `landreeve_hub.fleet.overview` over the store."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api import device_views, rollout_views
from landreeve_hub.api.guard import may
from landreeve_hub.api.paced import Paced
from landreeve_hub.api.services import Services
from landreeve_hub.fleet import overview


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, store, clock = APIRouter(), services.store, services.clock
    devices = Paced(store, lambda c: device_views.rows(c, clock(), slim=True), len)
    rollouts = Paced(store, lambda c: _going(c, services), _members)

    @routes.get("/fleet/summary")
    async def summary(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Counts, one cell for each site worth a look, what runs where, and the rollouts under way without their
        devices. In a fleet of many hundred devices it is some seconds old."""
        rows, going = await devices.get(), await rollouts.get()
        cells = overview.cells(rows)
        return {
            "counts": overview.counts(rows),
            "waiting": [sentence for rollout in going for sentence in rollout["waiting"]],
            "cells": cells,
            "cells_left_out": len(rows) - len(cells),
            "running": overview.running(rows),
            "rollouts": going,
            "hub": {"version": services.version, "time": clock().isoformat()},
        }

    @routes.get("/fleet/devices")
    async def page(
        _: Annotated[Person, may(Permission.VIEW)],
        filter: str = "",  # noqa: A002  as the console's address names it
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        *,
        slim: bool = False,
    ) -> dict[str, Any]:
        """Devices that match a filter (``is:offline hw:npu model:x@4 -tag:lab``), the worst first and then by site;
        ``next`` is the cursor (``after``) of the following page. ``slim`` leaves figures out."""
        found = overview.page(await devices.get(), filter, after, limit)
        if slim:
            return found
        ids, now = [row["id"] for row in found["items"]], clock()
        fresh = {row["id"]: row for row in await store.read(lambda c: device_views.rows(c, now, ids))}
        return {**found, "items": [fresh[one] for one in ids if one in fresh]}

    return routes


def _going(connection: Connection, services: Services) -> list[dict[str, Any]]:
    """The rollouts under way, in brief."""
    rows = rollout_views.active_rows(connection, services.clock(), services.runner.pools())
    return [rollout_views.brief(row) for row in rows]


def _members(rollouts: list[dict[str, Any]]) -> int:
    return sum(wave["total"] for rollout in rollouts for wave in rollout["waves"])
