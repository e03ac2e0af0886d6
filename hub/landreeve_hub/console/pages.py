"""The fleet console's pages. Each one reads the public API in the name of the person looking at it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from landreeve.ui.console import Console, Entry, Page
from landreeve.ui.inside import Api, ApiError

from landreeve_hub.console import drift, records, releases, rollouts, wizard
from landreeve_hub.console.answers import listed

NAVIGATION = (
    Entry("fleet", "/", "Fleet", "fleet"),
    Entry("models", "/models", "Models", "models", badge="models"),
    Entry("rollouts", "/rollouts", "Rollouts", "rollouts", badge="rollouts"),
    Entry("drift", "/drift", "Drift", "drift"),
    Entry("incidents", "/incidents", "Incidents", "incidents", badge="incidents"),
    Entry("audit", "/audit", "Audit", "audit"),
    Entry("keys", "/keys", "Keys", "keys"),
)
SHOWN_DEVICES = 100
SHOWN_INCIDENTS = 200


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
            Page("/rollouts", "rollouts.html", rollouts.every, "rollouts"),
            Page("/rollouts/new", "wizard.html", wizard.load, "rollouts", period_s=30),
            Page("/rollouts/{id}", "rollout.html", rollouts.one, "rollouts"),
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
    incidents = listed(await api.find("incidents", query={"state": "open"}))
    badges = {"incidents": len(incidents), "models": 0, "rollouts": 0}
    return {"me": me, "place": "hub", "badges": badges, "open_incidents": incidents}


async def _fleet(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    fleet = await api.get("fleet", "summary")
    asked = {"filter": query.get("filter", ""), "after": query.get("after", ""), "limit": str(SHOWN_DEVICES)}
    try:
        page = await api.get("fleet", "devices", query=asked)
    except ApiError as error:
        if error.status != 422:
            raise
        page = await api.get("fleet", "devices", query={**asked, "after": ""})  # a cursor somebody made up
    return {
        "fleet": fleet,
        "cells": fleet["cells"],
        "left_out": fleet["cells_left_out"],
        "waiting": listed(await api.find("enrolments")),
        "devices": page["items"],
        "matching": page["matching"],
        "first": _listing(asked["filter"], "") if asked["after"] else "",
        "further": _listing(asked["filter"], page["next"]) if page["next"] else "",
    }


def _listing(text: str, after: str) -> str:
    """The address of a page of the device table."""
    return f"/?{urlencode({'filter': text, 'after': after})}#devices-title"


async def _device(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    device = await api.get("devices", names["id"])
    delivery = await api.find("delivery") or []
    own = next((row for row in listed(delivery) if row.get("device") == device["id"]), None)
    why = await api.find("devices", device["id"], "why")
    return {"device": device, "delivery": own, "why": why}


async def _incidents(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    wanted = query.get("state", "")
    asked = {"limit": str(SHOWN_INCIDENTS), **({"state": wanted} if wanted else {})}
    return {"incidents": listed(await api.get("incidents", query=asked)), "wanted": wanted, "most": SHOWN_INCIDENTS}


async def _login(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {}
