"""A rollout's plan: waves, gate and probation, parsed and checked once, when the rollout is created.

Nothing is parsed later, so evaluation cannot fail open: hawkBit logs a malformed threshold and never fires it.
"""

import math
from typing import Any, Literal

import msgspec
from landreeve.wire.messages import Probation

MAX_WAVES = 50


class BadPlanError(ValueError):
    """A plan that must not run; the text names the field and what it may be."""


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices a wave takes: exactly one of the three.

    ``devices`` are device ids or site names; ``share`` is the part (0 to 1) of the whole fleet; ``rest`` is
    everyone not taken by an earlier wave.
    """

    devices: tuple[str, ...] = ()
    share: float | None = None
    rest: bool = False
    name: str = ""


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a wave is good enough for the next, and what stops the rollout.

    ``max_failures`` and ``max_silent`` are absolute counts over the whole rollout: a percentage of three sites
    means nothing. ``deadline_s`` bounds the time without progress of a device before it counts as silent.
    """

    max_failures: int = 0
    max_silent: int = 0
    min_committed: int = 1
    max_in_flight: int = 20
    deadline_s: float = 86_400.0
    soak_s: float = 0.0
    on_failure: Literal["rollback", "pause"] = "rollback"


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person asks for when starting a rollout."""

    waves: tuple[Wave, ...] = (Wave(rest=True),)
    gate: Gate = Gate()
    probation: Probation = Probation()


def parse_plan(raw: Any) -> Plan:
    """The plan in a JSON value; `BadPlanError` names the field.

    >>> parse_plan({"waves": [{"devices": ["EWR"]}, {"rest": True}]}).gate.max_failures
    0
    """
    try:
        plan = msgspec.convert({} if raw is None else raw, Plan)
    except msgspec.ValidationError as error:
        raise BadPlanError(f"plan: {error}") from error
    _check_waves(plan.waves)
    _check_gate(plan.gate)
    _check_probation(plan.probation)
    return plan


def _check_waves(waves: tuple[Wave, ...]) -> None:
    if not 1 <= len(waves) <= MAX_WAVES:
        raise BadPlanError(f"plan.waves: {len(waves)} waves; give 1 to {MAX_WAVES}")
    for number, wave in enumerate(waves):
        where = f"plan.waves[{number}]"
        if sum((bool(wave.devices), wave.share is not None, wave.rest)) != 1:
            raise BadPlanError(f"{where}: give exactly one of devices, share, rest")
        if wave.share is not None and not 0 < wave.share <= 1:
            raise BadPlanError(f"{where}.share: {wave.share} must be above 0 and at most 1")
        if wave.rest and number != len(waves) - 1:
            raise BadPlanError(f"{where}.rest: only the last wave can take the rest")


def _check_gate(gate: Gate) -> None:
    counts = {"max_failures": 0, "max_silent": 0, "min_committed": 0, "max_in_flight": 1}
    for name, least in counts.items():
        if getattr(gate, name) < least:
            raise BadPlanError(f"plan.gate.{name}: {getattr(gate, name)} must be at least {least}")
    for name, floor in {"deadline_s": 1.0, "soak_s": 0.0}.items():
        value = getattr(gate, name)
        if not math.isfinite(value) or value < floor:
            raise BadPlanError(f"plan.gate.{name}: {value} must be a number of seconds, at least {floor:g}")


def _check_probation(probation: Probation) -> None:
    if not 0 < probation.min_rows <= probation.max_rows:
        raise BadPlanError("plan.probation.min_rows: must be above 0 and at most max_rows")
    if not 0 <= probation.min_labelled <= probation.max_rows:
        raise BadPlanError("plan.probation.min_labelled: must be 0 to max_rows")
    if not 0 < probation.alpha < 1:
        raise BadPlanError(f"plan.probation.alpha: {probation.alpha} must lie between 0 and 1")
    if not 0 <= probation.max_error_rate <= 1:
        raise BadPlanError(f"plan.probation.max_error_rate: {probation.max_error_rate} must lie between 0 and 1")
    for name in ("max_s", "max_latency_ratio", "max_log_loss_increase"):
        value = getattr(probation, name)
        if not math.isfinite(value) or value <= 0:
            raise BadPlanError(f"plan.probation.{name}: {value} must be a number above 0")


def resolve(plan: Plan, sites: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """The device ids of each wave; ``sites`` maps device id to site name. `BadPlanError` names who is unknown.

    A device is taken by the first wave that names it. Shares are taken in the order of site names, so the
    preview a person saw is what runs.

    >>> resolve(parse_plan({"waves": [{"devices": ["EWR"]}, {"rest": True}]}), {"d-2": "JFK", "d-1": "EWR"})
    (('d-1',), ('d-2',))
    """
    if not sites:
        raise BadPlanError("plan: the fleet has no device; enrol one first (device token SITE)")
    free = sorted(sites, key=lambda device: (sites[device], device))
    by_site = {site: device for device, site in sites.items()}
    waves: list[tuple[str, ...]] = []
    for number, wave in enumerate(plan.waves):
        taken = _take(wave, number, free, sites, by_site)
        free = [device for device in free if device not in taken]
        waves.append(taken)
    if not any(waves):
        raise BadPlanError("plan.waves: no device is in any wave")
    return tuple(waves)


def _take(wave: Wave, number: int, free: list[str], sites: dict[str, str], by_site: dict[str, str]) -> tuple[str, ...]:
    if wave.rest:
        return tuple(free)
    if wave.share is not None:
        return tuple(free[: max(1, math.floor(wave.share * len(sites) + 0.5))])
    named = []
    for name in wave.devices:
        device = name if name in sites else by_site.get(name)
        if device is None:
            raise BadPlanError(f"plan.waves[{number}].devices: {name!r} is no device or site of this fleet")
        if device in free and device not in named:
            named.append(device)
    return tuple(named)
