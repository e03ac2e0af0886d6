"""A new rollout: choose a release and waves, see exactly which site gets it when, then start it.

The preview is made by the rollout's own rules (`landreeve_hub.rollout.resolve`), so what a person saw is what runs.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from landreeve.ui.inside import Api, ApiError

from landreeve_hub.console.answers import listed, order_of
from landreeve_hub.rollout.forecast import wave_notes
from landreeve_hub.rollout.policy import BadPlanError, Plan, parse_plan
from landreeve_hub.rollout.resolve import Waves, resolve
from landreeve_hub.rollout.waiting import named

SHARES = ("0", "0.1", "0.25", "0.5")
RISKS = ("low", "medium", "high")
MOST_DEVICES = "10000"
MOST = {"max_failures": "0", "max_in_flight": "20", "watch_days": "0", "soak_minutes": "0"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "": {},
    "shadow": {"kind": "shadow", "min_rows": 200},
    "canary": {"kind": "canary", "shares": [0.05, 0.25, 1.0], "step_rows": 100},
    "blue_green": {"kind": "blue_green", "min_s": 60},
}


async def load(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """The form's choices from the query, and the preview of the plan they make."""
    approved = [row for row in listed(await api.find("releases")) if row.get("state") == "approved"]
    devices = listed((await api.get("fleet", "devices", query={"slim": "true", "limit": MOST_DEVICES}))["items"])
    models = sorted({row["model"] for row in approved})
    model = _one_of(models, query.get("model"))
    versions = sorted((str(row["version"]) for row in approved if row["model"] == model), key=order_of, reverse=True)
    version = _one_of(versions, query.get("version"))
    canary = query.get("canary") or min((row["site"] for row in devices), default="")
    share = _one_of(SHARES, query.get("share"))
    strategy = _one_of(tuple(STRATEGIES), query.get("strategy"))
    plan = _plan(canary, share, query)
    if strategy:
        plan["strategy"] = STRATEGIES[strategy]
    choice = {"models": models, "model": model, "versions": versions, "version": version}
    form = {"canary": canary, "share": share, "shares": SHARES, "risks": RISKS}
    typed = {name: query.get(name, MOST.get(name, "")) for name in (*MOST, "second", "after", "from", "to", "why")}
    form |= {"typed": typed, "risk": _one_of(RISKS, query.get("risk"))}
    form |= {"strategies": tuple(STRATEGIES), "strategy": strategy}
    seen = _preview(plan, devices, (model, version, form))
    if slip := _slip(query):
        seen |= {"trouble": slip, "order": ""}
    if plan.get("after") and not seen["trouble"] and (trouble := await _refused(api, model, plan)):
        seen |= {"trouble": trouble, "order": ""}
    return {**choice, **form, "devices": devices, **seen}


async def _refused(api: Api, model: str, plan: Mapping[str, Any]) -> str:
    """What the API has against the plan: only it knows what components there are and which rollouts wait for which."""
    try:
        await api.ask("rollouts", "preview", body={"plan": plan, "model": model})
    except ApiError as error:
        return str(error)
    return ""


def _slip(query: Mapping[str, str]) -> str:
    """What was typed and would otherwise be passed over."""
    if bool(query.get("from")) != bool(query.get("to")):
        return "A window needs both times: from when and until when versions may be switched."
    return ""


def _one_of(choices: Sequence[str], wanted: str | None) -> str:
    """What was wanted if it is a choice, else the first one, else nothing."""
    return wanted if wanted is not None and wanted in choices else (choices[0] if choices else "")


def _plan(canary: str, share: str, query: Mapping[str, str]) -> dict[str, Any]:
    waves: list[dict[str, Any]] = [{"devices": [canary], "name": "Canary"}]
    if second := query.get("second", "").strip():
        waves.append({"query": second, "name": "Chosen"})
    if float(share) > 0:
        waves.append({"share": float(share), "name": "Early"})
    waves.append({"rest": True, "name": "Everyone"})
    limits = {name: _count(query, name) for name in ("max_failures", "max_in_flight")}
    plan: dict[str, Any] = {"waves": waves, "gate": limits}
    if after := query.get("after", "").replace(",", " ").split():
        plan["after"] = after
    if query.get("from") and query.get("to"):
        plan["windows"] = {"activate": [{"start": query["from"], "end": query["to"]}]}
    if minutes := _count(query, "soak_minutes"):
        plan["gate"]["soak_s"] = minutes * 60
    if days := _count(query, "watch_days"):
        plan["watch"] = {"for_s": days * 86_400, "max_quality_lost": limits["max_failures"]}
    return plan


def _count(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    return int(text) if text.isdigit() else int(MOST[name])


def _preview(
    plan: dict[str, Any], devices: Sequence[dict[str, Any]], chosen: tuple[str, str, Mapping[str, Any]]
) -> dict[str, Any]:
    sites = {row["id"]: row["site"] for row in devices}
    model, version, form = chosen
    try:
        parsed = parse_plan(plan)
        taken = resolve(parsed, sites, devices)
    except BadPlanError as error:
        return {"preview": [], "trouble": str(error), "order": "", "notes": [], "command": ""}
    preview = [
        {"name": wave["name"], "sites": [{"id": device, "site": sites[device]} for device in members]}
        for wave, members in zip(plan["waves"], taken, strict=True)
    ]
    words = {"why": form["typed"]["why"], "risk": form["risk"]}
    order = json.dumps({"model": model, "version": version, "plan": plan, **words})
    asked = shlex.quote(json.dumps(plan, ensure_ascii=False))
    said = f" --why {shlex.quote(words['why'])}" if words["why"] else ""
    command = f"landreeve-hub rollout start {model}@{version} --risk {words['risk']}{said} --plan {asked}"
    notes = _notes(parsed, taken, sites, devices)
    return {"preview": preview, "trouble": "", "order": order, "notes": notes, "command": command}


def _notes(plan: Plan, taken: Waves, sites: Mapping[str, str], devices: Sequence[dict[str, Any]]) -> list[str]:
    away = [row["site"] for row in devices if not row.get("online", True)]
    told = wave_notes(plan, taken, sites, devices)
    if away:
        told.append(f"{named(away)} {'is' if len(away) == 1 else 'are'} not connected now and would be ordered later.")
    return told
