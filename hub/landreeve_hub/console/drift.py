"""Drift over the fleet: feature by site, quality over time, and the sites' sketches merged into one picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from landreeve.ui.figures import moment, number
from landreeve.ui.inside import Api

from landreeve_hub.console.answers import listed

MOST_BINS = 40
MOST_SITES = 40
"""More columns nobody reads: of a larger fleet, the sites that are furthest off are shown."""


async def load(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """The drift of the chosen model (the first one by default)."""
    models = sorted(row["name"] for row in listed(await api.get("models")))
    chosen = query.get("model") if query.get("model") in models else (models[0] if models else "")
    found = await api.find("drift", chosen) if chosen else None
    if not found or not found.get("columns"):
        return {"models": models, "chosen": chosen, "matrix": [], "sites": []}
    merged = (found.get("merged") or {}).get("sketches") or {}
    before = (found.get("reference") or {}).get("sketches") or {}
    known = len(found["sites"])
    found = {**found, "sites": furthest_off(found, MOST_SITES)}
    columns = sorted(found["columns"], key=lambda column: -_worst(found, column))
    return {
        "models": models,
        "chosen": chosen,
        "sites": found["sites"],
        "known_sites": known,
        "verdicts": found.get("verdicts") or {},
        "matrix": [{"column": column, "cells": _cells(found, column)} for column in columns],
        "pictures": [_picture(column, before.get(column), merged[column]) for column in columns if column in merged],
        "merged_sites": (found.get("merged") or {}).get("sites") or [],
        "quality": quality(found.get("quality") or []),
    }


def furthest_off(found: Mapping[str, Any], most: int) -> list[str]:
    """At most so many sites, by name: those that lost quality first, then those furthest against their own limits."""
    verdicts = found.get("verdicts") or {}

    def place(site: str) -> tuple[bool, float, str]:
        limits = (found.get("thresholds") or {}).get(site, {})
        scores = [(found["matrix"][column].get(site), limits.get(column) or 1.0) for column in found["columns"]]
        far = max((score / limit for score, limit in scores if score is not None), default=0.0)
        return verdicts.get(site, {}).get("verdict") != "quality_lost", -far, site

    return sorted(sorted(found["sites"], key=place)[:most])


def quality(days: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Log loss over the fleet for each day on which windows ended: measured, and what was expected (None: nothing).

    ``t`` is the day in unix seconds.
    """
    known = [(found.timestamp(), day) for day in days if (found := moment(str(day["day"])))]
    measured = [round(float(day["log_loss"]), 5) for _, day in known]
    claims = [day.get("reference_log_loss") for _, day in known]
    expected = [None if claim is None else round(float(claim), 5) for claim in claims]
    return {"t": [t for t, _ in known], "measured": list(measured), "expected": expected}


def _worst(found: Mapping[str, Any], column: str) -> float:
    """How far the worst site is against its own limit."""
    cells = _cells(found, column)
    return max((c["score"] / (c["limit"] or 1.0) for c in cells if c["score"] is not None), default=0.0)


def _cells(found: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    return [
        _cell(found["matrix"][column].get(site), (found.get("thresholds") or {}).get(site, {}).get(column))
        for site in found["sites"]
    ]


def _cell(score: float | None, limit: float | None) -> dict[str, Any]:
    level = (
        "" if score is None else "much" if limit and score > limit else "some" if limit and score > limit / 2 else ""
    )
    return {"score": score, "limit": limit, "level": level}


def _picture(column: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Shares per bin for drawing, with the axis in words."""
    edges, values = now.get("edges") or [], [str(value) for value in now.get("values") or []]
    if edges:
        first, last = f"< {number(edges[0])}", f"≥ {number(edges[-1])}"
    else:
        first, last = ", ".join(values[:4]) + ("…" if len(values) > 4 else ""), ""
    shares = _shares(now)
    then = _shares(before) if before and len(before.get("counts") or []) == len(now.get("counts") or []) else []
    return {"column": column, "now": shares[:MOST_BINS], "then": then[:MOST_BINS], "first": first, "last": last}


def _shares(sketch: Mapping[str, Any]) -> list[float]:
    counts = [float(count) for count in sketch.get("counts") or []]
    total = sum(counts) or 1.0
    return [count / total for count in counts]
