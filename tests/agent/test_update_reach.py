"""Every state the update machine can reach, met with every event: found by walking, not by chance.

States that differ only in numbers that are compared (generations, attempts in the middle of their bound) are one.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from landreeve.wire.messages import Probation
from landreeve.wire.strategy import Strategy
from landreeve_agent.update.directing import Role, is_last, pinned, serving, stage_of, to_activate
from landreeve_agent.update.journal import decode_state, encode_state
from landreeve_agent.update.machine import (
    ATTEMPTS,
    Accepted,
    Activated,
    Attempted,
    Crashed,
    Event,
    Failed,
    NextTaken,
    Ordered,
    Passed,
    Proceeded,
    Proven,
    Restored,
    RollbackAsked,
    Staged,
    Stepped,
    Unordered,
    decide,
    effect_of,
)
from landreeve_agent.update.standing import BEFORE_ACTIVATION, TERMINAL, Installed, Order, Phase, State

NOW = "2026-11-23T12:00:00.000000Z"
STRATEGIES = {
    "direct": Strategy(),
    "shadow": Strategy(kind="shadow"),
    "canary": Strategy(kind="canary", shares=(0.1, 1.0)),
    "ab": Strategy(kind="ab", shares=(0.5,), key="carrier"),
    "blue_green": Strategy(kind="blue_green"),
}
COMPONENTS = ("model", "agent", "firmware")
KINDS = (
    Ordered, Unordered, RollbackAsked, NextTaken, Attempted, Accepted, Failed, Staged, Proceeded, Proven, Activated,
    Stepped, Passed, Crashed, Restored,
)  # fmt: skip
# Whose lot is decided by nobody but the machine: nothing is to be done in them and nothing waits.
AT_REST = TERMINAL - {Phase.ROLLBACK_FAILED}


def order(
    release: str, generation: int, strategy: Strategy, *, rollback: bool = False, component: str = "model"
) -> Order:
    return Order(
        "demo", release, f"v{release}", 10, f"r-{release}", generation, 10,
        rollback=rollback, strategy=strategy, component=component, probation=Probation(max_crashes=2),
    )  # fmt: skip


def begun(*, has_good: bool) -> State:
    good = Installed("a", "va", "{}") if has_good else None
    return State("demo", good=good, factory=good)


def events(state: State, strategy: Strategy, component: str) -> Iterator[Event]:
    """One of each kind that may matter; what is stale is another test's matter."""
    newer, of = state.generation + 1, state.order.generation if state.order else 0
    yield Ordered(order("b", newer, strategy, component=component))
    yield Ordered(order("a", newer, strategy, rollback=True, component=component))
    yield from (Unordered(newer), RollbackAsked("admin"), NextTaken())
    yield from (Attempted(of), Accepted(of), Failed(of, "log_loss", "No."), Staged(of), Proceeded(of), Proven(of, "{}"))
    yield from (Activated(of, NOW), Stepped(of, NOW, "On."), Passed(of, "Fine."), Crashed(of, "SIGSEGV"), Restored(of))
    yield Crashed(of, "SIGSEGV", dropped=True)


def same(state: State) -> State:
    """What all states like this one are taken for."""
    running = replace(state.order, generation=1) if state.order else None
    queued = replace(state.queued, generation=2) if state.queued else None
    limit = ATTEMPTS.get(state.phase, 0)
    attempt = state.attempt if state.attempt in (0, limit) else limit - 1
    return replace(
        state, order=running, queued=queued, generation=3, attempt=attempt,
        cause=state.cause if state.cause == "local_cancel" else "", sentence="",
    )  # fmt: skip


@cache
def reached(kind: str, component: str) -> dict[State, list[tuple[Event, State]]]:
    """Every reachable state, with what each event makes of it."""
    strategy = STRATEGIES[kind]
    found: dict[State, list[tuple[Event, State]]] = {}
    waiting = deque(same(begun(has_good=has_good)) for has_good in (True, False))
    while waiting:
        state = waiting.popleft()
        if state in found:
            continue
        found[state] = [(event, decide(state, event)) for event in events(state, strategy, component)]
        waiting.extend(same(after) for _, after in found[state])
    return found


def where(state: State) -> str:
    """The phase, and on probation what the candidate does."""
    return f"{state.phase}/{stage_of(state).role}" if state.phase is Phase.PROBATION else str(state.phase)


everywhere = pytest.mark.parametrize("kind", list(STRATEGIES))


@everywhere
def test_every_phase_and_role_is_reached_and_meets_every_event(kind: str) -> None:
    states = reached(kind, "model")
    pairs = Counter((where(state), type(event)) for state, met in states.items() for event, _ in met)
    places = {place for place, _ in pairs}
    roles = {"direct": 1, "shadow": 2, "canary": 2, "ab": 2, "blue_green": 2}[kind]  # the first version ever answers
    assert {place.partition("/")[0] for place in places} == set(Phase)
    assert sum(place.startswith("PROBATION") for place in places) == roles
    assert set(pairs) == {(place, event) for place in places for event in KINDS}
    print(f"{kind}: {len(states)} states, {sum(pairs.values())} steps, {len(pairs)} pairs of place and event")


