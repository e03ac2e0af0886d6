"""A rollout's plan, parsed and checked once, when the rollout is created.

Nothing is parsed later, so evaluation cannot fail open: hawkBit logs a malformed threshold and never fires it. A field
is only ever added here, with a default: plans are kept with their rollouts.
"""

import math
from typing import Any, Literal

import msgspec
from landreeve.wire.messages import Probation
from landreeve.wire.ordering import fault_of_names
from landreeve.wire.schedule import DayWindow, fault_of_windows, fault_of_zone
from landreeve.wire.strategy import Strategy, fault_of

from landreeve_hub import slips
from landreeve_hub.fleet.filter import KEYS, unknown_key

MAX_WAVES = 50
MOST_S = 400 * 86_400.0
MOST = 1_000_000_000

Action = Literal["pause", "abort", "rollback"]


class BadPlanError(ValueError):
    """A plan that must not run; the text names the field and what it may be."""


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices a wave takes: exactly one of the five.

    ``devices`` are device ids or site names; ``share`` is the part (0 to 1) of the whole fleet, ``count`` a number of
    devices, both in the order of site names; ``query`` is the console's filter language; ``rest`` is everyone not taken
    by an earlier wave.
    """

    devices: tuple[str, ...] = ()
    share: float | None = None
    rest: bool = False
    name: str = ""
    count: int | None = None
    query: str = ""


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits on figures pooled over devices; None asks for nothing. They are judged once, at the end of each wave.

    ``max_log_loss_increase`` is the rise (nats) against the last good version on the same rows; ``max_drifted_share``
    the part of devices whose newest window under the release has drifted; ``max_psi`` the population stability index of
    any column of these windows' merged sketches (`landreeve_hub.rollout.drifting`), of at least ``min_window_rows``.
    A figure that is asked for must have been told by ``min_devices`` (and ``min_rows`` answered rows), else the wave
    waits and in the end is held. Between the bounds of ``confidence`` the estimate decides, or with ``strict`` nothing
    passes.
    """

    max_error_rate: float | None = None
    max_latency_ratio: float | None = None
    max_log_loss_increase: float | None = None
    max_drifted_share: float | None = None
    min_devices: int = 1
    min_rows: int = 0
    confidence: float = 0.95
    strict: bool = False
    max_psi: float | None = None
    min_window_rows: int = 1000


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a wave is good enough for the next, and what stops the rollout.

    ``max_failures`` and ``max_silent`` are absolute counts over the whole rollout: a percentage of three sites means
    nothing. In a rollout of ``large_from`` devices or more ``max_failed_share`` and ``max_silent_share`` count instead
    where given: they stop it as soon as the evidence is beyond ``confidence`` whenever one looks, and hold it at the
    end of a wave when the share is above the limit. ``min_committed`` devices of each wave must have taken the release,
    and ``min_sample`` come to an outcome. ``deadline_s`` bounds the time without progress of a device before it counts
    as silent, ``wave_deadline_s`` a whole wave (0 is never).
    """

    max_failures: int = 0
    max_silent: int = 0
    min_committed: int = 1
    max_in_flight: int = 20
    deadline_s: float = 86_400.0
    soak_s: float = 0.0
    on_failure: Action = "rollback"
    max_failed_share: float | None = None
    max_silent_share: float | None = None
    large_from: int = 30
    confidence: float = 0.95
    min_sample: int = 0
    wave_deadline_s: float = 0.0
    figures: Figures = Figures()


class Actions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each trigger does. For failures of the release it is ``gate.on_failure``; ``site`` is for too many failures
    that do not speak against it (`landreeve_hub.rollout.blame`): a full disk, a lost accelerator."""

    silence: Action = "pause"
    latency: Action = "rollback"
    error_rate: Action = "rollback"
    drift: Action = "pause"
    accuracy: Action = "rollback"
    site: Action = "pause"


class Offline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that are not connected when their wave begins: ``order`` leaves them a retained order (and counts them
    silent past the deadline), ``wait`` orders them once they are back, ``exclude`` leaves them out after
    ``after_s``."""

    policy: Literal["order", "wait", "exclude"] = "order"
    after_s: float = 0.0


class Windows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Maintenance windows in the time zone of each site: its label ``zone_label``, else ``zone``."""

    download: tuple[DayWindow, ...] = ()
    activate: tuple[DayWindow, ...] = ()
    zone: str = "UTC"
    zone_label: str = "timezone"


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a finished rollout is still watched, and how many devices may meanwhile drift or lose accuracy (None:
    any number). What happens then is ``actions.drift`` and ``actions.accuracy``; pause means that a person is asked.

    ``max_psi`` is the population stability index that no column of the devices' merged windows may surely exceed, with
    ``confidence`` over all windows of the watch together. When it ends with fewer than ``min_devices`` or
    ``min_window_rows`` told, or with the estimate above the limit, a person is asked: nothing passes unproven.
    """

    for_s: float = 0.0
    max_drifted: int | None = None
    max_quality_lost: int | None = None
    max_psi: float | None = None
    min_devices: int = 1
    min_window_rows: int = 1000
    confidence: float = 0.95


class PingPong(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device on which the same release went back ``max_returns`` times within ``window_s`` is left alone and a person
    asked; so is a model that went back by itself so often: then the rollout is paused instead."""

    max_returns: int = 3
    window_s: float = 7 * 86_400.0


