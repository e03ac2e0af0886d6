"""The rollout machine: `decide(rollout, fleet, now)` and what people may command.

Pure. Orders derive from members, and a member's outcome only moves one way, so calling `decide` again after a
crash, with repeated or stale reports, changes nothing that was concluded.
"""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import assert_never

from msgspec.structs import replace

from landreeve_hub.rollout.state import (
    FINAL,
    Assign,
    Back,
    Decision,
    DeviceFact,
    Fleet,
    Member,
    Order,
    Outcome,
    Quarantine,
    RaiseIncident,
    Report,
    Rollout,
    State,
    Withdraw,
)
from landreeve_hub.rollout.waiting import (
    ForApproval,
    ForDevices,
    ForOffline,
    ForPerson,
    ForReturn,
    ForSlot,
    ForSoak,
    Waiting,
    named,
)

FAILED_STAGES = frozenset({"ROLLED_BACK", "ROLLING_BACK", "ROLLBACK_FAILED", "REJECTED"})
_IN_FLIGHT = frozenset({Outcome.ORDERED})
_TOUCHED = frozenset({Outcome.ORDERED, Outcome.SILENT, Outcome.COMMITTED, Outcome.FAILED})
_SETTLED = frozenset({Outcome.COMMITTED, Outcome.FAILED, Outcome.SILENT, Outcome.REMOVED, Outcome.SKIPPED})


def decide(rollout: Rollout, fleet: Fleet, now: datetime) -> Decision:
    """What the rollout is now, what to order, and what it waits for."""
    if rollout.state in FINAL:
        return Decision(rollout)
    seen = observe(rollout, fleet, now)
    decision = _decide(seen, fleet, now)
    if decision.rollout.state is State.ROLLING_BACK:
        return decision
    return _with_orders(decision, (*_accepted_failures(rollout, seen), *decision.orders))


def _decide(seen: Rollout, fleet: Fleet, now: datetime) -> Decision:
    match seen.state:
        case State.DRAFT | State.AWAITING_APPROVAL:
            return Decision(seen, (), (ForApproval(seen.version),))
        case State.RUNNING:
            return _run(seen, fleet, now)
        case State.PAUSED:
            return _paused(seen, now)
        case State.ROLLING_BACK:
            return _roll_back(seen, fleet, now)
        case State.FINISHED | State.ROLLED_BACK | State.ABORTED:
            return Decision(seen)
        case _:
            assert_never(seen.state)


# --- what is seen ---


def observe(rollout: Rollout, fleet: Fleet, now: datetime) -> Rollout:
    """The rollout with its members brought up to what the fleet reports."""
    return replace(rollout, members=tuple(_observe(rollout, m, fleet.get(m.device), now) for m in rollout.members))


def _observe(rollout: Rollout, member: Member, fact: DeviceFact | None, now: datetime) -> Member:
    if fact is None:
        return _outcome(member, Outcome.REMOVED, "removed", f"{member.site} no longer belongs to the fleet.")
    report = fact.report
    if member.back is not Back.NO:  # sent back: what it reports of this release now is our doing, not its failure
        return member
    if member.outcome not in _TOUCHED or report is None or not _concerns(report, rollout):
        return _overdue(rollout, member, now)
    if report.state != member.stage:
        member = replace(member, stage=report.state, heard=now)
    if report.state in FAILED_STAGES:
        return _outcome(member, Outcome.FAILED, report.cause, report.sentence)
    if report.state == "CANCELLED":  # someone on the site would not have it now: no evidence against the release
        return _outcome(member, Outcome.SILENT, report.cause, report.sentence)
    if report.state == "COMMITTED":
        return _outcome(member, Outcome.COMMITTED, report.cause, report.sentence)
    return _overdue(rollout, member, now)


def _concerns(report: Report, rollout: Rollout) -> bool:
    """A report of an older rollout, or of the way back, says nothing about this release."""
    return report.rollout == rollout.id and report.release == rollout.digest


_RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}


def _outcome(member: Member, outcome: Outcome, cause: str, sentence: str) -> Member:
    if _RANK[outcome] <= _RANK[member.outcome]:
        return member
    return replace(member, outcome=outcome, cause=cause, sentence=sentence)


def _overdue(rollout: Rollout, member: Member, now: datetime) -> Member:
    since = member.heard or member.ordered_at
    if member.outcome is not Outcome.ORDERED or since is None:
        return member
    allowed = rollout.plan.gate.deadline_s
    if member.stage == "PROBATION":  # the device itself bounds its probation; silence begins after that
        allowed += rollout.plan.probation.max_s
    if (now - since).total_seconds() <= allowed:
        return member
    text = f"{member.site} has made no progress since {since:%Y-%m-%d %H:%M} UTC."
    return _outcome(member, Outcome.SILENT, "silent", text)


