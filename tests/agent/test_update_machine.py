"""The update machine over arbitrary histories: crashes, repeats, reordering, stale orders, silence."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from landreeve.wire.strategy import Strategy
from landreeve_agent.update import machine
from landreeve_agent.update.directing import is_last, pinned, serving, to_activate
from landreeve_agent.update.journal import decode_state, encode_state
from landreeve_agent.update.machine import (
    ATTEMPTS,
    Accepted,
    Activated,
    Attempted,
    Crashed,
    Effect,
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
    quarantines,
)
from landreeve_agent.update.standing import BEFORE_ACTIVATION, TERMINAL, Installed, Order, Phase, State

RELEASES = "abcd"
STRATEGIES = (
    Strategy(),
    Strategy(kind="shadow"),
    Strategy(kind="canary", shares=(0.1, 0.5)),
    Strategy(kind="canary", shares=(0.1, 1.0)),
    Strategy(kind="ab", shares=(0.5,), key="carrier"),
    Strategy(kind="blue_green"),
)
NOON = "2026-11-23T12:00:00.000000Z"


def order(release: str, generation: int, rollout: str = "", **changes: Any) -> Order:
    return Order("demo", release, f"v{release}", 10, rollout or f"r-{release}", generation, 10, **changes)


def good(release: str) -> Installed:
    return Installed(release, f"v{release}", "{}")


HAPPY = {
    Phase.RECEIVED: Accepted,
    Phase.VERIFIED: Proceeded,
    Phase.DOWNLOADING: Staged,
    Phase.STAGED: Proceeded,
    Phase.PREFLIGHT: lambda of: Proven(of, "{}"),
    Phase.ACTIVATING: lambda of: Activated(of, "2026-11-23T06:00:00.000000Z"),
    Phase.PROBATION: lambda of: Passed(of, "Fine."),
    Phase.ROLLING_BACK: Restored,
    Phase.ROLLBACK_FAILED: Restored,
}


def onwards(state: State, until: Phase) -> State:
    """What the runner makes of it when everything works."""
    for _ in range(30):
        if state.phase is until:
            return state
        assert state.order is not None
        event = NextTaken() if effect_of(state) is Effect.TAKE_NEXT else HAPPY[state.phase](state.order.generation)
        if state.phase is Phase.PROBATION and not is_last(state):
            event = Stepped(state.order.generation, NOON, "On.")
        state = decide(state, event)
    raise AssertionError(f"{until} is not reached, only {state.phase}")


def at(phase: Phase, *, has_good: bool = True) -> State:
    """A state of that phase with an order for release b, and a where there was a good version."""
    start = State("demo", generation=1, good=good("a") if has_good else None)
    state = decide(start, Ordered(order("b", 2)))
    match phase:
        case Phase.IDLE:
            return start
        case Phase.REJECTED:
            return decide(state, Failed(2, "not_approved", "No."))
        case Phase.CANCELLED:
            return decide(state, Unordered(3))
        case Phase.ROLLING_BACK | Phase.ROLLED_BACK:
            return onwards(decide(onwards(state, Phase.PROBATION), Failed(2, "log_loss", "Worse.")), phase)
        case Phase.ROLLBACK_FAILED:
            return decide(at(Phase.ROLLING_BACK, has_good=has_good), Failed(2, "worker_down", "Gone."))
        case _:
            return onwards(state, phase)


@pytest.mark.parametrize("phase", list(Phase))
def test_every_state_survives_its_serialised_form(phase: Phase) -> None:
    state = at(phase)
    assert decode_state(encode_state(state)) == state


@pytest.mark.parametrize("phase", list(Phase))
def test_what_to_do_follows_from_the_state_alone(phase: Phase) -> None:
    assert effect_of(at(phase)) == effect_of(decode_state(encode_state(at(phase))))
    assert (effect_of(at(phase)) is None) == (phase in TERMINAL - {Phase.ROLLBACK_FAILED})


LEGAL = {
    Accepted: {Phase.RECEIVED},
    Staged: {Phase.DOWNLOADING},
    Proceeded: {Phase.VERIFIED, Phase.STAGED},
    Proven: {Phase.PREFLIGHT},
    Activated: {Phase.ACTIVATING},
    Passed: {Phase.PROBATION},
    Stepped: set(),
    Crashed: {Phase.PROBATION},
    Restored: {Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED},
    Failed: BEFORE_ACTIVATION | {Phase.ACTIVATING, Phase.PROBATION, Phase.ROLLING_BACK},
}


def outcome(kind: type, of: int) -> Event:
    """An outcome with any content."""
    filler = {"of": of}
    filler |= {f.name: "x" for f in fields(kind) if f.name != "of"}  # type: ignore[dict-item]
    return kind(**filler)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("kind", list(LEGAL))
def test_illegal_event_changes_nothing(phase: Phase, kind: type) -> None:
    state = at(phase)
    changed = decide(state, outcome(kind, 2)) is not state
    assert changed == (phase in LEGAL[kind])


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("kind", [*LEGAL, Attempted])
def test_outcome_for_an_older_order_changes_nothing(phase: Phase, kind: type) -> None:
    state = at(phase)
    assert decide(state, outcome(kind, 1)) is state


@pytest.mark.parametrize("phase", list(Phase))
def test_stale_order_never_moves_backwards(phase: Phase) -> None:
    state = at(phase)
    for generation in range(state.generation + 1):
        assert decide(state, Ordered(order("c", generation))) is state
        assert decide(state, Unordered(generation)) is state


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.IDLE, Phase.CANCELLED}))
def test_same_order_again_only_raises_the_generation(phase: Phase) -> None:
    state = at(phase)
    assert decide(state, Ordered(order("b", 9))) == replace(state, generation=9)


@pytest.mark.parametrize("phase", sorted(BEFORE_ACTIVATION | {Phase.ACTIVATING}))
def test_newer_order_before_activation_cancels_and_follows(phase: Phase) -> None:
    """Also while an activation only waits for the site's window."""
    state = decide(at(phase), Ordered(order("c", 9)))
    assert (state.phase, state.cause) == (Phase.CANCELLED, "superseded")
    assert serving(state).active == good("a")
    assert onwards(state, Phase.COMMITTED).good == good("c")


