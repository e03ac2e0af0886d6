"""Mistakes planted in the product, one at a time, by putting something else in the place of a part of it."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from landreeve.wire.messages import UpdateReport
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.update import machine as box_machine
from landreeve_agent.update import runner as box_runner
from landreeve_hub.rollout import back, book, holds, live, machine, observing
from landreeve_hub.rollout.state import RaiseIncident
from msgspec.structs import replace

from tests.fleet.timing import PATIENCE, PROGRESS

DECIDE = live.decide


@dataclass(frozen=True)
class Mistake:
    """``place`` holds ``name``, whose real content ``wrong`` is given and replaces. ``rule`` sees it, at ``seed``
    soon."""

    rule: str
    place: Any
    name: str
    wrong: Callable[[Any], Any]
    seed: int = 0


def _answers(value: Any) -> Callable[[Any], Any]:
    """Whatever is asked, the same answer."""
    return lambda _real: lambda *_args, **_more: value


def _silently(real: Any) -> Any:
    """What a gate demands is done, and nobody is told."""

    def obey(*args: Any) -> Any:
        decision = real(*args)
        told = tuple(order for order in decision.orders if not isinstance(order, RaiseIncident))
        return dataclasses.replace(decision, orders=told)

    return obey


def _saves_only_the_head(real: Any) -> Any:
    """Members whose wave is not the present one are not written."""

    def save(connection: Any, before: Any, after: Any, now: Any) -> Any:
        late = [before.members[d] for d in after.members.delta if d in before.members and before.members[d].wave > 0]
        kept = real(connection, before, replace(after, members=after.members.put(late)), now)
        return replace(kept, members=after.members.saved())

    return save


def _carries_out_in_secret(real: Any) -> Any:
    """The orders are in the tables, and no document is made of those that lead back."""

    def carry_out(connection: Any, rollout: Any, *args: Any, **more: Any) -> Any:
        touched = real(connection, rollout, *args, **more)
        return set() if rollout.kind == "return" else touched

    return carry_out


def _sees_no_verdict(_real: Any) -> Any:
    """What is known of a device's data when it takes the release is not looked at."""
    return lambda _rollout, member, _fact: member


def _forgets_to_tell(real: Any) -> Any:
    """A box that begins to roll back does not say so."""

    def enqueue(self: Any, db: Any, body: Any, now: Any) -> int:
        mute = isinstance(body, UpdateReport) and body.state == "ROLLING_BACK"
        return 0 if mute else int(real(self, db, body, now))

    return enqueue


def _drops_the_good(real: Any) -> Any:
    """A new order makes the box forget what is proven."""

    def receive(state: Any, order: Any) -> Any:
        return dataclasses.replace(real(state, order), good=None)

    return receive


def _one_more(real: Any) -> Any:
    """A wave may have one more in flight than the plan says."""

    def order_due(rollout: Any, *args: Any) -> Any:
        gate = rollout.plan.gate
        more = replace(rollout, plan=replace(rollout.plan, gate=replace(gate, max_in_flight=gate.max_in_flight + 1)))
        after, held = real(more, *args)
        return replace(after, plan=rollout.plan), held

    return order_due


def _trusts_anyone(real: Any) -> Any:
    """Whatever speaks against a device, it is ordered."""
    return lambda rollout, member, fact, *more: real(rollout, member, dataclasses.replace(fact, suspect=""), *more)


def _names_all_alike(_real: Any) -> Any:
    """A retry bears the name of the first order."""
    return lambda rollout, _member: rollout.id


def _sends_elsewhere(real: Any) -> Any:
    """The way back leads to another old release than the device's own."""

    def returner(member: Any, wave: int) -> Any:
        made = real(member, wave)
        other = "6" if made.target[1:2] == "7" else "7"
        return replace(made, target=made.target[:1] + other + made.target[2:])

    return returner


def _calls_early(real: Any) -> Any:
    """Half of the time that a device has is enough."""

    def silent_from(rollout: Any, member: Any, *more: Any) -> Any:
        due, since = real(rollout, member, *more), member.heard or member.ordered_at
        return due if due is None or since is None else since + (due - since) / 2

    return silent_from


def _knows_no_absence(real: Any) -> Any:
    """That the hub itself was away is not counted."""
    return lambda rollout, member, fact, _listening=None: real(rollout, member, fact)


def _believes_its_past(_real: Any) -> Any:
    """What was noted while the clock was ahead is waited for when it is right again."""
    return lambda rollout, _now: rollout


def _soaks_on(real: Any) -> Any:
    """A wave is watched for hours more than its plan says."""
    return lambda *args: real(*args) + timedelta(hours=4)


def _without_end(real: Any) -> Any:
    """Nothing is given up."""
    return dict.fromkeys(real, 1_000_000)


MISTAKES: dict[str, Mistake] = {
    "cloned": Mistake("nothing is ordered for two boxes of one name", machine, "hold", _trusts_anyone, 7),
    "same_name": Mistake("nobody is ordered twice", machine, "order_id", _names_all_alike, 7),
    "farther_back": Mistake("each goes back to its own last good", back, "_returner", _sends_elsewhere, 11),
    "relapse": Mistake("a release that failed the fleet is not ordered again", live, "_unfit", _answers(""), 15),
    "endless": Mistake("attempts are bounded", box_machine, "ATTEMPTS", _without_end, 7),
    "disorder": Mistake("nothing is ordered before what it waits for", holds, "before", _answers(None), 11),
    "crowd": Mistake("never two of one site", live, "busy", _answers({}), 6),
    "side_by_side": Mistake("one rollout of a model at a time", live, "earlier", _answers(""), 7),
    "secret": Mistake("every automatic rollback has an incident", machine, "obey", _silently, 5),
    "half_kept": Mistake("what the hub remembers is what it keeps", book, "save", _saves_only_the_head, 1),
    "unpublished": Mistake("what is published is what is assigned", book, "carry_out", _carries_out_in_secret, 1),
    "late_verdict": Mistake("a look at what changed sees everything", machine, "judged", _sees_no_verdict, 29),
    "crammed": Mistake("never more than max in flight", machine, "_order_due", _one_more),
    "night_owl": Mistake("nothing is activated outside the site's window", box_runner, "held", _answers(""), 3),
    "mute": Mistake("every transition of a box is told", Outbox, "enqueue", _forgets_to_tell, 2),
    "impatient": Mistake(PATIENCE, observing, "silent_from", _calls_early),
    "ungracious": Mistake(PATIENCE, observing, "silent_from", _knows_no_absence, 10),
    "spellbound": Mistake(PROGRESS, machine, "in_time", _believes_its_past, 98),
    "dragging": Mistake(PROGRESS, machine, "_soak_end", _soaks_on),
    "bare": Mistake("something always serves", box_machine, "_receive", _drops_the_good, 1),
}


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Within it the product has the mistake."""
    if not bug:
        yield
        return
    one = MISTAKES[bug]
    real = getattr(one.place, one.name)
    setattr(one.place, one.name, one.wrong(real))
    try:
        yield
    finally:
        setattr(one.place, one.name, real)
