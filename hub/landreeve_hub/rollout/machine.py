"""The rollout machine: `decide(rollout, fleet, now)` is what happens next, and what is waited for.

Pure. Orders derive from members, and a member's outcome only moves one way, so calling `decide` again after a
crash, with repeated or stale reports, changes nothing that was concluded. What it costs goes with what changed
(``changed``) and with the devices under way, not with the size of the fleet.
"""

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import assert_never

from msgspec.structs import replace

from landreeve_hub.rollout.back import correct, obey, pause, return_waiting, returning, stop
from landreeve_hub.rollout.blame import WITH_PARENT
from landreeve_hub.rollout.gates import Missing, counted, ended_by, judge_wave, too_many_failures, unproven, watched
from landreeve_hub.rollout.holds import Excluded, Held, Why, hold, schedule_of, waiting_of
from landreeve_hub.rollout.observing import (
    CATCH_UP,
    concerns,
    held_until,
    in_flight,
    in_time,
    judged,
    next_silent,
    observe,
    order_id,
)
from landreeve_hub.rollout.precedence import asked_of, fallen
from landreeve_hub.rollout.roster import SETTLED, Back, Member, Outcome
from landreeve_hub.rollout.state import (
    FINAL,
    Around,
    Assign,
    Decision,
    DeviceFact,
    First,
    Fleet,
    Order,
    RaiseIncident,
    Rollout,
    State,
)
from landreeve_hub.rollout.trials import trial_of
from landreeve_hub.rollout.waiting import (
    PROBATION,
    ForApproval,
    ForConflict,
    ForDevices,
    ForEarlier,
    ForFigures,
    ForOffline,
    ForPerson,
    ForSlot,
    ForSoak,
    ForWatch,
    ForWindow,
    Trial,
    Waiting,
)

_UNPROVEN = "unproven"
LONG_OVER = timedelta(days=1)
_LED_BACK = frozenset({State.RUNNING, State.PAUSED, State.FINISHED})
ALONE = Around()


def decide(
    rollout: Rollout, fleet: Fleet, now: datetime, around: Around = ALONE, changed: Collection[str] | None = None
) -> Decision:
    """What the rollout is now, what to order, and what it waits for.

    ``changed`` are the devices of which anything new is known since the last decision; None when that is not known.
    """
    rollout = in_time(rollout, now)
    if rollout.kind == "late" and around.gone and rollout.state in _LED_BACK:
        return _with_parent(rollout, now)
    if rollout.state in FINAL and watch_end(rollout) is None:
        return Decision(rollout)
    seen = observe(rollout, fleet, now, changed, around.listening)
    decision = _decide(seen, fleet, now, around)
    if decision.rollout.state is State.ROLLING_BACK:
        return decision
    told, wake = _accepted_failures(rollout, seen), decision.wake
    if decision.rollout.state is State.PAUSED:  # its devices under way may still fall silent
        wake = next_silent(decision.rollout, fleet, around.listening)
    return Decision(decision.rollout, (*told, *decision.orders), decision.waiting, wake)


def _with_parent(rollout: Rollout, now: datetime) -> Decision:
    """What the late ones came after goes back, and so do they."""
    text = f"{rollout.version} of {rollout.model} goes back with rollout {rollout.of}."
    stopped, orders = stop(rollout, WITH_PARENT, text, now)
    return Decision(stopped, orders, return_waiting(stopped))


def _decide(seen: Rollout, fleet: Fleet, now: datetime, around: Around) -> Decision:
    match seen.state:
        case State.DRAFT | State.AWAITING_APPROVAL:
            return Decision(seen, (), (ForApproval(seen.version),))
        case State.RUNNING if around.earlier:
            return Decision(seen, (), (ForEarlier(around.earlier),))
        case State.RUNNING if around.unfit and _unfit(around) not in seen.asked:
            return _not_fit(seen, around)
        case State.RUNNING if spoilt := fallen(seen, around):
            return _not_first(seen, spoilt)
        case State.RUNNING:
            return _run(seen, fleet, now, around)
        case State.PAUSED:
            return _paused(seen, fleet, now, around)
        case State.ROLLING_BACK:
            return returning(seen, around, now)
        case State.FINISHED if (end := watch_end(seen)) is not None:
            return _watch(seen, end, around, now)
        case State.FINISHED | State.ROLLED_BACK | State.ABORTED:
            return Decision(seen)
        case _:
            assert_never(seen.state)