@pytest.mark.parametrize("phase", [Phase.ACTIVATING, Phase.PROBATION, Phase.ROLLING_BACK])
def test_newer_order_after_activation_waits_for_the_return(phase: Phase) -> None:
    state = decide(decide(at(phase), Attempted(2)), Ordered(order("c", 9)))
    assert state.queued == order("c", 9)
    back = onwards(state, Phase.ROLLED_BACK)
    assert back.good == good("a")
    assert onwards(decide(back, NextTaken()), Phase.COMMITTED).good == good("c")


def test_of_several_waiting_orders_only_the_newest_applies() -> None:
    state = at(Phase.ROLLING_BACK)
    for generation, release in ((5, "c"), (7, "d"), (6, "c")):
        state = decide(state, Ordered(order(release, generation)))
    state = onwards(onwards(state, Phase.ROLLED_BACK), Phase.COMMITTED)
    assert state.good == good("d")


@pytest.mark.parametrize("phase", sorted(BEFORE_ACTIVATION | {Phase.ACTIVATING, Phase.PROBATION}))
def test_order_withdrawn_midway_ends_at_the_last_good_version(phase: Phase) -> None:
    begun = at(phase) if phase in BEFORE_ACTIVATION else decide(at(phase), Attempted(2))
    state = decide(begun, Unordered(9))
    ends = Phase.CANCELLED if phase in BEFORE_ACTIVATION else Phase.ROLLED_BACK
    ended = onwards(state, ends)
    assert serving(ended).active == good("a")
    assert not quarantines(at(phase), state)


def test_order_withdrawn_after_the_commit_takes_nothing_away() -> None:
    state = decide(at(Phase.COMMITTED), Unordered(9))
    assert state == replace(at(Phase.COMMITTED), generation=9)


