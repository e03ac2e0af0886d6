"""A new rollout: choose a release and waves, see exactly which site gets it when, then start it.

The preview is made by the rollout's own rules (`landreeve_hub.rollout.policy`), so what a person saw is what runs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from landreeve.ui.inside import Api

from landreeve_hub.console.answers import listed, order_of
from landreeve_hub.rollout.policy import BadPlanError, parse_plan
from landreeve_hub.rollout.resolve import resolve

SHARES = ("0", "0.1", "0.25", "0.5")


async def load(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """The form's choices from the query, and the preview of the plan they make."""
    approved = [row for row in listed(await api.find("releases")) if row.get("state") == "approved"]
    devices = listed((await api.get("fleet"))["devices"])
    models = sorted({row["model"] for row in approved})
    model = _one_of(models, query.get("model"))
    versions = sorted((str(row["version"]) for row in approved if row["model"] == model), key=order_of, reverse=True)
    version = _one_of(versions, query.get("version"))
    canary = query.get("canary") or min((row["site"] for row in devices), default="")
    share = _one_of(SHARES, query.get("share"))
    plan = _plan(canary, share, query)
    choice = {"models": models, "model": model, "versions": versions, "version": version}
    form = {"canary": canary, "share": share, "shares": SHARES, "max_failures": query.get("max_failures", "0")}
    return {**choice, **form, "devices": devices, **_preview(plan, devices, model, version)}


def _one_of(choices: Sequence[str], wanted: str | None) -> str:
    """What was wanted if it is a choice, else the first one, else nothing."""
    return wanted if wanted is not None and wanted in choices else (choices[0] if choices else "")


def _plan(canary: str, share: str, query: Mapping[str, str]) -> dict[str, Any]:
    waves: list[dict[str, Any]] = [{"devices": [canary], "name": "Canary"}]
    if float(share) > 0:
        waves.append({"share": float(share), "name": "Early"})
    waves.append({"rest": True, "name": "Everyone"})
    failures = query.get("max_failures", "0")
    return {"waves": waves, "gate": {"max_failures": int(failures) if failures.isdigit() else 0}}


def _preview(plan: dict[str, Any], devices: Sequence[dict[str, Any]], model: str, version: str) -> dict[str, Any]:
    sites = {row["id"]: row["site"] for row in devices}
    try:
        taken = resolve(parse_plan(plan), sites, devices)
    except BadPlanError as error:
        return {"preview": [], "trouble": str(error), "order": ""}
    preview = [
        {"name": wave["name"], "sites": [{"id": device, "site": sites[device]} for device in members]}
        for wave, members in zip(plan["waves"], taken, strict=True)
    ]
    order = json.dumps({"model": model, "version": version, "plan": plan})
    return {"preview": preview, "trouble": "", "order": order}
