"""A fleet at a glance, however large: counts, one cell for each site worth a look, what runs where, and pages of
devices. Pure: rows in, answers out."""

from collections.abc import Mapping, Sequence
from typing import Any

from landreeve_hub.fleet.filter import select
from landreeve_hub.fleet.health import Level

Row = Mapping[str, Any]
WORST_FIRST = (Level.FAILING.value, Level.DRIFT.value, Level.OFFLINE.value, Level.HEALTHY.value)
MOST_CELLS = 600
FIRST_SITES = 4


def counts(devices: Sequence[Row]) -> dict[str, int]:
    """How many are in each state, and ``total``."""
    found = {level.value: 0 for level in Level}
    for row in devices:
        found[row["state"]] += 1
    return {**found, "total": len(devices)}


def cells(devices: Sequence[Row]) -> list[dict[str, str]]:
    """Id, site and state of each device by site; of more than `MOST_CELLS` only those that are not healthy, the worst
    kept where even they are more."""
    chosen = list(devices)
    if len(chosen) > MOST_CELLS:
        ranked = sorted((row for row in chosen if row["state"] != Level.HEALTHY), key=_place)
        chosen = ranked[:MOST_CELLS]
    shown = [{"id": row["id"], "site": row["site"], "state": row["state"]} for row in chosen]
    return sorted(shown, key=lambda row: row["site"])


def running(devices: Sequence[Row]) -> list[dict[str, Any]]:
    """For each release that is served anywhere: on how many sites, and the first of them."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in devices:
        for model in row["models"]:
            release = str(model.get("release") or "").removeprefix("sha256:")
            if not release:
                continue
            name = str(model.get("model", ""))
            known = found.setdefault((name, release), {"model": name, "release": release, "sites": 0, "first": []})
            known["sites"] += 1
            if len(known["first"]) < FIRST_SITES:
                known["first"].append({"id": row["id"], "site": row["site"]})
    return list(found.values())


def page(devices: Sequence[Row], text: str, after: str, limit: int) -> dict[str, Any]:
    """The devices that match a filter, the worst first and then by site, from after the cursor on: ``items``,
    ``matching``, and ``next``, the cursor of the following page."""
    found = sorted(select(devices, text), key=_place)
    begin = _cursor(after)
    left = [row for row in found if _place(row) > begin] if after else found
    items = left[:limit]
    more = _place(items[-1]) if len(left) > limit else None
    return {"items": items, "matching": len(found), "next": f"{more[0]}:{more[1]}" if more else None}


def _place(row: Row) -> tuple[int, str]:
    return WORST_FIRST.index(row["state"]), str(row["site"])


def _cursor(text: str) -> tuple[int, str]:
    """ValueError when it is no cursor of `page`."""
    rank, colon, site = text.partition(":")
    if text and not (colon and rank.isascii() and rank.isdecimal()):
        raise ValueError(f"after: {text[:40]!r} is no cursor; take next of the page before")
    return (int(rank) if text else -1, site)
