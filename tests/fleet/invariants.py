"""What must hold in every history, each rule by its name; `InvariantBrokenError` says which one did not."""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from landreeve_hub.rollout.machine import decide, uncovered
from landreeve_hub.rollout.roster import Back, Outcome
from landreeve_hub.rollout.state import FINAL, Around, Assign, Decision, DeviceFact, Rollout, State

from tests.fleet.boxes import Box
from tests.fleet.bugs import NO_OTHER

if TYPE_CHECKING:
    from tests.fleet.hub import SimulatedHub

RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}
GONE = {State.ROLLING_BACK, State.ROLLED_BACK}


class InvariantBrokenError(AssertionError):
    """``name`` is the rule that was broken."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name


def require(holds: bool, name: str, what: str = "") -> None:
    if not holds:
        raise InvariantBrokenError(name, what)


# --- each order ---


def check_order(hub: "SimulatedHub", rollout: Rollout, order: Assign, ordered: set[tuple[str, str]]) -> None:
    """An order that the hub is about to write down; ``ordered`` are those given so far."""
    if order.action == "rollback":
        check_way_back(hub, rollout, order)
        return
    again = (order.device, order.rollout)
    require(again not in ordered, "nobody is ordered twice", str(again))
    ordered.add(again)
    require(order.device not in hub.tables.doubled, "nothing is ordered for two boxes of one name", order.device)
    parent = hub.tables.rollouts.get(rollout.of, rollout)
    asked = hub.proposed.get(parent.id, "")
    require(hub.tables.approved.get(parent.id, "") not in {"", asked}, "nobody approves what they proposed", parent.id)
    windows = rollout.plan.windows.activate or parent.plan.windows.activate
    if windows:
        local = hub.clock.astimezone(ZoneInfo(hub.zone(order.device)))
        require(local.hour >= 20 or local.hour < 6, "no order outside the site's window", f"{order.device} {local}")


def check_way_back(hub: "SimulatedHub", rollout: Rollout, order: Assign) -> None:
    parent = hub.tables.rollouts.get(rollout.of, rollout) if rollout.kind == "return" else rollout
    member = parent.members.get(order.device)
    own = member.prior if member is not None else ""
    require(order.release == own, "each goes back to its own last good", order.device)


# --- each decision ---


def check_decision(hub: "SimulatedHub", before: Rollout, after: Rollout, decision: Decision) -> None:
    """``after`` is what the hub makes of the decision."""
    gate = before.plan.gate
    flying = [after.members[device] for device in after.members.flying]
    require(len(flying) <= gate.max_in_flight, "never more than max in flight", str(len(flying)))
    install = [o for o in decision.orders if isinstance(o, Assign) and o.action == "install"]
    if before.kind != "return":
        places = [member.where for member in flying]
        require(len(places) == len(set(places)), "never two of one site", str(sorted(places)))
        require(all(m.wave <= after.wave for m in flying), "nobody outside the waves reached")
    if before.kind == "update":
        check_threshold(before, after, bool(install))
        check_queue(hub, before, bool(install))
    if install:
        check_sites(hub, before, after)
    for device in after.members.delta:
        old, new = before.members.get(device), after.members[device]
        forward = old is None or RANK[new.outcome] >= RANK[old.outcome] or new.attempt > old.attempt
        require(forward, "an outcome never moves back", f"{device} {new.outcome}")
    check_words(after, decision, wordless=hub.case.bug == "wordless", planted=hub.case.bug not in NO_OTHER)


def check_threshold(before: Rollout, after: Rollout, installs: bool) -> None:
    failed = after.members.count(Outcome.FAILED)
    beyond = failed > max(before.plan.gate.max_failures, before.accepted_failures)
    if beyond and before.state in {State.RUNNING, State.PAUSED}:
        require(after.state is not State.RUNNING and not installs, "failures past the limit stop new orders")


def check_queue(hub: "SimulatedHub", before: Rollout, installs: bool) -> None:
    older = [
        other.id
        for other in hub.tables.rollouts.values()
        if other.model == before.model and other.kind == "update" and other.id < before.id and other.state not in FINAL
    ]
    require(not (installs and older), "one rollout of a model at a time", f"{before.id} before {older}")


def check_sites(hub: "SimulatedHub", before: Rollout, after: Rollout) -> None:
    """Whoever is newly under way stands where no other rollout has a device under way."""
    others = {
        other.members[device].where
        for other in hub.tables.rollouts.values()
        if other.id != before.id and other.state not in FINAL
        for device in other.members.flying
    }
    new = [after.members[d].where for d in after.members.flying if d not in before.members.flying]
    require(not others & set(new), "never two of one site", f"{before.id} {sorted(others & set(new))}")


def check_words(after: Rollout, decision: Decision, *, wordless: bool, planted: bool) -> None:
    waiting = () if wordless else decision.waiting
    if after.state in FINAL:
        return
    require(bool(waiting), "a rollout under way is never without a word", str(after.state))
    if after.state is not State.RUNNING or planted:
        return
    spoken: set[str] = set()
    for one in waiting:
        sites = getattr(one, "sites", None)
        if sites is None:
            return
        spoken |= set(sites)
    silent = [member.site for member in uncovered(after) if member.site not in spoken]
    require(not silent, "each device that is due is spoken of", str(silent[:3]))


def check_incremental(
    hub: "SimulatedHub", before: Rollout, decision: Decision, facts: dict[str, DeviceFact], around: Around
) -> None:
    """To look at what changed is as good as to look at everything; and the same sight again orders nothing."""
    again = decide(decision.rollout, facts, hub.clock, hub.around(decision.rollout))
    ordered = {o.device for o in decision.orders if isinstance(o, Assign)}
    twice = [o.device for o in again.orders if isinstance(o, Assign) and o.device in ordered]
    require(not twice, "the same sight again orders nobody again", str(twice[:1]))
    everything = {d: f for d in before.members if (f := hub.fact(d)) is not None}
    whole = decide(before, everything, hub.clock, around)
    require(whole.rollout == decision.rollout, "a look at what changed sees everything", before.id)


# --- the end ---


def check_end(hub: "SimulatedHub", boxes: dict[str, Box], first: str, spoilt: set[str]) -> None:
    """Everything has come to its end and everybody has been heard. ``spoilt`` are boxes that were set back, cloned or
    decided over by a person: what they run is their own matter."""
    rollouts = hub.tables.rollouts
    for rollout in rollouts.values():
        if rollout.kind == "update" and rollout.state is State.ROLLED_BACK and rollout.cause not in {"rolled_back", ""}:
            held = rollout.digest in hub.tables.quarantined
            require(held, "a release that failed the fleet is quarantined", f"{rollout.id} {rollout.cause}")
    for name, box in boxes.items():
        if box.prior:
            require(bool(box.running[0]), "something always serves", name)
        if name in spoilt:
            continue
        check_history(hub, box, rollouts[first])
        check_settled(hub, box, _of(rollouts.values(), name))


def _of(rollouts: Iterable[Rollout], name: str) -> list[Rollout]:
    """The rollouts in which the device was ordered something, newest first; those of latecomers after their own."""
    mine = [r for r in rollouts if r.kind != "return" and name in r.members and r.members[name].ordered_at is not None]
    return sorted(mine, key=lambda rollout: rollout.id, reverse=True)


def check_history(hub: "SimulatedHub", box: Box, first: Rollout) -> None:
    member = first.members.get(box.name)
    told = hub.told_bad.get(box.name, hub.clock)
    if member is None or first.finished is None or told >= first.finished or not box.ended_badly(first.id):
        return
    failed = member.outcome is Outcome.FAILED or member.back is not Back.NO
    require(failed, "every failure is counted", f"{box.name} {member.outcome}")


def check_settled(hub: "SimulatedHub", box: Box, mine: list[Rollout]) -> None:
    held = hub.tables.assigned.get(box.name)
    if not mine or held is None or hub.conflict(box.name):
        return
    newest = mine[0]
    member, parent = newest.members[box.name], hub.tables.rollouts.get(newest.of, newest)
    if newest.kind == "late" and parent.state in GONE:
        require(member.back is not Back.NO, "latecomers go back with what they came after", box.name)
    if member.back is Back.RETURNED and newest.state is State.ROLLED_BACK and held.rollout.startswith(newest.back_id):
        require(box.running[0] == member.prior, "each goes back to its own last good", box.name)
    if member.outcome is Outcome.COMMITTED and member.back is Back.NO and newest.state is State.FINISHED:
        require(box.running[0] == held.release, "a finished rollout is what runs", box.name)


def check_latecomers(hub: "SimulatedHub", late: dict[str, float], first: str) -> None:
    """Whoever came into a fleet whose first rollout stands, and for good, was asked to take what stands."""
    rollout = hub.tables.rollouts[first]
    standing = rollout.state is State.FINISHED
    stopped = hub.tables.rollouts.get(rollout.late_id)
    if not standing or (stopped is not None and stopped.state not in {State.FINISHED, State.RUNNING}):
        return
    for name in late:
        if name in hub.tables.removed or not name.startswith("d-"):
            continue
        member = any(
            name in other.members
            for other in hub.tables.rollouts.values()
            if other.model == rollout.model and other.kind != "return"
        )
        require(member or name in hub.tables.assigned, "who came late has what stands", name)