def _accepted_failures(before: Rollout, seen: Rollout) -> tuple[RaiseIncident, ...]:
    """A device that failed within what the gate accepts is still something a person must know, once."""
    return tuple(
        _could_not(seen, new)
        for device in seen.members.delta
        if (new := seen.members[device]).outcome is Outcome.FAILED
        and before.members[device].outcome is not Outcome.FAILED
    )


def _could_not(seen: Rollout, new: Member) -> RaiseIncident:
    key = f"rollout:{seen.id}:device:{new.device}{f':{new.attempt}' if new.attempt else ''}"
    if seen.kind == "return":
        text = (
            f"{new.site} could not go back to {new.target_version}: {ended_by(new.sentence)} Someone must look at it."
        )
        return RaiseIncident(key, "update_failed", "error", new.cause, text, device=new.device)
    accepts = f"it accepts {seen.plan.gate.max_failures} failures" if seen.kind == "update" else "the fleet has it"
    effect = f"The rollout goes on: {accepts}. {new.site} serves its last good version."
    text = f"{seen.version} of {seen.model} failed on {new.site}: {ended_by(new.sentence)} {effect}"
    return RaiseIncident(key, "update_failed", "warning", new.cause, text, effect, new.device)


# --- running ---


def _run(rollout: Rollout, fleet: Fleet, now: datetime, around: Around) -> Decision:
    orders: list[Order] = []
    while True:
        if trigger := counted(rollout):
            stopped = obey(rollout, trigger, around, now)
            return Decision(stopped.rollout, (*orders, *stopped.orders), stopped.waiting)
        rollout, held = _order_due(rollout, fleet, now, around, orders)
        if not _wave_done(rollout):
            return _waits(rollout, (fleet, around), now, held, orders)
        step = _wave_over(rollout, fleet, now, around, held)
        if step.rollout.state is not State.RUNNING or step.rollout.wave == rollout.wave:
            return Decision(step.rollout, (*orders, *step.orders), step.waiting, step.wake)
        rollout = step.rollout


def _unfit(around: Around) -> str:
    """How it is kept that a person was asked about it."""
    return f"release:{around.unfit}"


def _not_fit(rollout: Rollout, around: Around) -> Decision:
    """Approved when this was proposed, and no longer: it waited behind another, say. A person decides, once."""
    text = f"{rollout.version} of {rollout.model} is {around.unfit} since this rollout was proposed."
    return pause(replace(rollout, asked=(*rollout.asked, _unfit(around))), around.unfit, text)


def _not_first(rollout: Rollout, spoilt: First) -> Decision:
    """What had to come first does not stand: a person decides, once for each."""
    text = (
        f"{spoilt.component} had to come first, and its rollout {spoilt.rollout} is "
        f"{spoilt.state.value.lower().replace('_', ' ')}."
    )
    return pause(replace(rollout, asked=(*rollout.asked, asked_of(spoilt))), "not_in_order", text)


def _order_due(
    rollout: Rollout, fleet: Fleet, now: datetime, around: Around, orders: list[Order]
) -> tuple[Rollout, list[Held]]:
    """Orders devices of the waves reached, as far as the limit in flight allows and nothing holds them."""
    free = rollout.plan.gate.max_in_flight - len(rollout.members.flying)
    places = {rollout.members[device].where for device in rollout.members.flying}
    held: list[Held] = []
    changed: list[Member] = []
    due = (d for wave in range(rollout.wave + 1) for d in rollout.members.group(wave, Outcome.WAITING))
    for device in due:
        if free <= 0:
            break
        member, fact = rollout.members[device], fleet[device]
        member = _standing_at(rollout, member, fact)
        if _there_already(rollout, fact):
            text = f"{member.site} already runs {rollout.version}."
            there = replace(member, outcome=Outcome.COMMITTED, cause="already_there", sentence=text)
            changed.append(judged(rollout, there, fact))  # its windows are known, and the next may be far
            continue
        if member.where in places:
            held.append(Held(member, Why.SITE))
            continue
        match hold(rollout, member, fact, around, now):
            case Held() as one:
                held.append(one)
            case Excluded(cause, sentence):
                changed.append(replace(member, outcome=Outcome.EXCLUDED, cause=cause, sentence=sentence))
                if cause == "ping_pong":
                    orders.append(_left_alone(rollout, member, sentence))
            case None:
                free -= 1
                places.add(member.where)
                changed.append(_ordered(rollout, member, fact, now))
                orders.append(_assign(rollout, changed[-1], fact))
    if changed:
        rollout = replace(rollout, members=rollout.members.put(changed))
    return rollout, held