def _with_orders(decision: Decision, orders: tuple[Order, ...]) -> Decision:
    return Decision(decision.rollout, orders, decision.waiting)


def _accepted_failures(before: Rollout, seen: Rollout) -> tuple[RaiseIncident, ...]:
    """A device that failed within what the gate accepts is still something a person must know, once."""
    return tuple(
        RaiseIncident(
            f"rollout:{seen.id}:device:{new.device}",
            "update_failed",
            "warning",
            new.cause,
            f"{seen.version} of {seen.model} failed on {new.site}: {_ended(new.sentence)} The rollout goes on: "
            f"it accepts {seen.plan.gate.max_failures} failures. {new.site} serves its last good version.",
        )
        for old, new in zip(before.members, seen.members, strict=True)
        if new.outcome is Outcome.FAILED and old.outcome is not Outcome.FAILED
    )


# --- running ---


def failures(rollout: Rollout) -> tuple[Member, ...]:
    return tuple(m for m in rollout.members if m.outcome is Outcome.FAILED)


def silent(rollout: Rollout) -> tuple[Member, ...]:
    return tuple(m for m in rollout.members if m.outcome is Outcome.SILENT)


def in_flight(rollout: Rollout) -> tuple[Member, ...]:
    """Ordered, not yet at an outcome, and not given up as silent."""
    return tuple(m for m in rollout.members if m.outcome in _IN_FLIGHT and m.back is Back.NO)


def _too_many_failures(rollout: Rollout) -> bool:
    return len(failures(rollout)) > max(rollout.plan.gate.max_failures, rollout.accepted_failures)


def _run(rollout: Rollout, fleet: Fleet, now: datetime) -> Decision:
    if _too_many_failures(rollout):
        return _stop_for_failures(rollout, now)
    gone = silent(rollout)
    if len(gone) > max(rollout.plan.gate.max_silent, rollout.accepted_silent):
        return _pause(rollout, "silent", " ".join(_ended(m.sentence) for m in gone))
    orders: list[Order] = []
    while True:
        rollout = _order_due(rollout, fleet, now, orders)
        step = _next_wave(rollout, now)
        if step is None:
            return Decision(rollout, tuple(orders), _waiting(rollout, fleet, now))
        if step.state is not State.RUNNING:
            if step.state is not State.FINISHED:
                return Decision(step, tuple(orders), (ForPerson(step.sentence),))
            members = tuple(send_back(m) if m.outcome is Outcome.FAILED else m for m in step.members)
            back = (order for m in members if (order := _return_order(step, m)) is not None)
            return Decision(replace(step, members=tuple(settled(m) for m in members)), (*orders, *back))
        rollout = step


def _order_due(rollout: Rollout, fleet: Fleet, now: datetime, orders: list[Order]) -> Rollout:
    """Orders devices of the waves reached, as far as the limit in flight allows."""
    free = rollout.plan.gate.max_in_flight - len(in_flight(rollout))
    members = list(rollout.members)
    for place, member in enumerate(members):
        if member.outcome is not Outcome.WAITING or member.wave > rollout.wave:
            continue
        fact = fleet[member.device]
        if fact.running == rollout.digest and fact.assigned == rollout.digest:
            text = f"{member.site} already runs {rollout.version}."
            members[place] = replace(member, outcome=Outcome.COMMITTED, cause="already_there", sentence=text)
        elif free > 0:
            free -= 1
            members[place] = _ordered(member, fact, rollout.digest, now)
            orders.append(_assign(rollout, member.device))
    return replace(rollout, members=tuple(members))


def _ordered(member: Member, fact: DeviceFact, digest: str, now: datetime) -> Member:
    prior, version = fact.running, fact.running_version
    if not prior or prior == digest:
        prior, version = fact.assigned, fact.assigned_version
    if prior == digest:
        prior, version = "", ""
    return replace(member, outcome=Outcome.ORDERED, ordered_at=now, heard=now, prior=prior, prior_version=version)


def _assign(rollout: Rollout, device: str) -> Assign:
    return Assign(device, rollout.digest, rollout.version, rollout.id, "install", rollout.plan.probation)


