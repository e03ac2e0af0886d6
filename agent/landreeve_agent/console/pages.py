"""The local console's pages. Each one reads the public API in the name of the person looking at it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from landreeve.ui import audit_page
from landreeve.ui.console import Console, Entry, Page
from landreeve.ui.inside import Api, ApiError

from landreeve_agent.console import stages, trying

NAVIGATION = (
    Entry("overview", "/", "Overview", "overview"),
    Entry("models", "/models", "Models", "models", badge="models"),
    Entry("data", "/data", "Data & drift", "drift"),
    Entry("training", "/training", "Training", "training"),
    Entry("updates", "/updates", "Updates", "updates", badge="updates"),
    Entry("audit", "/audit", "Audit", "audit"),
)

ENDED = frozenset({"COMMITTED", "ROLLED_BACK", "REJECTED", "CANCELLED", "ROLLBACK_FAILED"})


def install(app: FastAPI) -> Console:
    """Mount the console behind everything ``app`` already answers: call it after the API's routes exist.

    The console signs in through ``POST /api/v1/sessions {"code": …}`` (cookie) and out through
    ``DELETE /api/v1/sessions``. Call the returned console's ``close()`` when the process is asked to stop: open
    event streams would hold the server back.
    """
    trying.install(app)
    stages.install(app)
    console = Console(
        app,
        product="site",
        package="landreeve_agent.console",
        pages=(
            Page("/", "overview.html", _nothing, "overview"),
            Page("/models", "models.html", _nothing, "models"),
            Page("/models/{name}", "model.html", _model, "models"),
            Page("/data", "data.html", _data, "data"),
            Page("/training", "training.html", _training, "training"),
            Page("/updates", "updates.html", _updates, "updates"),
            Page("/hardware", "hardware.html", _hardware, "overview"),
            Page("/audit", "audit.html", _audit, "audit", period_s=0),
            Page("/login", "login.html", _nothing, open=True),
        ),
        navigation=NAVIGATION,
        frame=_frame,
    )
    app.mount("/", console, name="console")
    return console


async def _frame(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    status = await api.get("status")
    models = status["models"]
    moving = [model for model in models if _moving(model.get("update"))]
    worrying = sum(model["health"] in {"data_changed", "failing"} for model in models)
    badges = {"models": worrying, "updates": len(moving)}
    return {"status": status, "place": status["site"], "badges": badges, "moving": moving, "ended": ENDED}


async def _nothing(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {}


async def _model(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    name = names["name"]
    status = await api.get("status")
    known = next((model for model in status["models"] if model["name"] == name), None)
    if known is None:
        raise ApiError(404, "Not found", f"There is no model {name!r} on this site.")
    detail = await api.find("models", name) or {}
    windows = _windows(await api.find("drift", name, query={"limit": "1"}))
    fields = trying.fields(detail.get("definition"), windows[0].get("sketches") if windows else None)
    return {
        "name": name,
        "model": known,
        "columns": fields,
        "curl": _example(api, status["serving"], known, fields),
        "transitions": _listed(detail.get("history")),
        "report": detail.get("plan"),
        "stages": await _stages(api, name) if known["version"] else [],
        "splits": _listed(await api.find("models", name, "splits")),
        "show_model": False,
    }


async def _stages(api: Api, name: str) -> list[dict[str, Any]]:
    """A worker that is being restarted tells nothing for a moment; the rest of the page stands without it."""
    try:
        return _listed(await api.find("models", name, "stages"))
    except ApiError as error:
        if error.status == 502:
            return []
        raise


def _example(api: Api, serving: str, model: Mapping[str, Any], fields: Sequence[Mapping[str, Any]]) -> str:
    """What a program would send: a question once something answers, samples to learn from until then."""
    if model["version"]:
        return trying.curl(serving, model["name"], fields)
    return trying.samples_curl(f"http://{api.request.headers.get('host', '')}", model["name"], fields)


async def _hardware(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {"hardware": await api.find("hardware") or {}}


async def _updates(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {"transitions": _listed(await api.get("updates")), "show_model": True}


async def _training(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    return {"runs": _listed(await api.get("training"))}


async def _data(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    status = await api.get("status")
    known = [model["name"] for model in status["models"]]
    chosen = query.get("model") or (known[0] if known else "")
    answer = await api.find("drift", chosen) if chosen in known else None
    return {"chosen": chosen, "windows": _windows(answer)}


async def _audit(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    standing = await api.find("audit", "status")
    return {"standing": standing, **(await audit_page.load(api, query) if standing else {})}


def _windows(answer: object) -> list[dict[str, Any]]:
    """Closed windows with the members of their report beside their own."""
    return [{**row, **(row.get("report") or {})} for row in _listed(answer)]


def _moving(update: Mapping[str, Any] | None) -> bool:
    return bool(update) and str((update or {}).get("state", "")).upper() not in ENDED


def _listed(answer: object) -> list[dict[str, Any]]:
    """The rows of a JSON answer, whether it is a list or an object that holds one."""
    if isinstance(answer, Mapping):
        answer = next((part for part in answer.values() if isinstance(part, list)), [])
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []
