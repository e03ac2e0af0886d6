"""The fleet console's pages. Each one reads the public API in the name of the person looking at it."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from landreeve.ui.console import Console, Entry, Page
from landreeve.ui.inside import Api

from landreeve_hub.console import drift, records, releases, wizard
from landreeve_hub.console.answers import listed
from landreeve_hub.fleet.filter import select

NAVIGATION = (
    Entry("fleet", "/", "Fleet", "fleet"),
    Entry("models", "/models", "Models", "models", badge="models"),
    Entry("rollouts", "/rollouts", "Rollouts", "rollouts", badge="rollouts"),
    Entry("drift", "/drift", "Drift", "drift"),
    Entry("incidents", "/incidents", "Incidents", "incidents", badge="incidents"),
    Entry("audit", "/audit", "Audit", "audit"),
    Entry("keys", "/keys", "Keys", "keys"),
)
SHOWN_DEVICES = 200
WORST_FIRST = ("failing", "drift", "offline", "healthy")


def install(app: FastAPI) -> Console:
    """Mount the console behind everything ``app`` already answers: call it after the API's routes exist.

    People sign in through ``POST /api/v1/sessions`` (cookie) and out through ``DELETE /api/v1/sessions``. Call the
    returned console's ``close()`` when the process is asked to stop: open event streams would hold the server back.
    """
    console = Console(
        app,
        product="hub",
        package="landreeve_hub.console",
        pages=(
            Page("/", "fleet.html", _fleet, "fleet"),
            Page("/devices/{id}", "device.html", _device, "fleet"),
            Page("/models", "models.html", releases.models, "models"),
            Page("/models/{name}", "model.html", releases.model, "models"),
            Page("/rollouts", "rollouts.html", _rollouts, "rollouts"),
            Page("/rollouts/new", "wizard.html", wizard.load, "rollouts"),
            Page("/rollouts/{id}", "rollout.html", _rollout, "rollouts"),
            Page("/drift", "drift.html", drift.load, "drift"),
            Page("/incidents", "incidents.html", _incidents, "incidents"),
            Page("/audit", "audit.html", records.audit, "audit", period_s=0),
            Page("/keys", "keys.html", records.keys, "keys", period_s=5),
            Page("/login", "login.html", _login, open=True),
        ),
        navigation=NAVIGATION,
        frame=_frame,
    )
    app.mount("/", console, name="console")
    return console


async def _frame(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    me = await api.get("me")
    incidents = listed(await api.find("incidents"))
    badges = {"incidents": sum(row.get("state") == "open" for row in incidents), "models": 0, "rollouts": 0}
    return {"me": me, "place": "hub", "badges": badges, "open_incidents": incidents}


async def _fleet(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    fleet = await api.get("fleet")
    rank = {state: number for number, state in enumerate(WORST_FIRST)}
    devices = sorted(fleet["devices"], key=lambda row: (rank.get(row["state"], 9), row["site"]))
    matching = select(devices, query.get("filter", ""))
    cells = sorted(fleet["devices"], key=lambda row: str(row["site"]))
    waiting = listed(await api.find("enrolments"))
    shown = {"devices": matching[:SHOWN_DEVICES], "matching": len(matching)}
    return {"fleet": fleet, "cells": cells, "waiting": waiting, **shown}


async def _device(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    device = await api.get("devices", names["id"])
    delivery = await api.find("delivery") or []
    own = next((row for row in listed(delivery) if row.get("device") == device["id"]), None)
    why = await api.find("devices", device["id"], "why")
    return {"device": device, "delivery": own, "why": why}


async def _rollouts(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {"rollouts": listed(await api.get("rollouts"))}


async def _rollout(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {"rollout": await api.get("rollouts", names["id"])}


async def _incidents(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    wanted = query.get("state", "")
    rows = listed(await api.get("incidents"))
    return {"incidents": [row for row in rows if not wanted or row.get("state") == wanted], "wanted": wanted}


async def _login(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {}