def _standing_at(rollout: Rollout, member: Member, fact: DeviceFact) -> Member:
    """The member at the site where its label says that it stands now: boxes are moved between proposal and order."""
    place = fact.labels.get(rollout.plan.site_label, "")
    return member if rollout.kind == "return" or place in {"", member.place} else replace(member, place=place)


def _there_already(rollout: Rollout, fact: DeviceFact) -> bool:
    # Never on the way back: who is in a return was ordered away, whatever has been heard of that so far.
    return rollout.kind != "return" and fact.running == fact.assigned == rollout.digest


def _left_alone(rollout: Rollout, member: Member, sentence: str) -> RaiseIncident:
    key = f"ping-pong:{member.device}:{rollout.model}:{rollout.id}"
    return RaiseIncident(key, "ping_pong", "warning", "ping_pong", sentence, device=member.device)


def _ordered(rollout: Rollout, member: Member, fact: DeviceFact, now: datetime) -> Member:
    prior, version = (fact.good, fact.good_version) if fact.good else (fact.running, fact.running_version)
    if not prior or prior == rollout.digest:
        prior, version = fact.assigned, fact.assigned_version
    if prior == rollout.digest:
        prior, version = "", ""
    if member.attempt and member.prior:  # a retry: it returned to what it had before the first try
        prior, version = member.prior, member.prior_version
    return replace(member, outcome=Outcome.ORDERED, ordered_at=now, heard=now, prior=prior, prior_version=version)


def _assign(rollout: Rollout, member: Member, fact: DeviceFact) -> Assign:
    plan, name = rollout.plan, order_id(rollout, member)
    if rollout.kind == "return":
        return Assign(member.device, member.target, member.target_version, name, "rollback", plan.probation)
    windows = plan.windows
    schedule = schedule_of(windows, fact) if windows.download or windows.activate else None
    return Assign(
        member.device, rollout.digest, rollout.version, name, "install", plan.probation, schedule, plan.strategy,
        plan.after,
    )  # fmt: skip


def _wave_done(rollout: Rollout) -> bool:
    return not rollout.members.count(Outcome.WAITING, Outcome.ORDERED, wave=rollout.wave)


def _wave_over(rollout: Rollout, fleet: Fleet, now: datetime, around: Around, held: list[Held]) -> Decision:
    """Every device of the wave has come to an outcome: the next one, the end, a soak, or what a gate demands."""
    last = rollout.wave >= rollout.members.last_wave
    soak_end = _soak_end(rollout, now)
    if rollout.kind == "update" and now < soak_end and (not last or _asks_for_windows(rollout)):
        return Decision(rollout, (), (ForSoak(rollout.wave, soak_end),), soak_end)
    match judge_wave(rollout, around.drift):
        case Missing(sentence):
            until = soak_end + timedelta(seconds=rollout.plan.gate.deadline_s)
            if now >= until:
                return pause(rollout, "no_figures", f"Wave {rollout.wave + 1} has no proof: {sentence}.")
            return Decision(rollout, (), (ForFigures(rollout.wave, sentence, until),), until)
        case None:
            pass
        case trigger:
            return obey(rollout, trigger, around, now)
    if not last:
        return Decision(replace(rollout, wave=rollout.wave + 1, wave_since=now))
    if rollout.members.count(Outcome.ORDERED, Outcome.WAITING):  # a retry or a late joiner of an earlier wave
        return _waits(rollout, (fleet, around), now, held, [])
    return _finish(rollout, now)


def _asks_for_windows(rollout: Rollout) -> bool:
    figures = rollout.plan.gate.figures
    return figures.max_drifted_share is not None or figures.max_psi is not None