def test_first_model_that_fails_leaves_nothing_and_the_next_may_come() -> None:
    state = decide(at(Phase.PROBATION, has_good=False), Failed(2, "log_loss", "Worse."))
    withdrawn = onwards(state, Phase.ROLLED_BACK)
    assert (withdrawn.good, serving(withdrawn).active) == (None, None)
    assert onwards(decide(withdrawn, Ordered(order("c", 3))), Phase.COMMITTED).good == good("c")


def test_rollback_of_a_rollback_ends_where_it_began() -> None:
    committed = at(Phase.COMMITTED)
    back = onwards(decide(committed, RollbackAsked("admin")), Phase.ROLLED_BACK)
    assert (back.good, back.previous) == (good("a"), None)
    assert decide(back, RollbackAsked("admin")) is back


def test_return_ordered_by_the_hub_needs_no_probation_and_no_shadow() -> None:
    state = decide(at(Phase.COMMITTED), Ordered(order("a", 5, "r-back", rollback=True)))
    activating = onwards(state, Phase.ACTIVATING)
    assert to_activate(activating).shadow is None
    done = onwards(activating, Phase.COMMITTED)
    assert (done.good, done.cause, done.previous) == (good("a"), "ordered_back", None)


def test_installed_version_is_not_installed_again() -> None:
    state = decide(at(Phase.COMMITTED), Ordered(order("b", 5, "other-rollout")))
    done = decide(state, Accepted(5))
    assert (done.phase, done.cause, done.good) == (Phase.COMMITTED, "already_installed", good("b"))


def test_failed_rollback_is_tried_until_it_works() -> None:
    state = at(Phase.ROLLBACK_FAILED)
    assert effect_of(state) is Effect.RESTORE
    assert decide(state, Attempted(2)) is state
    assert decide(state, Restored(2)).phase is Phase.ROLLED_BACK


def shares_of(strategy: Strategy) -> list[tuple[str, str | None, str | None, float]]:
    """Who answers, listens and shares in each stage of a strategy: releases and the share."""
    state = decide(at(Phase.IDLE), Ordered(order("b", 2, strategy=strategy)))
    state = onwards(state, Phase.PROBATION)
    found = []
    while state.phase is Phase.PROBATION:
        now = serving(decode_state(encode_state(state)))
        assert now.active is not None
        shadow, other = now.shadow, now.other
        found.append(
            (now.active.release, shadow.release if shadow else None, other.release if other else None, now.share)
        )
        assert state.order is not None
        event = Passed if is_last(state) else Stepped
        state = decide(state, event(state.order.generation, *((NOON, "On.") if event is Stepped else ("Fine.",))))
    assert state.phase is Phase.COMMITTED
    assert serving(state).active == good("b")
    return found


@pytest.mark.parametrize(
    ("strategy", "stages"),
    [
        *zip(
            STRATEGIES,
            [
                [("b", "a", None, 0.0)],
                [("a", "b", None, 0.0), ("b", "a", None, 0.0)],
                [("a", None, "b", 0.1), ("a", None, "b", 0.5)],
                [("a", None, "b", 0.1), ("b", "a", None, 0.0)],
                [("a", None, "b", 0.5)],
                [("a", None, "b", 0.0), ("b", "a", None, 0.0)],
            ],
            strict=True,
        )
    ],
    ids=lambda value: value.kind if isinstance(value, Strategy) else "",
)
def test_each_strategy_takes_over_by_its_stages_also_across_power_cuts(
    strategy: Strategy, stages: list[tuple[str, str | None, str | None, float]]
) -> None:
    assert shares_of(strategy) == stages


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.kind}{s.shares}")
def test_first_model_ever_has_nobody_to_share_with(strategy: Strategy) -> None:
    state = decide(at(Phase.IDLE, has_good=False), Ordered(order("b", 2, strategy=strategy)))
    on_probation = onwards(state, Phase.PROBATION)
    assert serving(on_probation).active == good("b")
    assert is_last(on_probation)