def _next_wave(rollout: Rollout, now: datetime) -> Rollout | None:
    """The rollout one wave on, finished, or paused for want of proof; None while the wave is not done."""
    wave = [m for m in rollout.members if m.wave == rollout.wave]
    if any(m.outcome not in _SETTLED for m in wave):
        return None
    committed = sum(m.outcome is Outcome.COMMITTED for m in wave)
    if committed < min(rollout.plan.gate.min_committed, len(wave)) and rollout.wave >= rollout.accepted_waves:
        text = f"Wave {rollout.wave + 1} ended with {committed} of {len(wave)} committed: too little proof to go on."
        return replace(rollout, state=State.PAUSED, cause="no_proof", sentence=text)
    last = max(m.wave for m in rollout.members)
    if rollout.wave >= last:
        return _finish(rollout)
    if _soaking(rollout, now):
        return None
    return replace(rollout, wave=rollout.wave + 1, wave_since=now)


def _finish(rollout: Rollout) -> Rollout | None:
    """Finished once nobody is left in flight, in whatever wave."""
    if any(m.outcome in {Outcome.ORDERED, Outcome.WAITING} for m in rollout.members):
        return None
    count = sum(m.outcome is Outcome.COMMITTED for m in rollout.members)
    text = f"{rollout.version} runs on {count} of {len(rollout.members)} sites."
    return replace(rollout, state=State.FINISHED, cause="finished", sentence=text)


def _soaking(rollout: Rollout, now: datetime) -> bool:
    return now < _soak_end(rollout, now)


def _soak_end(rollout: Rollout, now: datetime) -> datetime:
    heard = [m.heard for m in rollout.members if m.wave == rollout.wave and m.heard]
    return max(heard, default=rollout.wave_since or now) + timedelta(seconds=rollout.plan.gate.soak_s)


def _waiting(rollout: Rollout, fleet: Fleet, now: datetime) -> tuple[Waiting, ...]:
    found: list[Waiting] = []
    flying = in_flight(rollout)
    offline = [m for m in flying if not fleet[m.device].online]
    stages: dict[str, list[Member]] = defaultdict(list)
    for member in flying:
        if fleet[member.device].online:
            stages[member.stage].append(member)
    found.extend(_at_stage(rollout, stage, members, fleet) for stage, members in stages.items())
    if offline:
        seen = [fact.last_seen for m in offline if (fact := fleet[m.device]).last_seen]
        found.append(ForOffline(tuple(m.site for m in offline), min(seen, default=None)))
    due = sum(m.outcome is Outcome.WAITING and m.wave <= rollout.wave for m in rollout.members)
    if due:
        found.append(ForSlot(due, rollout.plan.gate.max_in_flight))
    if not found and _soaking(rollout, now):
        found.append(ForSoak(rollout.wave, _soak_end(rollout, now)))
    return tuple(found)


def _at_stage(rollout: Rollout, stage: str, members: list[Member], fleet: Fleet) -> ForDevices:
    sites = tuple(m.site for m in members)
    reports = [fleet[m.device].report for m in members]
    rows = [r.rows for r in reports if r and r.rows is not None and _concerns(r, rollout)]
    if stage != "PROBATION" or not rows:
        return ForDevices(stage, sites, rollout.version)
    return ForDevices(stage, sites, rollout.version, min(rows), rollout.plan.probation.min_rows)


# --- stopping ---


def _pause(rollout: Rollout, cause: str, sentence: str) -> Decision:
    paused = replace(rollout, state=State.PAUSED, cause=cause, sentence=sentence)
    incident = RaiseIncident(
        f"rollout:{rollout.id}:{cause}",
        "rollout_paused",
        "warning",
        cause,
        f"{sentence} The rollout of {rollout.version} is paused; no further site gets it.",
    )
    return Decision(paused, (incident,), (ForPerson(sentence),))


def _paused(rollout: Rollout, now: datetime) -> Decision:
    """A paused rollout orders nothing; one that fails meanwhile still goes back."""
    if _too_many_failures(rollout) and rollout.plan.gate.on_failure == "rollback":
        return _stop_for_failures(rollout, now)
    return Decision(rollout, (), (ForPerson(rollout.sentence),))


