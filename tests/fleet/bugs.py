"""Mistakes that are planted in the hub, one at a time, to show that the invariants see them."""

import dataclasses
from typing import Any

import msgspec
from landreeve_hub.rollout.policy import Windows
from landreeve_hub.rollout.roster import Outcome, Roster
from landreeve_hub.rollout.state import Assign, Decision, Rollout, State

from tests.fleet.timing import PATIENCE, PROGRESS

CAUGHT_BY = {
    "in_flight": "never more than max in flight",
    "site": "never two of one site",
    "waves": "nobody outside the waves reached",
    "threshold": "failures past the limit stop new orders",
    "prior": "each goes back to its own last good",
    "drag": "no device is dragged back without a person's word",
    "forget": "nobody is ordered twice",
    "quarantine": "a release that failed the fleet is quarantined",
    "wordless": "a rollout under way is never without a word",
    "sleep": "every rollout ends",
    "twice": "a document that did not change keeps its number",
    "deaf": "every failure is counted",
    "windows": "no order outside the site's window",
    "self_approval": "nobody approves what they proposed",
    "again": "a command again does nothing",
    "clone": "nothing is ordered for two boxes of one name",
    "overtake": "one rollout of a model at a time",
    "late_windows": "no order outside the site's window",
    "left_behind": "latecomers go back with what they came after",
    "overlooked": "who came late has what stands",
    "hasty": "a finished rollout is what runs",
    "blind_spot": "a look at what changed sees everything",
    "rewind": "an outcome never moves back",
    "mumbling": "each device that is due is spoken of",
    "bare": "something always serves",
    "amnesia": "the same sight again orders nobody again",
    "impatient": PATIENCE,
    "dragging": PROGRESS,
}
"""The invariant by which each is seen."""

SEEN_AT = {
    "clone": 30, "hasty": 25, "forget": 30, "drag": 16, "left_behind": 10, "bare": 2, "deaf": 2, "again": 3,
    "late_windows": 5, "impatient": 4, "overtake": 3, "prior": 2, "quarantine": 2, "sleep": 2, "threshold": 2,
}  # fmt: skip
"""A seed at which a rare one shows, or one that shows soon: looked at first."""

NO_OTHER = frozenset({"", "blind_spot", "rewind", "mumbling", "amnesia"})
"""With these the rules hold that the other mistakes break as well, by the way they are planted."""

TIMED = frozenset({"", "impatient", "dragging"})
"""With these the rules about time hold: a hub that sleeps, or leaves devices in flight, breaks them as well."""

replace = msgspec.structs.replace


def spoilt(bug: str, before: Rollout, decision: Decision) -> Decision:
    """A decision that is not what it should be."""
    if bug == "mumbling":
        return dataclasses.replace(decision, waiting=tuple(map(_mumbled, decision.waiting)))
    after = decision.rollout
    if bug == "rewind" and (done := after.members.of(Outcome.COMMITTED)):
        back = after.members.put([replace(done[0], outcome=Outcome.WAITING)])
        return dataclasses.replace(decision, rollout=replace(after, members=back))
    ordered = [order.device for order in decision.orders if isinstance(order, Assign) and order.action == "install"]
    if bug == "amnesia" and ordered:
        forgotten = after.members.put([before.members[device] for device in ordered])
        return dataclasses.replace(decision, rollout=replace(after, members=forgotten))
    return decision


def _mumbled(one: Any) -> Any:
    return dataclasses.replace(one, sites=()) if hasattr(one, "sites") else one


def bent(bug: str, rollout: Rollout) -> Rollout:
    """What a hub with the planted mistake believes of the rollout."""
    plan = rollout.plan
    if rollout.kind == "return":
        return rollout
    if bug == "in_flight":
        return replace(rollout, plan=replace(plan, gate=replace(plan.gate, max_in_flight=plan.gate.max_in_flight + 3)))
    if bug == "threshold":
        return replace(rollout, plan=replace(plan, gate=replace(plan.gate, max_failures=10_000)))
    if bug == "impatient":
        return replace(rollout, plan=replace(plan, gate=replace(plan.gate, deadline_s=plan.gate.deadline_s / 2)))
    if bug == "dragging":
        return replace(rollout, plan=replace(plan, gate=replace(plan.gate, soak_s=plan.gate.soak_s + 4 * 3600)))
    if bug == "windows":
        return replace(rollout, plan=replace(plan, windows=Windows()))
    if bug == "site":
        return replace(rollout, members=rollout.members.put([replace(m, place="") for m in rollout.members.values()]))
    if bug == "waves" and rollout.wave < rollout.members.last_wave:
        return replace(rollout, wave=rollout.wave + 1)
    return rollout


def straight(bug: str, before: Rollout, after: Rollout) -> Rollout:
    """The rollout as it would be kept without the mistake."""
    if not bug or before.kind == "return":
        return after
    if bug == "site":
        places = [replace(m, place=before.members[m.device].place) for m in after.members.values()]
        after = replace(after, members=after.members.put(places))
    wave = before.wave if bug == "waves" and after.state is State.RUNNING else after.wave
    return replace(after, plan=before.plan, wave=wave)


def misled(bug: str, begun: Rollout) -> Rollout:
    """The way back, everyone to the same release."""
    if bug != "prior":
        return begun
    one = next(iter(begun.members.values())).target
    return replace(begun, members=Roster([replace(member, target=one) for member in begun.members.values()]))


def forgetful(rollout: Rollout) -> Rollout:
    """A rollout that came back from the store without what was under way."""
    fresh = [replace(m, outcome=Outcome.WAITING) if m.flying else m for m in rollout.members.values()]
    return replace(rollout, members=Roster(fresh))