def test_no_stage_is_skipped_and_none_is_committed_early() -> None:
    state = decide(at(Phase.IDLE), Ordered(order("b", 2, strategy=STRATEGIES[2])))
    state = onwards(state, Phase.PROBATION)
    assert decide(state, Passed(2, "Fine.")) is state
    stepped = decide(state, Stepped(2, NOON, "On."))
    assert decide(stepped, Stepped(2, NOON, "On.")) is stepped


def test_first_good_version_stays_on_the_disk_for_ever() -> None:
    state = at(Phase.COMMITTED)
    for generation, release in ((5, "c"), (6, "d")):
        state = onwards(decide(state, Ordered(order(release, generation))), Phase.COMMITTED)
    assert state.factory == good("a")
    assert pinned(state) == {"a", "c", "d"}


@pytest.mark.parametrize("phase", list(ATTEMPTS))
def test_attempts_are_bounded_across_crashes(phase: Phase) -> None:
    state = at(phase)
    for _ in range(ATTEMPTS[phase]):
        state = decode_state(encode_state(decide(state, Attempted(2))))
        assert state.phase is phase
    assert decide(state, Attempted(2)).cause == "attempts_exhausted"


def test_only_failures_of_the_release_itself_quarantine_it() -> None:
    def judged(phase: Phase, cause: str) -> bool:
        before = at(phase)
        return quarantines(before, decide(before, Failed(2, cause, "No.")))

    assert judged(Phase.PREFLIGHT, "golden_mismatch")
    assert judged(Phase.ACTIVATING, "bad_graph")
    assert judged(Phase.PROBATION, "log_loss")
    assert not judged(Phase.PREFLIGHT, "deadline"), "the box was too busy to search for a plan: the release was proven"
    passing = ("not_proven", "accelerator_lost", "superseded", "order_withdrawn", "not_in_order", "disk_failed")
    for cause in (*passing, "disk_full", "deadline"):
        assert not judged(Phase.PROBATION, cause), cause
        assert not judged(Phase.ACTIVATING, cause), cause
    assert not judged(Phase.DOWNLOADING, "disk_full")
    assert not judged(Phase.DOWNLOADING, "corrupt_artifact")