def _stop_for_failures(rollout: Rollout, now: datetime) -> Decision:
    bad = failures(rollout)
    why = " ".join(dict.fromkeys(_ended(m.sentence) for m in bad if m.sentence)) or "No reason was reported."
    first = f"{rollout.version} of {rollout.model} failed on {named([m.site for m in bad])}: {why}"
    if rollout.plan.gate.on_failure == "pause":
        return _pause(rollout, bad[0].cause or "failed", first)
    stopped, orders = start_return(rollout, bad[0].cause or "failed", first)
    raised = RaiseIncident(
        f"rollout:{rollout.id}:failed",
        "rollout_failed",
        "error",
        stopped.cause,
        f"{first} {_effect(rollout)} {_done(stopped)}",
    )
    quarantine = Quarantine(rollout.digest, stopped.cause, first)
    return Decision(stopped, (*orders, quarantine, raised), _return_waiting(stopped))


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _effect(rollout: Rollout) -> str:
    spared = [m.site for m in rollout.members if m.outcome is Outcome.WAITING]
    return (
        f"{named(spared)} never got it." if spared else "Every site of the rollout had already been ordered to take it."
    )


def _done(stopped: Rollout) -> str:
    sent = [m for m in stopped.members if m.back is Back.RETURNING and m.outcome is Outcome.COMMITTED]
    kept = [m.site for m in stopped.members if m.back is Back.KEPT]
    text = "The rollout was stopped and the release quarantined."
    if sent:
        text += f" {named([m.site for m in sent])} had already taken it and go back, each to its own last good version."
    if kept:
        text += f" {named(kept)} had no earlier version to return to and keep serving it."
    return text


def start_return(
    rollout: Rollout, cause: str, sentence: str, *, keep_committed: bool = False
) -> tuple[Rollout, tuple[Order, ...]]:
    """Every device that was ordered goes back to its own last good release; nobody else is ordered."""
    members = tuple(m if keep_committed and m.outcome is Outcome.COMMITTED else send_back(m) for m in rollout.members)
    stopped = replace(rollout, state=State.ROLLING_BACK, cause=cause, sentence=sentence, members=members)
    return stopped, tuple(order for m in members if (order := _return_order(stopped, m)) is not None)


def settled(member: Member) -> Member:
    """The same with its return ordered and not waited for: the rollout has ended."""
    return replace(member, back=Back.RETURNED) if member.back is Back.RETURNING else member


def send_back(member: Member) -> Member:
    """The member on its way back, as far as it was touched and has somewhere to return to."""
    if member.outcome is Outcome.WAITING:
        return replace(member, outcome=Outcome.SKIPPED)
    if member.outcome not in _TOUCHED or member.cause == "already_there":
        return member
    if member.prior:
        return replace(member, back=Back.RETURNING)
    # Something always serves: a site that committed its first version ever keeps it rather than nothing.
    return replace(member, back=Back.KEPT if member.outcome is Outcome.COMMITTED else Back.WITHDRAWN)


def _return_order(rollout: Rollout, member: Member) -> Order | None:
    if member.back is Back.RETURNING:
        version, probation = member.prior_version, rollout.plan.probation
        return Assign(member.device, member.prior, version, rollout.back_id, "rollback", probation)
    return Withdraw(member.device) if member.back is Back.WITHDRAWN else None


def _roll_back(rollout: Rollout, fleet: Fleet, now: datetime) -> Decision:
    members = tuple(_returned(rollout, m, fleet.get(m.device)) for m in rollout.members)
    rollout = replace(rollout, members=members, wave_since=rollout.wave_since or now)
    left = [m for m in members if m.back is Back.RETURNING]
    if left and not _given_up(rollout, left, now):
        return Decision(rollout, (), _return_waiting(rollout))
    late = f" {named([m.site for m in left])} did not answer yet; the order stands." if left else ""
    text = rollout.sentence + late
    return Decision(replace(rollout, state=State.ROLLED_BACK, sentence=text))


def _returned(rollout: Rollout, member: Member, fact: DeviceFact | None) -> Member:
    if member.back is not Back.RETURNING:
        return member
    if fact is None:
        return replace(member, back=Back.NO)
    settled = fact.running == member.prior and fact.generation >= fact.desired
    report = fact.report
    said = report is not None and report.rollout == rollout.back_id and report.state == "COMMITTED"
    return replace(member, back=Back.RETURNED) if settled or said else member


def _given_up(rollout: Rollout, left: list[Member], now: datetime) -> bool:
    """Past the deadline the rollout ends; the retained order still reaches a device that comes back later."""
    since = max((m.heard for m in left if m.heard), default=now)
    return (now - since).total_seconds() > rollout.plan.gate.deadline_s


def _return_waiting(rollout: Rollout) -> tuple[Waiting, ...]:
    sites = tuple(m.site for m in rollout.members if m.back is Back.RETURNING)
    return (ForReturn(sites),) if sites else ()
