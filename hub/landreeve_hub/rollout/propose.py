"""A new rollout: checked, its devices fixed, and kept waiting for approval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from landreeve.wire.ordering import FEATURE as ORDERS
from landreeve.wire.ordering import circle
from landreeve.wire.schedule import FEATURE as SCHEDULES
from landreeve.wire.strategy import FEATURE as STRATEGIES
from sqlalchemy import Connection, select

from landreeve_hub.fleet.filter import Row
from landreeve_hub.rollout import book
from landreeve_hub.rollout.forecast import wave_notes
from landreeve_hub.rollout.holds import opens, schedule_of
from landreeve_hub.rollout.policy import BadPlanError, Plan
from landreeve_hub.rollout.resolve import Waves, resolve
from landreeve_hub.rollout.roster import Member, Roster
from landreeve_hub.rollout.sight import filter_rows, fleet_sites
from landreeve_hub.rollout.state import DeviceFact, Rollout, State
from landreeve_hub.rollout.waiting import named
from landreeve_hub.store import tables

MOST_WORDS = 2000
Risk = Literal["", "low", "medium", "high"]


class RolloutRefusedError(ValueError):
    """The rollout cannot be made or moved like that; the text says why. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What someone wants rolled out. ``force`` is the reason to take a quarantined release in spite of it; ``queue``
    lets it wait behind a rollout of the same model. ``why``, ``risk`` and ``rollback_plan`` go into the change
    record."""

    model: str
    digest: str
    plan: Plan
    force: str = ""
    queue: bool = False
    why: str = ""
    risk: Risk = ""
    rollback_plan: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """Exactly the devices of each wave, and what is worth knowing before the start."""

    waves: Waves
    sites: Mapping[str, str]
    places: Mapping[str, str]
    notes: tuple[str, ...]


def preview(connection: Connection, plan: Plan, now: datetime, model: str = "") -> Preview:
    """What the plan would take now, as a rollout of ``model`` where that is known; `BadPlanError` when it can take
    nothing or keep no window, `RolloutRefusedError` when what must come first never would."""
    _check_known(connection, plan)
    if model and plan.after:
        _check_order(model, plan, [k.rollout for k in book.listed(connection, active=True, kind="update")])
    sites = fleet_sites(connection)
    asked = any(wave.query for wave in plan.waves)
    rows: Sequence[Row] = filter_rows(connection, now) if asked else ()
    waves = resolve(plan, sites, rows)
    taken = {device for wave in waves for device in wave}
    devices = tables.devices
    facts = {
        row.id: DeviceFact(row.id, row.site, row.online, labels=row.labels, features=tuple(row.features.split()))
        for row in connection.execute(select(devices).where(~devices.c.revoked))
        if row.id in taken
    }
    _check_zones(plan, facts, now)
    places = {d: f.labels[plan.site_label] for d, f in facts.items() if f.labels.get(plan.site_label)}
    notes = (*wave_notes(plan, waves, sites, rows), *_notes(plan, facts))
    return Preview(waves, sites, places, notes)


def _check_zones(plan: Plan, facts: Mapping[str, DeviceFact], now: datetime) -> None:
    windows = plan.windows
    if not windows.download and not windows.activate:
        return
    for fact in facts.values():
        schedule = schedule_of(windows, fact)
        if schedule is None:
            zone = fact.labels.get(windows.zone_label, "")[:40]
            raise BadPlanError(
                f"plan.windows.zone_label: the label {windows.zone_label}={zone} of {fact.site} is no IANA time zone"
            )
        if opens(schedule, SCHEDULES in fact.features, now) is None:
            raise BadPlanError(
                f"plan.windows: the agent of {fact.site} keeps to no schedule, so both kinds of window must be open at "
                "the same time for it, and they never are"
            )


def _check_known(connection: Connection, plan: Plan) -> None:
    models = tables.releases.c.model
    known = set(connection.execute(select(models).where(models.in_(plan.after)).distinct()).scalars())
    unknown = next((name for name in plan.after if name not in known), None)
    if unknown is not None:
        there = ", ".join(connection.execute(select(models).distinct().order_by(models)).scalars()) or "none"
        raise BadPlanError(f"plan.after: no component {unknown!r} is known; there are: {there}")


def _check_order(model: str, plan: Plan, going: Sequence[Rollout]) -> None:
    """No two rollouts may wait for each other, nor one for itself."""
    if model in plan.after:
        raise RolloutRefusedError(f"plan.after: {model} cannot come after itself")
    after: dict[str, set[str]] = {model: set(plan.after)}
    for other in going:
        after.setdefault(other.model, set()).update(other.plan.after)
    way = circle(after, model)
    if way:
        others = [other.id for other in going if other.plan.after and other.model in way]
        raise RolloutRefusedError(
            f"plan.after: {' waits for '.join(way)}, so none would ever begin (rollout {named(others)}); "
            "finish or abort that one first, or leave out what need not come first"
        )


def _notes(plan: Plan, facts: Mapping[str, DeviceFact]) -> list[str]:
    found = []
    if plan.strategy is not None and plan.strategy.kind != "direct":
        plain = [fact.site for fact in facts.values() if STRATEGIES not in fact.features]
        if plain:
            found.append(f"{named(plain)}: the agent there knows no strategies and swaps directly, with probation.")
    if plan.after:
        plain = [fact.site for fact in facts.values() if ORDERS not in fact.features]
        if plain:
            found.append(
                f"{named(plain)}: the agent there keeps to no order among components and is left out where "
                f"{named(plan.after)} falls silent."
            )
    offline = [fact.site for fact in facts.values() if not fact.online]
    if offline:
        does = {"order": "ordered all the same", "wait": "waited for", "exclude": "left out"}[plan.offline.policy]
        found.append(f"{named(offline)} {'is' if len(offline) == 1 else 'are'} not connected now and would be {does}.")
    return found


def propose(connection: Connection, proposal: Proposal, actor: str, now: datetime) -> Rollout:
    """The rollout, kept; `RolloutRefusedError` or `BadPlanError`."""
    release = connection.execute(select(tables.releases).where(tables.releases.c.digest == proposal.digest)).first()
    if release is None or release.model != proposal.model:
        raise RolloutRefusedError(f"release: {proposal.model} has no release {proposal.digest[:12]!r}")
    _check_release(release, proposal.force)
    _check_strategy(release, proposal.plan)
    _check_words(proposal)
    going = book.listed(connection, model=proposal.model, active=True, kind="update")
    if going and not proposal.queue:
        first = going[-1].rollout
        raise RolloutRefusedError(
            f"model: rollout {first.id} of {proposal.model} is {first.state.value}; "
            "finish, abort or roll it back first, or let this one wait behind it (queue)"
        )
    under_way = [k.rollout for k in book.listed(connection, active=True, kind="update")]
    _check_order(proposal.model, proposal.plan, under_way)
    seen = preview(connection, proposal.plan, now)
    members = (
        Member(device, seen.sites[device], number, place=seen.places.get(device, ""))
        for number, wave in enumerate(seen.waves)
        for device in wave
    )
    rollout = Rollout(
        id=book.next_id(connection),
        model=proposal.model,
        digest=proposal.digest,
        version=release.version,
        plan=proposal.plan,
        members=Roster(members),
        state=State.AWAITING_APPROVAL,
        cause="proposed",
        sentence=f"Proposed by {actor}.",
        why=proposal.why,
        risk=proposal.risk,
        rollback_plan=proposal.rollback_plan,
        forced=bool(proposal.force.strip()),
        ahead=tuple(other.id for other in under_way if other.model in proposal.plan.after),
    )
    book.insert_new(connection, rollout, actor, now)
    data = {"model": rollout.model, "digest": rollout.digest, "version": rollout.version, "force": proposal.force}
    book.log(connection, rollout.id, now, ("proposed", rollout.sentence, data))
    return rollout


def _check_release(release: Any, force: str) -> None:
    if release.state == "quarantined" and not force.strip():
        raise RolloutRefusedError(
            f"release: {release.version} is quarantined because it failed before; "
            "give a reason to force it (--force REASON)"
        )
    if release.state not in {"approved", "quarantined"}:
        raise RolloutRefusedError(
            f"release: {release.version} is {release.state}; only an approved release can be rolled out (model approve)"
        )


def _check_strategy(release: Any, plan: Plan) -> None:
    component = str((release.config or {}).get("component", "model"))
    if component != "model" and plan.strategy is not None and plan.strategy.kind != "direct":
        raise RolloutRefusedError(
            f"plan.strategy.kind: only a model shares its traffic, and {release.model} is {component}; leave it out"
        )


def _check_words(proposal: Proposal) -> None:
    for name in ("why", "rollback_plan", "force"):
        if len(getattr(proposal, name)) > MOST_WORDS:
            raise RolloutRefusedError(f"{name}: at most {MOST_WORDS} characters")
