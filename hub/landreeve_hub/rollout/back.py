"""Stopping and going back. Pure.

The way back of a fleet is a rollout of its own (`Rollout.kind` ``return``): each device to its own last good release,
its gates off, in waves where the plan asks for them. What began it waits for it.
"""

from datetime import datetime
from typing import assert_never

from msgspec.structs import replace

from landreeve_hub.rollout.gates import Trigger
from landreeve_hub.rollout.policy import Gate, PingPong, Plan
from landreeve_hub.rollout.resolve import take
from landreeve_hub.rollout.roster import TOUCHED, Back, Member, Outcome, Roster
from landreeve_hub.rollout.state import (
    FINAL,
    Around,
    Assign,
    Begin,
    Decision,
    Order,
    Quarantine,
    RaiseIncident,
    Rollout,
    State,
    Withdraw,
)
from landreeve_hub.rollout.waiting import ForPerson, ForReturn, Waiting, named

NEVER = 1_000_000_000


def obey(rollout: Rollout, trigger: Trigger, around: Around, now: datetime) -> Decision:
    """Do what a gate that does not hold demands."""
    limit = rollout.plan.ping_pong.max_returns
    if trigger.action == "rollback" and around.returns >= limit:
        days = rollout.plan.ping_pong.window_s / 86_400
        text = f"{trigger.sentence} {rollout.model} went back {around.returns} times within {days:g} days already."
        return pause(rollout, "ping_pong", text)
    match trigger.action:
        case "pause":
            return pause(rollout, trigger.cause, trigger.sentence)
        case "abort":
            return _abort_by_gate(rollout, trigger, now)
        case "rollback":
            return _go_back(rollout, trigger, now)
        case _:
            assert_never(trigger.action)


def pause(rollout: Rollout, cause: str, sentence: str) -> Decision:
    """Nothing further is ordered until a person decides."""
    paused = replace(rollout, state=State.PAUSED, cause=cause, sentence=sentence)
    effect = f"The rollout of {rollout.version} is paused; no further site gets it."
    incident = RaiseIncident(
        f"rollout:{rollout.id}:{cause}", "rollout_paused", "warning", cause, f"{sentence} {effect}", effect
    )
    return Decision(paused, (incident,), (ForPerson(sentence),))


def _abort_by_gate(rollout: Rollout, trigger: Trigger, now: datetime) -> Decision:
    stopped, orders = stop(rollout, trigger.cause, trigger.sentence, now, keep_committed=True)
    effect = (
        f"{_spared(rollout)} The rollout was stopped; who has {rollout.version} keeps it, who was under way goes back."
    )
    raised = RaiseIncident(
        f"rollout:{rollout.id}:aborted",
        "rollout_failed",
        "error",
        trigger.cause,
        f"{trigger.sentence} {effect}",
        effect,
    )
    return Decision(aborted(stopped), (*orders, raised))


def aborted(stopped: Rollout) -> Rollout:
    """The end: the return that was begun goes on by itself."""
    came = [replace(m, back=Back.RETURNED) for m in stopped.members.values() if m.back is Back.RETURNING]
    return replace(stopped, state=State.ABORTED, members=stopped.members.put(came))


def _go_back(rollout: Rollout, trigger: Trigger, now: datetime) -> Decision:
    stopped, orders = stop(rollout, trigger.cause, trigger.sentence, now)
    effect = f"{_spared(rollout)} {_done(stopped, quarantined=trigger.blames)}"
    raised = RaiseIncident(
        f"rollout:{rollout.id}:failed", "rollout_failed", "error", trigger.cause, f"{trigger.sentence} {effect}", effect
    )
    judged = (Quarantine(rollout.digest, trigger.cause, trigger.sentence),) if trigger.blames else ()
    return Decision(stopped, (*orders, *judged, raised), return_waiting(stopped))


def _spared(rollout: Rollout) -> str:
    spared = [m.site for m in rollout.members.of(Outcome.WAITING, Outcome.EXCLUDED)]
    return (
        f"{named(spared)} never got it." if spared else "Every site of the rollout had already been ordered to take it."
    )


def _done(stopped: Rollout, *, quarantined: bool) -> str:
    sent = [m.site for m in stopped.members.of(Outcome.COMMITTED) if m.back is Back.RETURNING]
    kept = [m.site for m in stopped.members.values() if m.back is Back.KEPT]
    text = f"The rollout was stopped{' and the release quarantined' if quarantined else ''}."
    if sent:
        text += f" {named(sent)} had already taken it and go back, each to its own last good version."
    if kept:
        text += f" {named(kept)} had no earlier version to return to and keep serving it."
    return text


