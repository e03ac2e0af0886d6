"""Rollouts: those under way, those that ended, and one of them with its sites, however many they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from landreeve.ui.inside import Api

from landreeve_hub.console.answers import listed

FEW = 24
"""A wave of so many sites is told site by site."""
MOST_TOLD = 100
MOST_NAMED = 200
ENDED_SHOWN = 50
_QUIET = frozenset({"waiting", "committed", "skipped"})
_TROUBLE = frozenset({"failed", "rolled_back", "rollback_failed", "returned", "rejected", "silent"})

Row = dict[str, Any]


async def every(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """Those under way, and the last ones that ended."""
    going = (await api.get("fleet", "summary"))["rollouts"]
    ended = listed(await api.get("rollouts", query={"ended": "true", "limit": str(ENDED_SHOWN)}))
    return {"running": going, "past": ended}


async def one(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """One rollout with its waves as `told`."""
    rollout = await api.get("rollouts", names["id"])
    return {"rollout": {**rollout, "waves": [{**wave, **told(wave.get("devices") or [])} for wave in rollout["waves"]]}}


def told(devices: Sequence[Row]) -> dict[str, Any]:
    """Which sites of a wave are told with a sentence and which only named: of a large wave, what went well or has not
    begun is named. ``left`` are neither."""
    if len(devices) <= FEW:
        return {"told": list(devices), "named": [], "left": 0}
    notable = [row for row in devices if row["state"] not in _QUIET]
    notable.sort(key=lambda row: row["state"] not in _TROUBLE)
    rest = notable[MOST_TOLD:] + [row for row in devices if row["state"] in _QUIET]
    return {"told": notable[:MOST_TOLD], "named": rest[:MOST_NAMED], "left": max(0, len(rest) - MOST_NAMED)}
