"""Models, their releases, and the line from data to devices of each one."""

from collections.abc import Mapping, Sequence
from typing import Any

from landreeve.ui.inside import Api, ApiError

from landreeve_hub.console.answers import listed, order_of

Row = dict[str, Any]


async def models(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """Every model with its releases, newest first, and how many sites run each."""
    known = listed(await api.get("models"))
    releases = listed(await api.find("releases"))
    running = (await api.get("fleet", "summary"))["running"]
    found = {row["name"] for row in known} | {row["model"] for row in releases}
    purposes = {row["name"]: (row.get("definition") or row).get("purpose", "") for row in known}
    rows = [
        {"name": name, "purpose": purposes.get(name, ""), "releases": _of(name, releases, running)}
        for name in sorted(found)
    ]
    return {"models": rows}


async def model(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """One model: its releases and, for the chosen one, where it came from, where it runs, and by which plan."""
    name = names["name"]
    every = await models(api, names, query)
    row = next((row for row in every["models"] if row["name"] == name), None)
    if row is None:
        raise ApiError(404, "Not found", f"There is no model {name!r}.")
    releases = row["releases"]
    chosen = next((r for r in releases if r["digest"] == query.get("release")), releases[0] if releases else None)
    plans = listed(await api.find("plans", query={"release": chosen["digest"]})) if chosen else []
    return {"model": row, "chosen": chosen, "plans": plans}


def _of(name: str, releases: Sequence[Row], running: Sequence[Row]) -> list[Row]:
    own = [row for row in releases if row["model"] == name]
    own.sort(key=lambda row: (order_of(row.get("version")), str(row.get("created", ""))), reverse=True)
    return [{**row, **_origin(row), **_sites(row["digest"].removeprefix("sha256:"), running)} for row in own]


def _sites(digest: str, running: Sequence[Row]) -> Row:
    """On how many sites a release runs, and the first of them; devices name it by the beginning of its digest."""
    same = [row for row in running if len(row["release"]) >= 12 and digest.startswith(row["release"])]
    return {"sites": sum(row["sites"] for row in same), "first_sites": [one for row in same for one in row["first"]]}


def _origin(row: Row) -> Row:
    """Lineage and claimed figures from the release's config, wherever the ModelPack members put them."""
    config = row.get("config") or {}
    inner = config.get("landreeve")
    own: Row = inner if isinstance(inner, dict) else config
    lineage = row.get("lineage") or own.get("lineage") or {}
    metrics = row.get("metrics") or (own.get("gates") or {}).get("metrics") or {}
    return {"lineage": lineage, "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)}}