def stop(
    rollout: Rollout, cause: str, sentence: str, now: datetime, *, keep_committed: bool = False
) -> tuple[Rollout, tuple[Order, ...]]:
    """Every device that was ordered goes back to its own last good release; nobody else is ordered."""
    moved = [_sent(m, keep_committed=keep_committed) for m in rollout.members.values()]
    changed = [m for m in moved if m != rollout.members[m.device]]
    stopped = replace(
        rollout, state=State.ROLLING_BACK, cause=cause, sentence=sentence, members=rollout.members.put(changed)
    )
    withdrawn = tuple(Withdraw(m.device) for m in changed if m.back is Back.WITHDRAWN)
    returning = way_back(stopped, now)
    if returning is None:  # nobody has anything to return to: there is nothing to wait for
        return replace(stopped, state=State.ROLLED_BACK), withdrawn
    return stopped, (*withdrawn, Begin(returning))


def _sent(member: Member, *, keep_committed: bool) -> Member:
    return member if keep_committed and member.outcome is Outcome.COMMITTED else send_back(member)


def send_back(member: Member) -> Member:
    """The member on its way back, as far as it was touched and has somewhere to return to."""
    tried = member.tried
    if member.outcome is Outcome.WAITING:
        member = replace(member, outcome=Outcome.SKIPPED)
    touched = tried or member.outcome in TOUCHED
    if not touched or member.cause == "already_there" or member.back is not Back.NO:
        return member
    if member.prior:
        return replace(member, back=Back.RETURNING)
    # Something always serves: a site that committed its first version ever keeps it rather than nothing.
    return replace(member, back=Back.KEPT if member.outcome is Outcome.COMMITTED else Back.WITHDRAWN)


def correct(rollout: Rollout, member: Member) -> tuple[Member, Order | None]:
    """A device that failed within what was accepted: it went back by itself, and its document says so from now on."""
    sent = send_back(member)
    if sent.back is Back.WITHDRAWN:
        return sent, Withdraw(member.device)
    if sent.back is not Back.RETURNING:
        return sent, None
    order = Assign(sent.device, sent.prior, sent.prior_version, rollout.back_id, "rollback", rollout.plan.probation)
    return replace(sent, back=Back.RETURNED), order


def way_back(rollout: Rollout, now: datetime) -> Rollout | None:
    """The return of every member that is on its way back; None when there is none."""
    returning = {m.device: m for m in rollout.members.values() if m.back is Back.RETURNING}
    if not returning:
        return None
    plan = rollout.plan
    sites = {device: member.site for device, member in returning.items()}
    waves = take(plan.back.waves, sites, known=False)
    left = tuple(device for device in returning if not any(device in wave for wave in waves))
    members = [_returner(returning[device], number) for number, wave in enumerate((*waves, left)) for device in wave]
    gate = Gate(max_in_flight=plan.back.max_in_flight, deadline_s=plan.gate.deadline_s, max_failures=NEVER)
    return Rollout(
        id=rollout.back_id,
        model=rollout.model,
        digest=rollout.digest,
        version=rollout.version,
        plan=Plan(gate=gate, probation=plan.probation, ping_pong=PingPong()),
        state=State.RUNNING,
        wave_since=now,
        cause=rollout.cause,
        sentence=rollout.sentence,
        kind="return",
        of=rollout.id,
        why=f"Return from {rollout.version}: {rollout.sentence}",
        members=Roster(members),
    )


def _returner(member: Member, wave: int) -> Member:
    return Member(
        member.device,
        member.site,
        wave,
        prior=member.target or "",
        place=member.place,
        target=member.prior,
        target_version=member.prior_version,
    )


def returning(rollout: Rollout, around: Around, now: datetime) -> Decision:
    """What began a return waits for it; one whose return was never kept begins it."""
    child = around.child
    if child is None:
        made = way_back(rollout, now)
        if made is not None:
            return Decision(rollout, (Begin(made),), return_waiting(rollout))
        return Decision(replace(rollout, state=State.ROLLED_BACK))
    if child.state not in FINAL:
        return Decision(rollout, (), return_waiting(rollout))
    done = {Outcome.COMMITTED, Outcome.REMOVED, Outcome.EXCLUDED}
    late = [m for m in child.members.values() if m.outcome not in done]
    text = rollout.sentence
    if late:
        text += f" {named([m.site for m in late])} did not answer yet; the order stands."
    came = [replace(m, back=Back.RETURNED) for m in rollout.members.values() if m.back is Back.RETURNING]
    return Decision(replace(rollout, state=State.ROLLED_BACK, sentence=text, members=rollout.members.put(came)))


def return_waiting(rollout: Rollout) -> tuple[Waiting, ...]:
    """Who is on the way back."""
    sites = tuple(m.site for m in rollout.members.values() if m.back is Back.RETURNING)
    return (ForReturn(sites),) if sites else ()
