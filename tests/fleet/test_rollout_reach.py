"""Every state a rollout of two devices can reach, met with every command and with whatever a device may tell: found by
walking, not by chance.

States that differ only in moments, words and in how often something was tried again are one.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.commands import COMMANDS, Asked
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.observing import order_id
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.roster import Back, Member, Outcome, Roster
from landreeve_hub.rollout.state import (
    FINAL,
    Around,
    Assign,
    Begin,
    DeviceFact,
    Order,
    Quality,
    Refused,
    Report,
    Rollout,
    State,
)
from msgspec.structs import replace

from tests.fleet.whole.coverage import HUB, OBEYED, Pair

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATE = timedelta(days=3)
NEW, OLD = "f" * 64, "0" * 64
DEVICES = ("d-0", "d-1")
NEWS = ("COMMITTED", "ROLLED_BACK", "CANCELLED", "drifted", "back", "removed")
"""What one device may tell: how an update ends, a window of the data it then sees, that it is back, that it is gone."""
SHORT = (("rollback", 2, 2), ("rollback", 0, 1), ("abort", 1, 1), ("pause", 1, 1))
"""What is done on a failure, how many devices have something to return to, and how many there are."""
LONG = (("rollback", 0, 2), ("rollback", 1, 2), ("abort", 2, 2), ("pause", 2, 2))


@dataclass(frozen=True)
class Place:
    """A rollout, and the return that it began."""

    rollout: Rollout
    back: Rollout | None = None


@dataclass(frozen=True)
class Step:
    """``what`` happened: a command, or what was told; ``led`` says where the look or the command alone led."""

    what: str
    orders: tuple[Order, ...]
    after: Place
    led: State
    obeyed: bool = True


def begun(action: str, size: int) -> Place:
    plan = parse_plan({
        "waves": [{"count": 1}, {"rest": True}],
        "gate": {"max_failures": 0, "max_silent": 0, "deadline_s": 3600, "on_failure": action},
        "watch": {"for_s": 7200, "max_drifted": 0},
        "actions": {"drift": "rollback"},
    })  # fmt: skip
    members = Roster([Member(device, device, number) for number, device in enumerate(DEVICES[:size])])
    return Place(
        Rollout(
            id="r-1", model="m", digest=NEW, version="v2", plan=plan, state=State.AWAITING_APPROVAL, members=members
        )
    )


def fact(rollout: Rollout, device: str, priors: int, news: str) -> DeviceFact:
    member, old = rollout.members[device], OLD if int(device[2:]) < priors else ""
    release = member.target or rollout.digest
    if news == "back":
        return DeviceFact(id=device, site=device, running=old, assigned=old)
    if news == "drifted":
        return DeviceFact(id=device, site=device, running=old, assigned=NEW, quality=Quality(NEW, "drifted"))
    report = Report(order_id(rollout, member), 1, release, news, "log_loss", "So it went.") if news else None
    return DeviceFact(id=device, site=device, running=old, assigned=NEW, good=old, report=report)


def look(place: Place, priors: int, told: tuple[str, str], late: timedelta) -> Step:
    """The hub looks at the rollout and then at its return."""
    device, news = told
    orders: list[Order] = []
    back, led = place.back, place.rollout.state
    rollout = place.rollout
    for of_return in (False, True):
        one = back if of_return else rollout
        if one is None:
            continue
        gone = news == "removed"
        fleet = {d: fact(one, d, priors, news if d == device else "") for d in one.members if d != device or not gone}
        decision = decide(one, fleet, NOW + late, Around(child=None if of_return else back))
        orders += decision.orders
        begins = [order.rollout for order in decision.orders if isinstance(order, Begin)]
        assert not (begins and back), "a return is begun once"
        back = begins[0] if begins else back
        if of_return:
            back = decision.rollout
        else:
            rollout, led = decision.rollout, decision.rollout.state
    name = f"{device} {news}" if news else "late" if late else "look"
    return Step(name, tuple(orders), Place(rollout, back), led)


def command(place: Place, verb: str) -> Step:
    asked = Asked("bob", NOW, "key")
    answer = commands.obey(place.rollout, verb, asked)
    if isinstance(answer, Refused) or answer[0] is place.rollout:
        return Step(verb, (), place, place.rollout.state, obeyed=False)
    after, orders = answer
    assert commands.obey(after, verb, asked) == (after, ()), "a command again does nothing"
    begins = [order.rollout for order in orders if isinstance(order, Begin)]
    assert not (begins and place.back), "a return is begun once"
    return Step(verb, orders, Place(after, begins[0] if begins else place.back), after.state)


def steps(place: Place, priors: int) -> Iterator[Step]:
    for verb in COMMANDS:
        yield command(place, verb)
    yield look(place, priors, ("", ""), timedelta())
    yield look(place, priors, ("", ""), LATE)
    for device in place.rollout.members:
        for news in NEWS:
            yield look(place, priors, (device, news), timedelta())


def same(place: Place) -> Place:
    """What all places like this one are taken for."""
    return Place(_same(place.rollout), None if place.back is None else _same(place.back))


def _same(rollout: Rollout) -> Rollout:
    return replace(
        rollout, members=Roster(map(_alike, rollout.members.values())), sentence="", why="", keys=(),
        wave_since=rollout.wave_since and NOW, finished=rollout.finished and NOW,
        cause=rollout.cause if rollout.cause in commands._JUDGED else "",
    )  # fmt: skip


def _alike(member: Member) -> Member:
    if member.outcome is Outcome.REMOVED:
        return replace(member, sentence="", cause="", ordered_at=None, prior="", heard=None, verdict="", attempt=0)
    return replace(
        member, sentence="", stage="", heard=None, ordered_at=member.ordered_at and NOW, due_since=None, attempt=0,
        cause=member.cause if member.outcome is Outcome.FAILED else "",
        verdict=member.verdict if member.outcome is Outcome.COMMITTED else "",
    )  # fmt: skip


def key(place: Place) -> tuple[object, ...]:
    """What decides what may still happen. Of what is over only the return goes on, by itself."""
    rollout, back = place.rollout, place.back
    if rollout.state in {State.ABORTED, State.ROLLED_BACK}:
        return rollout.state, back and back.state
    if rollout.state is State.ROLLING_BACK:
        kept = tuple(m.back for m in rollout.members.values())
        return rollout.state, kept, back and (back.state, *(m.outcome for m in back.members.values()))
    accepted = rollout.accepted_failures, rollout.accepted_silent, rollout.accepted_blamed, rollout.accepted_waves
    return (
        rollout.state, rollout.wave, rollout.cause, accepted, rollout.asked, rollout.concluded, rollout.finished,
        *rollout.members.values(), back is not None,
    )  # fmt: skip


@cache
def reached(action: str, priors: int, size: int) -> list[tuple[Place, list[Step]]]:
    """Every place that can be reached, with what each event makes of it."""
    found: dict[tuple[object, ...], tuple[Place, list[Step]]] = {}
    waiting = deque([begun(action, size)])
    while waiting:
        place = same(waiting.popleft())
        if (name := key(place)) in found:
            continue
        met = list(steps(place, priors))
        found[name] = place, met
        waiting.extend(step.after for step in met)
    return list(found.values())


everywhere = pytest.mark.parametrize(
    ("action", "priors", "size"), [*SHORT, *(pytest.param(*one, marks=pytest.mark.slow) for one in LONG)]
)

LED: dict[Pair, frozenset[State]] = {
    (str(before), verb): frozenset(after)
    for verb, ways in {
        "approve": {State.AWAITING_APPROVAL: {State.RUNNING}},
        "pause": {State.RUNNING: {State.PAUSED}},
        "resume": {State.PAUSED: {State.RUNNING}},
        "next": {State.RUNNING: {State.RUNNING}},
        "abort": {one: {State.ABORTED} for one in OBEYED["abort"]},
        "rollback": {one: {State.ROLLING_BACK, State.ROLLED_BACK} for one in OBEYED["rollback"]},
        "retry": {State.RUNNING: {State.RUNNING}, State.PAUSED: {State.PAUSED}, State.FINISHED: {State.RUNNING}},
    }.items()
    for before, after in ways.items()
}
"""Where an obeyed command may lead: straight to the end where nobody has anything to return to."""


def met(action: str, priors: int, size: int) -> dict[Pair, set[State]]:
    """Each pair of state and command, or of the states before and after a look, with where it led."""
    pairs: dict[Pair, set[State]] = {}
    for place, seen in reached(action, priors, size):
        before = place.rollout.state
        for step in seen:
            verb = step.what if step.what in COMMANDS else f"-> {step.led}"
            name = verb if step.obeyed else f"{verb} refused or again"
            if step.what in COMMANDS or before in WATCHED:
                pairs.setdefault((str(before), name), set()).add(step.led)
    return pairs


WATCHED = frozenset(State) - {State.ABORTED, State.ROLLED_BACK}
"""Those that a hub still looks at."""


def test_every_pair_of_the_table_is_met_and_leads_where_it_says_and_none_is_left_out() -> None:
    pairs: dict[Pair, set[State]] = {}
    for plan in SHORT:
        for pair, led in met(*plan).items():
            pairs.setdefault(pair, set()).update(led)
    idle = {(str(state), f"{verb} refused or again") for verb, states in OBEYED.items() for state in states}
    assert set(pairs) - idle == HUB
    assert {pair: frozenset(pairs[pair]) for pair in LED} == LED


@everywhere
def test_what_is_over_stays_over_and_what_is_refused_changes_nothing(action: str, priors: int, size: int) -> None:
    for place, seen in reached(action, priors, size):
        for step in seen:
            if not step.obeyed:
                assert step.after == place
            if place.rollout.state in {State.ABORTED, State.ROLLED_BACK}:
                assert step.led is place.rollout.state
                assert not [o for o in step.orders if isinstance(o, Assign) and o.action == "install"]


@everywhere
def test_only_a_running_rollout_orders_and_only_who_has_nothing_else_is_left_with_nothing(
    action: str, priors: int, size: int
) -> None:
    for place, seen in reached(action, priors, size):
        for step in seen:
            installs = [o.device for o in step.orders if isinstance(o, Assign) and o.action == "install"]
            assert len(installs) == len(set(installs))
            assert not installs or place.rollout.state is State.RUNNING, step.what
            for order in step.orders:
                if isinstance(order, Assign) and order.action == "rollback":
                    assert order.release == OLD
            for device, member in step.after.rollout.members.items():
                bare = int(device[2:]) >= priors
                assert bare or member.back not in {Back.WITHDRAWN, Back.KEPT}


@everywhere
def test_from_everywhere_it_ends_once_devices_are_well_and_a_person_answers(
    action: str, priors: int, size: int
) -> None:
    for start, _ in reached(action, priors, size):
        place, rounds = start, 0
        while not _over(place):
            place = _settled(place, priors)
            rounds += 1
            assert rounds < 9, start
        assert place.rollout.state in FINAL
        if place.rollout.state is State.FINISHED:
            members = place.rollout.members
            assert members.count(Outcome.WAITING, Outcome.ORDERED) == 0


def _over(place: Place) -> bool:
    return all(one is None or one.state in FINAL for one in (place.rollout, place.back))


def _settled(place: Place, priors: int) -> Place:
    """A person says go on, and each device tells that it is well."""
    verb = {State.AWAITING_APPROVAL: "approve", State.PAUSED: "resume"}.get(place.rollout.state)
    place = same(command(place, verb).after) if verb else place
    for device in place.rollout.members:
        for news in ("COMMITTED", "back"):
            place = same(look(place, priors, (device, news), timedelta()).after)
    return place
