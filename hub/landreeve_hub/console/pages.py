"""The fleet console's pages. Each one reads the public API in the name of the person looking at it."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from landreeve.ui.console import Console, Entry, Page
from landreeve.ui.inside import Api

NAVIGATION = (
    Entry("overview", "/", "Overview", "overview"),
    Entry("models", "/models", "Models", "models"),
    Entry("updates", "/updates", "Updates", "updates"),
)


def install(app: FastAPI) -> Console:
    """Mount the console behind everything ``app`` already answers: call it after the API's routes exist.

    The console signs in through ``POST /api/v1/sessions {"code": …}`` (cookie) and out through
    ``DELETE /api/v1/sessions``. Call the returned console's ``close()`` when the process is asked to stop: open
    event streams would hold the server back.
    """
    console = Console(
        app,
        product="site",
        package="landreeve_hub.console",
        pages=(
            Page("/", "overview.html", _overview, "overview"),
            Page("/login", "login.html", _nothing, open=True),
        ),
        navigation=NAVIGATION,
        frame=_frame,
    )
    app.mount("/", console, name="console")
    return console


async def _frame(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    status = await api.get("status")
    return {"status": status, "place": status["site"]}


async def _overview(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {}


async def _nothing(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {}