class Histories(RuleBasedStateMachine):
    """Any order of events, with a reload from the serialised form in between."""

    @initialize(has_good=st.booleans(), phase=st.sampled_from(Phase), strategy=st.sampled_from(STRATEGIES))
    def begin(self, has_good: bool, phase: Phase, strategy: Strategy) -> None:
        """Anywhere: a walk from IDLE alone hardly ever comes as far as a probation."""
        self.state = at(phase, has_good=has_good)
        if self.state.order is not None:
            self.state = replace(self.state, order=replace(self.state.order, strategy=strategy))
        installed = (self.state.good, self.state.previous, self.state.candidate, self.state.target)
        self.activatable: set[str] = {item.release for item in installed if item is not None}
        self.ever_good = self.state.good is not None

    def feed(self, event: Event) -> None:
        before, after = self.state, decide(self.state, event)
        assert after.generation >= before.generation, "the generation never falls"
        if isinstance(event, Proven) and after is not before and before.order is not None:
            self.activatable.add(before.order.release)
        if after.phase is Phase.COMMITTED and before.phase is not Phase.COMMITTED:
            assert after.good is not None
        self.ever_good = self.ever_good or after.good is not None
        self.state = after

    @rule(
        release=st.sampled_from(RELEASES),
        step=st.integers(-2, 3),
        rollback=st.booleans(),
        rollout=st.integers(0, 2),
        strategy=st.sampled_from(STRATEGIES),
    )
    def hub_orders(self, release: str, step: int, rollback: bool, rollout: int, strategy: Strategy) -> None:
        generation = max(0, self.state.generation + step)
        self.feed(Ordered(order(release, generation, f"r{rollout}", rollback=rollback, strategy=strategy)))

    @rule(step=st.integers(-2, 2))
    def hub_drops_the_model(self, step: int) -> None:
        self.feed(Unordered(max(0, self.state.generation + step)))

    @rule()
    def person_asks_back(self) -> None:
        self.feed(RollbackAsked("admin"))

    @rule()
    def runner_goes_on(self) -> None:
        if effect_of(self.state) is Effect.TAKE_NEXT:
            self.feed(NextTaken())
        elif self.state.order is not None and self.state.phase in HAPPY:
            self.feed(Attempted(self.state.order.generation))
            if self.state.phase is Phase.PROBATION and not is_last(self.state):
                self.feed(Stepped(self.state.order.generation, NOON, "On."))
            elif self.state.phase in HAPPY:
                self.feed(HAPPY[self.state.phase](self.state.order.generation))

    @rule()
    def effect_fails(self) -> None:
        if self.state.order is not None:
            self.feed(Failed(self.state.order.generation, "broken", "It broke."))

    @rule(kind=st.sampled_from([*LEGAL, Attempted]))
    def outcome_of_the_running_order_arrives(self, kind: type) -> None:
        if self.state.order is not None:
            of = self.state.order.generation
            self.feed(Proven(of, "{}") if kind is Proven else outcome(kind, of))

    @rule()
    def waiting_order_is_taken_up(self) -> None:
        self.feed(NextTaken())

    @rule(kind=st.sampled_from([*LEGAL, Attempted]), of=st.integers(0, 30))
    def something_arrives_out_of_turn(self, kind: type, of: int) -> None:
        if self.state.order is None or of != self.state.order.generation:
            self.feed(outcome(kind, of))

    @rule(cause=st.sampled_from(["SIGSEGV", "SIGKILL"]))
    def worker_dies(self, cause: str) -> None:
        if self.state.order is not None:
            self.feed(Crashed(self.state.order.generation, cause))

    @rule()
    def power_is_cut(self) -> None:
        self.state = decode_state(encode_state(self.state))

    @invariant()
    def only_verified_artifacts_ever_serve(self) -> None:
        now = serving(self.state)
        for item in (now.active, now.shadow, now.other):
            assert item is None or item.release in self.activatable

    @invariant()
    def something_always_serves_once_something_was_good(self) -> None:
        if self.ever_good:
            assert serving(self.state).active is not None

    @invariant()
    def what_serves_is_pinned(self) -> None:
        now = serving(self.state)
        for item in (now.active, now.shadow, now.other, self.state.good, self.state.factory):
            assert item is None or item.release in pinned(self.state)

    @invariant()
    def nothing_unproven_answers_everything_before_its_strategy_says_so(self) -> None:
        now = serving(self.state)
        if self.state.phase is Phase.PROBATION and self.state.good is not None and not is_last(self.state):
            assert now.active == self.state.good

    @invariant()
    def attempts_are_bounded(self) -> None:
        assert self.state.attempt <= ATTEMPTS.get(self.state.phase, 0)
        assert self.state.crashes <= machine.MAX_CRASHES

    @invariant()
    def waiting_order_is_newer_than_the_running_one(self) -> None:
        if self.state.queued is not None and self.state.order is not None:
            assert self.state.queued.generation > self.state.order.generation


Histories.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistories = Histories.TestCase


@given(st.lists(st.sampled_from(["go", "crash", "repeat"]), max_size=60))
@settings(max_examples=60, deadline=None)
def test_losing_the_hub_never_reverts_a_healthy_model(steps: list[str]) -> None:
    """Without a word from the hub, an update in progress still ends in COMMITTED, however often the box crashes."""
    state = at(Phase.RECEIVED)
    last: Event = Attempted(0)
    for step in steps:
        if step == "crash":
            state = decode_state(encode_state(state))
        elif step == "repeat":
            state = decide(state, last)
        elif state.phase in HAPPY and state.order is not None:
            last = HAPPY[state.phase](state.order.generation)
            state = decide(state, last)
        assert state.phase not in {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.REJECTED}
    assert onwards(state, Phase.COMMITTED).good == good("b")