def _finish(rollout: Rollout, now: datetime) -> Decision:
    """Everyone has come to an outcome. Who failed within what was accepted keeps its last good release for good."""
    count = rollout.members.count(Outcome.COMMITTED)
    version = f"Version {rollout.version}" if rollout.kind != "return" else "Its last good version"
    text = f"{version} runs on {count} of {len(rollout.members)} sites."
    orders: list[Order] = []
    corrected: list[Member] = []
    failed = [m for m in rollout.members.of(Outcome.FAILED, Outcome.EXCLUDED) if m.outcome is Outcome.FAILED or m.tried]
    for member in failed if rollout.kind != "return" else ():
        sent, order = correct(rollout, member)
        corrected.append(sent)
        orders += [order] if order is not None else []
    done = replace(
        rollout,
        state=State.FINISHED,
        cause="finished",
        sentence=text,
        finished=now,
        concluded=False,
        members=rollout.members.put(corrected),
    )
    end = watch_end(done)
    waiting = (ForWatch(end),) if end is not None and end > now else ()
    return Decision(done, tuple(orders), waiting, end)


def _soak_end(rollout: Rollout, now: datetime) -> datetime:
    heard = rollout.members.heard.get(rollout.wave) or rollout.wave_since or now
    return heard + timedelta(seconds=rollout.plan.gate.soak_s)


def _waits(
    rollout: Rollout, seen: tuple[Fleet, Around], now: datetime, held: list[Held], orders: list[Order]
) -> Decision:
    """Devices are under way, or due and held: until when, and why."""
    fleet, around = seen
    over = _wave_end(rollout)
    if over is not None and now >= over and rollout.wave >= rollout.accepted_waves:
        left = rollout.members.count(Outcome.WAITING, Outcome.ORDERED, wave=rollout.wave)
        text = f"Wave {rollout.wave + 1} is not done by its deadline: {left} devices have come to no outcome."
        stopped = pause(rollout, "wave_late", text)
        return Decision(stopped.rollout, (*orders, *stopped.orders), stopped.waiting)
    waiting = _waiting(rollout, fleet, held, now)
    opening = [one.until for one in waiting if isinstance(one, ForWindow)]
    moments = [over, next_silent(rollout, fleet, around.listening), *opening, *(one.until for one in held)]
    wake = min((moment for moment in moments if moment is not None and moment >= now), default=None)
    return Decision(rollout, tuple(orders), waiting, wake)


def _wave_end(rollout: Rollout) -> datetime | None:
    allowed = rollout.plan.gate.wave_deadline_s
    if not allowed or rollout.wave_since is None or rollout.kind != "update":
        return None
    return rollout.wave_since + timedelta(seconds=allowed)


def _waiting(rollout: Rollout, fleet: Fleet, held: list[Held], now: datetime) -> tuple[Waiting, ...]:
    found: list[Waiting] = []
    offline: list[Member] = []
    conflict: list[str] = []
    outside: dict[str, datetime] = {}
    stages: dict[tuple[str, Trial], list[Member]] = defaultdict(list)
    for member in in_flight(rollout):
        fact = fleet[member.device]
        if fact.conflict:
            conflict.append(member.site)
        elif not fact.online:
            offline.append(member)
        elif until := held_until(rollout, member, fact, now):
            outside[member.site] = until
        else:
            trial = trial_of(rollout, member, fact) if member.stage == PROBATION else Trial()
            stages[member.stage, trial].append(member)
    found.extend(_at_stage(rollout, stage, trial, members, fleet) for (stage, trial), members in stages.items())
    if offline:
        seen = [fact.last_seen for m in offline if (fact := fleet[m.device]).last_seen]
        found.append(ForOffline(tuple(m.site for m in offline), min(seen, default=None)))
    if conflict:
        found.append(ForConflict(tuple(conflict)))
    if outside:
        found.append(ForWindow(tuple(outside), min(outside.values())))
    found.extend(waiting_of(held))
    due = sum(len(rollout.members.group(wave, Outcome.WAITING)) for wave in range(rollout.wave + 1)) - len(held)
    if due > 0:
        found.append(ForSlot(due, rollout.plan.gate.max_in_flight))
    return tuple(found)