@everywhere
def test_something_serves_wherever_something_was_good_and_only_what_was_proven(kind: str) -> None:
    for state, met in reached(kind, "model").items():
        for _, after in met:
            if state.good is not None:
                assert serving(after).active is not None
            now = serving(after)
            for item in (now.active, now.shadow, now.other):
                # "a" was good from the start; all others must have passed a preflight here.
                assert item is None or item.release in {"a"} | {i.release for i in _installed(after)}
            if after.phase in BEFORE_ACTIVATION | {Phase.RECEIVED, Phase.CANCELLED, Phase.REJECTED}:
                assert now.active == after.good, "nothing changed yet"


def _installed(state: State) -> list[Installed]:
    return [i for i in (state.good, state.previous, state.candidate, state.target, state.factory) if i is not None]


@everywhere
def test_from_everywhere_the_work_comes_to_an_end_without_the_hub(kind: str) -> None:
    """Whatever fails for good, attempts alone lead to rest (or to a return that is tried until it works)."""
    for state in reached(kind, "model"):
        now, steps = state, 0
        while now.phase not in TERMINAL or now.queued is not None:
            of = now.order.generation if now.order else 0
            now = decide(now, NextTaken() if now.phase in TERMINAL else Attempted(of))
            if now.phase in {Phase.RECEIVED, Phase.VERIFIED, Phase.STAGED}:  # these wait for nothing that may hang
                now = decide(now, Failed(of if now.order is None else now.order.generation, "broken", "No."))
            steps += 1
            assert steps < 400, state
        assert (effect_of(now) is None) == (now.phase in AT_REST)


@pytest.mark.parametrize(
    ("kind", "component"),
    [*((kind, "model") for kind in STRATEGIES), *(("direct", component) for component in COMPONENTS[1:])],
)
def test_cancelling_has_an_answer_everywhere(kind: str, component: str) -> None:
    """A withdrawn order, a newer one and a person on the site: what each leads to, in every reachable state."""
    for state, met in reached(kind, component).items():
        for event, after in met:
            if not isinstance(event, Unordered | RollbackAsked):
                continue
            place = after.phase, after.cause or after.abort
            withdrawn = isinstance(event, Unordered)
            untouched = state.phase in BEFORE_ACTIVATION or (state.phase is Phase.ACTIVATING and not state.attempt)
            if untouched:
                assert place == (Phase.CANCELLED, "order_withdrawn" if withdrawn else "local_cancel")
                assert serving(after).active == state.good
                assert after.queued is None
            elif state.phase is Phase.ACTIVATING:
                assert (after.phase, after.abort) == (
                    Phase.ACTIVATING, "order_withdrawn" if withdrawn else "local_rollback",
                )  # fmt: skip
                assert decide(after, Activated(1, NOW)).phase is Phase.ROLLING_BACK
            elif state.phase is Phase.PROBATION:
                assert place == (Phase.ROLLING_BACK, "order_withdrawn" if withdrawn else "local_rollback")
                assert serving(after).active == state.good
            elif state.phase is Phase.COMMITTED and not withdrawn and state.previous is not None:
                assert (place, after.target) == ((Phase.ROLLING_BACK, "local_rollback"), state.previous)
            else:
                assert after.phase is state.phase, "what serves by a proven right is taken away by nobody"
                assert after.queued == (None if withdrawn else state.queued)


@everywhere
def test_of_all_orders_that_wait_only_the_newest_is_ever_taken_up(kind: str) -> None:
    for state, met in reached(kind, "model").items():
        for event, after in met:
            if isinstance(event, Ordered) and state.queued is not None:
                wanted = state.queued if state.queued.same_as(event.order) else event.order
                assert after.queued == wanted
            if isinstance(event, NextTaken) and state.phase in TERMINAL and state.queued is not None:
                assert (after.phase, after.order, after.queued) == (Phase.RECEIVED, state.queued, None)


@everywhere
def test_every_state_survives_its_form_on_the_disk_and_keeps_what_it_may_return_to(kind: str) -> None:
    for state in reached(kind, "model"):
        assert decode_state(encode_state(state)) == state
        now = serving(state)
        kept = pinned(state)
        for item in (
            now.active,
            now.shadow,
            now.other,
            state.good,
            state.factory,
            state.target,
            to_activate(state).active,
        ):
            assert item is None or item.release in kept


@everywhere
def test_only_the_last_stage_commits_and_every_stage_may_be_left(kind: str) -> None:
    for state, met in reached(kind, "model").items():
        if state.phase is not Phase.PROBATION:
            continue
        for event, after in met:
            if isinstance(event, Passed):
                assert (after.phase is Phase.COMMITTED) == is_last(state)
            if isinstance(event, Failed):
                assert (after.phase, after.target) == (Phase.ROLLING_BACK, state.good)
            if isinstance(event, Crashed):
                unheard = event.dropped and stage_of(state).role is not Role.ANSWERS
                assert (after.phase is Phase.ROLLING_BACK) == (state.crashes == 1 or unheard)