class Return(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the fleet goes back: by default everyone at once."""

    waves: tuple[Wave, ...] = (Wave(rest=True),)
    max_in_flight: int = 1_000_000


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person asks for when starting a rollout.

    ``late`` is what becomes of a device that joins the fleet meanwhile, or comes to answer to a wave's query: it joins
    the ``last`` wave or the ``current`` one, or ``wait``s for the end, or is ``leave`` left out for good. ``leavers``
    answer to no wave's query any more before they were ordered: ``keep`` or ``exclude`` them. ``site_label`` names the
    label that says at which site a device stands, where several stand at one: they never update at the same time.
    Orders of a wave are spread over ``jitter_s``, each device always at the same place. ``after``
    names components (models, the agent, firmware) that come first on each device: see
    `landreeve_hub.rollout.precedence`.
    """

    waves: tuple[Wave, ...] = (Wave(rest=True),)
    gate: Gate = Gate()
    probation: Probation = Probation()
    actions: Actions = Actions()
    offline: Offline = Offline()
    windows: Windows = Windows()
    watch: Watch = Watch()
    ping_pong: PingPong = PingPong()
    back: Return = Return()
    late: Literal["last", "current", "wait", "leave"] = "wait"
    site_label: str = "site"
    jitter_s: float = 0.0
    strategy: Strategy | None = None
    after: tuple[str, ...] = ()
    leavers: Literal["keep", "exclude"] = "keep"


def parse_plan(raw: Any) -> Plan:
    """The plan in a JSON value; `BadPlanError` names the field.

    >>> parse_plan({"waves": [{"devices": ["EWR"]}, {"rest": True}]}).gate.max_failures
    0
    """
    try:
        plan = msgspec.convert({} if raw is None else raw, Plan)
    except msgspec.ValidationError as error:
        raise BadPlanError(slips.in_words(error, Plan, "plan")) from error
    _check_waves("plan.waves", plan.waves)
    _check_waves("plan.back.waves", plan.back.waves)
    _check_way_back(plan.back.waves)
    _check_gate(plan.gate)
    _check_figures(plan.gate.figures)
    _check_probation(raw, plan.probation)
    _check_windows(raw, plan.windows)
    _check_strategy(raw, plan.strategy)
    _check_rest(plan)
    return plan


def _check_waves(place: str, waves: tuple[Wave, ...]) -> None:
    if not 1 <= len(waves) <= MAX_WAVES:
        raise BadPlanError(f"{place}: {len(waves)} waves; give 1 to {MAX_WAVES}")
    for number, wave in enumerate(waves):
        where = f"{place}[{number}]"
        given = (bool(wave.devices), wave.share is not None, wave.count is not None, bool(wave.query), wave.rest)
        if sum(given) != 1:
            raise BadPlanError(f"{where}: give exactly one of devices, share, count, query, rest")
        if wave.share is not None and not 0 < wave.share <= 1:
            raise BadPlanError(f"{where}.share: {wave.share:g} must be above 0 and at most 1 (0.1 is 10 %)")
        if wave.count is not None:
            _counts(where, wave, count=1)
        if wave.query and (slip := unknown_key(wave.query)):
            raise BadPlanError(
                f"{where}.query: {slip[:60]!r} is no key; there are: {', '.join(KEYS)} (a label is tag:)"
            )
        if wave.rest and number != len(waves) - 1:
            raise BadPlanError(f"{where}.rest: only the last wave can take the rest")


def _check_way_back(waves: tuple[Wave, ...]) -> None:
    for number, wave in enumerate(waves):
        if wave.query:  # who answers to it then is not known now, and the way back must not depend on that
            raise BadPlanError(f"plan.back.waves[{number}].query: the way back goes by devices, share, count or rest")


def _check_gate(gate: Gate) -> None:
    _counts("plan.gate", gate, max_failures=0, max_silent=0, min_committed=0, max_in_flight=1, large_from=2)
    _counts("plan.gate", gate, min_sample=0)
    _seconds("plan.gate", gate, deadline_s=1.0, soak_s=0.0, wave_deadline_s=0.0)
    _shares("plan.gate", gate, "max_failed_share", "max_silent_share")
    _confidence("plan.gate", gate.confidence)


def _check_figures(figures: Figures) -> None:
    place = "plan.gate.figures"
    _counts(place, figures, min_devices=1, min_rows=0, min_window_rows=1)
    _shares(place, figures, "max_error_rate", "max_drifted_share")
    _confidence(place, figures.confidence)
    _above_nothing(place, figures, "max_latency_ratio", "max_log_loss_increase", "max_psi")


def _above_nothing(place: str, values: Any, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        if value is not None and (not math.isfinite(value) or value <= 0):
            raise BadPlanError(f"{place}.{name}: {value} must be a number above 0")


def _check_probation(raw: Any, probation: Probation) -> None:
    _known_fields("plan.probation", raw.get("probation") if isinstance(raw, dict) else None, Probation)
    _counts("plan.probation", probation, max_rows=1, max_crashes=0, low_traffic_rows=0, low_traffic_errors=0)
    if not 0 < probation.min_rows <= probation.max_rows:
        raise BadPlanError("plan.probation.min_rows: must be above 0 and at most max_rows")
    if not 0 <= probation.min_labelled <= probation.max_rows:
        raise BadPlanError("plan.probation.min_labelled: must be 0 to max_rows")
    if not 0 < probation.alpha < 1:
        raise BadPlanError(f"plan.probation.alpha: {probation.alpha} must lie between 0 and 1")
    if not 0 <= probation.max_error_rate <= 1:
        raise BadPlanError(f"plan.probation.max_error_rate: {probation.max_error_rate} must lie between 0 and 1")
    for name in ("max_latency_ratio", "max_log_loss_increase"):
        value = getattr(probation, name)
        if not math.isfinite(value) or value <= 0:
            raise BadPlanError(f"plan.probation.{name}: {value} must be a number above 0")
    _seconds("plan.probation", probation, max_s=0.001, min_s=0.0)
    if probation.min_s > probation.max_s:
        raise BadPlanError(f"plan.probation.min_s: {probation.min_s} must be at most max_s ({probation.max_s})")


def _check_windows(raw: Any, windows: Windows) -> None:
    given = raw.get("windows") or {} if isinstance(raw, dict) else {}
    for kind in ("download", "activate"):
        for number, one in enumerate(given.get(kind) or ()):
            _known_fields(f"plan.windows.{kind}[{number}]", one, DayWindow)
        if fault := fault_of_windows(getattr(windows, kind)):
            raise BadPlanError(f"plan.windows.{kind}{'' if fault.startswith('[') else ': '}{fault}")
    if fault := fault_of_zone(windows.zone):
        raise BadPlanError(f"plan.windows.zone: {fault}")


def _check_strategy(raw: Any, strategy: Strategy | None) -> None:
    if strategy is None:
        return
    _known_fields("plan.strategy", raw.get("strategy"), Strategy)
    if fault := fault_of(strategy):
        raise BadPlanError(f"plan.strategy.{fault}")


def _check_rest(plan: Plan) -> None:
    _seconds("plan.offline", plan.offline, after_s=0.0)
    _seconds("plan.watch", plan.watch, for_s=0.0)
    _seconds("plan.ping_pong", plan.ping_pong, window_s=1.0)
    _seconds("plan", plan, jitter_s=0.0)
    if fault := fault_of_names(plan.after):
        raise BadPlanError(f"plan.after: {fault}")
    _counts("plan.ping_pong", plan.ping_pong, max_returns=1)
    _counts("plan.back", plan.back, max_in_flight=1)
    _above_nothing("plan.watch", plan.watch, "max_psi")
    _counts("plan.watch", plan.watch, min_devices=1, min_window_rows=1)
    _confidence("plan.watch", plan.watch.confidence)
    for name in ("max_drifted", "max_quality_lost", "max_psi"):
        if getattr(plan.watch, name) is not None:
            if name != "max_psi":
                _counts("plan.watch", plan.watch, **{name: 0})
            if plan.watch.for_s <= 0:
                raise BadPlanError(f"plan.watch.for_s: {name} asks for a time to watch; give seconds above 0")


def asks_for_pool(plan: Plan) -> str:
    """The field that asks for drift of merged windows; empty when none does."""
    if plan.gate.figures.max_psi is not None:
        return "plan.gate.figures.max_psi"
    return "plan.watch.max_psi" if plan.watch.max_psi is not None else ""


def _known_fields(place: str, given: Any, kind: type[msgspec.Struct]) -> None:
    """A struct of the wire ignores what it does not know; a person's slip must not be ignored."""
    unknown = next((name for name in given or () if name not in kind.__struct_fields__), None)
    if unknown is not None:
        raise BadPlanError(slips.unknown_field(place, str(unknown), kind))


def _counts(place: str, values: Any, **least: int) -> None:
    for name, floor in least.items():
        if not floor <= getattr(values, name) <= MOST:
            raise BadPlanError(f"{place}.{name}: {getattr(values, name)} must be at least {floor} and at most {MOST}")


def _seconds(place: str, values: Any, **least: float) -> None:
    for name, floor in least.items():
        value = getattr(values, name)
        if not math.isfinite(value) or not floor <= value <= MOST_S:
            raise BadPlanError(f"{place}.{name}: {value} must be a number of seconds, {floor:g} to {MOST_S:g}")


def _shares(place: str, values: Any, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        if value is not None and not 0 < value < 1:
            raise BadPlanError(f"{place}.{name}: {value} must lie between 0 and 1")


def _confidence(place: str, value: float) -> None:
    if not 0.5 < value < 1:
        raise BadPlanError(f"{place}.confidence: {value} must lie between 0.5 and 1")