def _at_stage(rollout: Rollout, stage: str, trial: Trial, members: list[Member], fleet: Fleet) -> ForDevices:
    sites = tuple(m.site for m in members)
    version = rollout.version if rollout.kind != "return" else "the last good version"
    reports = [(m, fleet[m.device].report) for m in members]
    rows = [r.rows for m, r in reports if r and r.rows is not None and concerns(r, rollout, m)]
    # What a box answered meanwhile is the new version's share only where that answers everything.
    shared = rollout.plan.strategy is not None and rollout.plan.strategy.kind != "direct"
    if stage != PROBATION or not rows or shared:
        return ForDevices(stage, sites, version, trial=trial)
    return ForDevices(stage, sites, version, min(rows), rollout.plan.probation.min_rows)


# --- not running ---


def _paused(rollout: Rollout, fleet: Fleet, now: datetime, around: Around) -> Decision:
    """A paused rollout orders nothing; one that fails meanwhile still goes back. Its devices may still fall silent."""
    trigger = too_many_failures(rollout)
    if trigger is not None and trigger.action != "pause":
        stopped = obey(rollout, trigger, around, now)
        if stopped.rollout.state is not State.PAUSED:
            return stopped
    return Decision(rollout, (), (ForPerson(rollout.sentence),))


def watch_end(rollout: Rollout) -> datetime | None:
    """Until when a finished rollout is watched; None when it is not, or has had its last look."""
    watch = rollout.plan.watch
    watched = rollout.state is State.FINISHED and rollout.kind == "update" and watch.for_s > 0
    if not watched or rollout.finished is None or rollout.concluded:
        return None
    return rollout.finished + timedelta(seconds=watch.for_s)


def _watch(rollout: Rollout, end: datetime, around: Around, now: datetime) -> Decision:
    """Drift or lost accuracy after the end: back again, or a person is asked, once for each. The last look is taken at
    the end, or when a hub that was away then has heard its devices again."""
    last = end if around.listening is None else max(end, around.listening + CATCH_UP)
    if around.later:  # its release is being replaced: going back from it would undo the newer one
        return Decision(replace(rollout, concluded=True)) if now >= end else Decision(rollout, wake=end)
    trigger = too_many_failures(rollout) or watched(rollout, around.drift)
    orders: tuple[Order, ...] = ()
    if trigger is not None and trigger.cause not in rollout.asked:
        # Long after the watch nobody counts on it any more: then it is a person's matter whatever the plan says.
        goes_back = trigger.action == "rollback" and around.returns < rollout.plan.ping_pong.max_returns
        if goes_back and now < end + LONG_OVER:
            return obey(rollout, trigger, around, now)
        text = f"{trigger.sentence} It keeps serving; decide whether to roll it back (rollout rollback {rollout.id})."
        rollout, orders = _asked(rollout, trigger.cause, text)
    if now < last:
        return Decision(rollout, orders, (ForWatch(last),), last)
    closed, more = _last_words(rollout, around)
    return Decision(closed, (*orders, *more))


def _asked(rollout: Rollout, cause: str, text: str) -> tuple[Rollout, tuple[Order, ...]]:
    key = f"rollout:{rollout.id}:watch:{cause}"
    raised = RaiseIncident(key, "rollout_watch", "warning", cause, text)
    return replace(rollout, asked=(*rollout.asked, cause)), (raised,)


def _last_words(rollout: Rollout, around: Around) -> tuple[Rollout, tuple[Order, ...]]:
    """The watch is over: what it was to show and has not is said, once."""
    over = replace(rollout, concluded=True)
    missing = "" if _UNPROVEN in rollout.asked else unproven(rollout, around.drift)
    if not missing:
        return over, ()
    text = (
        f"The watch over {rollout.version} of {rollout.model} is over and has not shown that its data are those it was "
        f"trained for: {missing}. It keeps serving; decide whether that is enough (rollout rollback {rollout.id})."
    )
    return _asked(over, _UNPROVEN, text)


def uncovered(rollout: Rollout) -> tuple[Member, ...]:
    """Members of waves reached that have come to no outcome: each must stand in what is waited for."""
    return tuple(
        m for m in rollout.members.of(*(set(Outcome) - SETTLED)) if m.wave <= rollout.wave and m.back is Back.NO
    )
