"""Which devices a plan takes, wave by wave. Pure: the preview a person sees is made by what runs."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from landreeve_hub.fleet.filter import Row, select
from landreeve_hub.rollout.policy import BadPlanError, Plan, Wave

Waves = tuple[tuple[str, ...], ...]
_MOMENTARY = re.compile(r"(?:^|\s)-?(?:is|model|version|agent):")


def resolve(plan: Plan, sites: Mapping[str, str], rows: Sequence[Row] = ()) -> Waves:
    """The device ids of each wave; `BadPlanError` names who is unknown.

    ``sites`` maps device id to the name of its enrolment; ``rows`` are what the filter language looks at, needed where
    a wave is a query. A device is taken by the first wave that names it. Shares and counts are taken in the order of
    site names.

    >>> from landreeve_hub.rollout.policy import parse_plan
    >>> resolve(parse_plan({"waves": [{"devices": ["EWR"]}, {"rest": True}]}), {"d-2": "JFK", "d-1": "EWR"})
    (('d-1',), ('d-2',))
    """
    if not sites:
        raise BadPlanError("plan: the fleet has no device; enrol one first (device token SITE)")
    waves = take(plan.waves, sites, rows)
    if not any(waves):
        raise BadPlanError("plan.waves: no device is in any wave")
    return waves


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A device that came after the proposal; ``row`` is what the filter language looks at, needed where a wave is a
    query."""

    id: str
    site: str
    row: Row | None = None


def takes_all(plan: Plan) -> bool:
    """Whether the waves together take the whole fleet."""
    return any(wave.rest for wave in plan.waves) or sum(wave.share or 0.0 for wave in plan.waves) >= 1


def covers(plan: Plan, device: Newcomer) -> bool:
    """Whether one of the plan's waves would take the device: by name, by its query, or because it takes everybody.

    A count, or shares of less than the whole, were the devices there were.

    >>> from landreeve_hub.rollout.policy import parse_plan
    >>> covers(parse_plan({"waves": [{"devices": ["EWR"]}]}), Newcomer("d-9", "JFK"))
    False
    """
    if takes_all(plan):
        return True
    named = any(device.id in wave.devices or device.site in wave.devices for wave in plan.waves)
    row = device.row
    return named or any(wave.query and row is not None and select([row], wave.query) for wave in plan.waves)


def follows_labels(plan: Plan) -> bool:
    """Whether a wave asks by a query of what a device is, not of what it does just now: then who is given such a label
    is meant too.

    >>> from landreeve_hub.rollout.policy import parse_plan
    >>> [follows_labels(parse_plan({"waves": [{"query": query}]})) for query in ("tag:lab -site:ewr", "is:online")]
    [True, False]
    """
    return any(wave.query and not _MOMENTARY.search(wave.query.lower()) for wave in plan.waves)


def take(waves: Sequence[Wave], sites: Mapping[str, str], rows: Sequence[Row] = (), *, known: bool = True) -> Waves:
    """The same without a plan; with ``known=False`` names that are not among ``sites`` are passed over."""
    free = dict.fromkeys(sorted(sites, key=lambda device: (sites[device], device)))
    by_site: dict[str, list[str]] = defaultdict(list)
    for device in free:
        by_site[sites[device]].append(device)
    found = []
    for number, wave in enumerate(waves):
        taken = _take(wave, number, free, (sites, by_site, rows), known=known)
        for device in taken:
            del free[device]
        found.append(taken)
    return tuple(found)


_Fleet = tuple[Mapping[str, str], Mapping[str, list[str]], Sequence[Row]]


def _take(wave: Wave, number: int, free: Mapping[str, None], fleet: _Fleet, *, known: bool) -> tuple[str, ...]:
    sites, by_site, rows = fleet
    if wave.rest:
        return tuple(free)
    if wave.share is not None:
        return tuple(free)[: max(1, math.floor(wave.share * len(sites) + 0.5))]
    if wave.count is not None:
        return tuple(free)[: wave.count]
    if wave.query:
        hits = {str(row.get("id", "")) for row in select(rows, wave.query)}
        return tuple(device for device in free if device in hits)
    named: dict[str, None] = {}
    for name in wave.devices:
        devices = [name] if name in sites else by_site.get(name, [])
        if not devices and known:
            raise BadPlanError(f"plan.waves[{number}].devices: {name!r} is no device or site of this fleet")
        named.update(dict.fromkeys(device for device in devices if device in free))
    return tuple(named)
