"""Which devices a plan takes, wave by wave. Pure: the preview a person sees is made by what runs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from landreeve_hub.fleet.filter import Row, select
from landreeve_hub.rollout.policy import BadPlanError, Plan, Wave

Waves = tuple[tuple[str, ...], ...]


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
