"""The update of one model on one device, as a pure function from state and event to state.

    IDLE -> RECEIVED -> VERIFIED -> DOWNLOADING -> STAGED -> PREFLIGHT -> ACTIVATING -> PROBATION -> COMMITTED
      before ACTIVATING a failure is REJECTED and a newer order makes it CANCELLED: nothing had changed yet
      from ACTIVATING on a failure is ROLLING_BACK -> ROLLED_BACK | ROLLBACK_FAILED

Only the state survives a power cut, so what is to be done follows from the state alone (`effect_of`), and every
effect is safe to repeat. What serves follows from it too (`landreeve_agent.update.directing`). An event that does not
fit changes nothing, and so does the outcome of an effect that was started for an older order.

A newer order that arrives mid-update: before ACTIVATING the running one is cancelled; later it is first brought
to an end by returning to the last good version. Only the newest of several waiting orders is ever taken up.

The first model ever has nothing to return to: when it fails it is withdrawn (ROLLED_BACK without a good version)
and the site collects data again, as before it came.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from landreeve_agent.update.directing import Role, doing, is_last, stage_of
from landreeve_agent.update.standing import BEFORE_ACTIVATION, TERMINAL, Installed, Order, Phase, State

# How often the effect of a phase may begin, crashes included. A download mostly fails for reasons outside the
# release, so it gets many; a probation is begun anew with every start of the supervisor.
ATTEMPTS = {
    Phase.DOWNLOADING: 50,
    Phase.PREFLIGHT: 3,
    Phase.ACTIVATING: 3,
    Phase.PROBATION: 50,
    Phase.ROLLING_BACK: 5,
}
MAX_CRASHES = 5
# Failures that speak against the release itself: its digest goes into quarantine.
_NOT_THE_RELEASE = frozenset(
    {
        "superseded",
        "order_withdrawn",
        "local_cancel",
        "disk_full",
        "disk_failed",
        "deadline",
        "not_proven",
        "accelerator_lost",
        "not_in_order",
    }
)


@dataclass(frozen=True, slots=True)
class Ordered:
    """A believed document of the hub names this model."""

    order: Order


@dataclass(frozen=True, slots=True)
class Unordered:
    """A believed document of the hub no longer names this model."""

    generation: int


@dataclass(frozen=True, slots=True)
class Attempted:
    """The effect of this phase is about to begin (again)."""

    of: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The order may be carried out."""

    of: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The effect of this phase failed for good."""

    of: int
    cause: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Staged:
    """Every file of the release is on the disk and verified."""

    of: int


@dataclass(frozen=True, slots=True)
class Proceeded:
    """Nothing stands against going on."""

    of: int


@dataclass(frozen=True, slots=True)
class Proven:
    """The release reproduced its golden set on this box; ``plan`` is the best way to run it here."""

    of: int
    plan: str


@dataclass(frozen=True, slots=True)
class Activated:
    """The candidate answers requests since ``at``."""

    of: int
    at: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """The stage of the strategy has shown enough: the next one begins at ``at``."""

    of: int
    at: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Passed:
    """The candidate has proven itself on real traffic."""

    of: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """The worker died while the candidate was on probation. A ``dropped`` one is suspected of it and served no more,
    unless it is the version that answers: a worker that keeps dying goes on without shadows and shares."""

    of: int
    cause: str
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What a rollback returns to serves again."""

    of: int


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """Someone on the site asks for the version before."""

    actor: str


@dataclass(frozen=True, slots=True)
class NextTaken:
    """The waiting order is taken up."""


Outcome = (
    Attempted | Accepted | Failed | Staged | Proceeded | Proven | Activated | Stepped | Passed | Crashed | Restored
)  # fmt: skip
Event = Ordered | Unordered | RollbackAsked | NextTaken | Outcome


class Effect(StrEnum):
    """What is to be done in a state."""

    CHECK = "check"
    FETCH = "fetch"
    PROCEED = "proceed"
    PREFLIGHT = "preflight"
    ACTIVATE = "activate"
    WATCH = "watch"
    RESTORE = "restore"
    TAKE_NEXT = "take_next"


def decide(state: State, event: Event) -> State:
    """The state after the event; the same object when the event changes nothing."""
    match event:
        case Ordered(order):
            return _ordered(state, order)
        case Unordered(generation):
            return _unordered(state, generation)
        case RollbackAsked(actor):
            return _rollback_asked(state, actor)
        case NextTaken():
            return _next_taken(state)
        case _:
            if state.order is None or event.of != state.order.generation:
                return state
            return _outcome(state, state.order, event)


def effect_of(state: State) -> Effect | None:
    """What to do now; None when there is nothing until the next event."""
    match state.phase:
        case Phase.RECEIVED:
            return Effect.CHECK
        case Phase.VERIFIED | Phase.STAGED:
            return Effect.PROCEED
        case Phase.DOWNLOADING:
            return Effect.FETCH
        case Phase.PREFLIGHT:
            return Effect.PREFLIGHT
        case Phase.ACTIVATING:
            return Effect.ACTIVATE
        case Phase.PROBATION:
            return Effect.WATCH
        case Phase.ROLLING_BACK:
            return Effect.RESTORE
        case Phase.ROLLBACK_FAILED if state.queued is None:
            return Effect.RESTORE
        case (
            Phase.IDLE | Phase.COMMITTED | Phase.ROLLED_BACK | Phase.ROLLBACK_FAILED | Phase.REJECTED | Phase.CANCELLED
        ):
            return Effect.TAKE_NEXT if state.queued else None
        case _:
            assert_never(state.phase)


def quarantines(before: State, after: State) -> bool:
    """Whether this transition shows that the order's release is bad."""
    ended_badly = after.phase in {Phase.REJECTED, Phase.ROLLING_BACK} and before.phase is not after.phase
    judged = before.phase in {Phase.PREFLIGHT, Phase.ACTIVATING, Phase.PROBATION, Phase.COMMITTED}
    return ended_badly and judged and after.cause not in _NOT_THE_RELEASE


def _ordered(state: State, order: Order) -> State:
    if order.generation <= state.generation:
        return state
    newer = replace(state, generation=order.generation)
    if state.queued is not None:
        return newer if state.queued.same_as(order) else replace(newer, queued=order)
    if state.order is not None and state.order.same_as(order) and not _may_come_again(state):
        return newer
    if _nothing_changed_yet(state):
        return _cancel(newer, "superseded", f"A newer order names version {order.version}.", queued=order)
    if state.phase is Phase.ACTIVATING:
        return replace(newer, queued=order, abort="superseded")
    if state.phase is Phase.PROBATION:
        sentence = f"A newer order names version {order.version}; returning to the last good version first."
        return _roll_back(replace(newer, queued=order), "superseded", sentence)
    if state.phase is Phase.ROLLING_BACK:
        return replace(newer, queued=order)
    return _receive(newer, order)


def _nothing_changed_yet(state: State) -> bool:
    """An activation whose first attempt has not begun (it waits for a window) has touched nothing either."""
    return state.phase in BEFORE_ACTIVATION or (state.phase is Phase.ACTIVATING and state.attempt == 0)


def _may_come_again(state: State) -> bool:
    """An order cancelled by the hub may be given again; what a person on the site cancelled needs a new rollout."""
    return state.phase is Phase.CANCELLED and state.cause != "local_cancel"


def _unordered(state: State, generation: int) -> State:
    if generation <= state.generation:
        return state
    newer = replace(state, generation=generation, queued=None)
    sentence = "The hub no longer orders this model."
    if _nothing_changed_yet(state):
        return _cancel(newer, "order_withdrawn", sentence)
    if state.phase is Phase.ACTIVATING:
        return replace(newer, abort="order_withdrawn")
    if state.phase is Phase.PROBATION:
        return _roll_back(newer, "order_withdrawn", sentence)
    return newer


def _rollback_asked(state: State, actor: str) -> State:
    sentence = f"{actor} asked on the site for the version before."
    if _nothing_changed_yet(state):
        return _cancel(state, "local_cancel", f"{actor} cancelled the update on the site.")
    if state.phase is Phase.ACTIVATING:
        return replace(state, abort="local_rollback")
    if state.phase is Phase.PROBATION:
        return _roll_back(state, "local_rollback", sentence)
    if state.phase is Phase.COMMITTED and state.previous is not None:
        return replace(_roll_back(state, "local_rollback", sentence), target=state.previous)
    return state


def _next_taken(state: State) -> State:
    if state.queued is None or state.phase not in TERMINAL:
        return state
    return _receive(replace(state, queued=None), state.queued)


def _outcome(state: State, order: Order, event: Outcome) -> State:
    match event:
        case Attempted():
            return _attempted(state)
        case Accepted() if state.phase is Phase.RECEIVED:
            return _accepted(state, order)
        case Staged() if state.phase is Phase.DOWNLOADING:
            return _enter(state, Phase.STAGED, "staged", f"Version {order.version} is complete on the disk.")
        case Proceeded():
            return _proceeded(state, order)
        case Proven(_, plan) if state.phase is Phase.PREFLIGHT:
            candidate = Installed(order.release, order.version, plan)
            sentence = f"Version {order.version} reproduced its golden set on this box."
            return replace(_enter(state, Phase.ACTIVATING, "proven_here", sentence), candidate=candidate)
        case Activated(_, at) if state.phase is Phase.ACTIVATING:
            return _activated(state, order, at)
        case Stepped(_, at, sentence) if state.phase is Phase.PROBATION and not is_last(state):
            return replace(state, step=state.step + 1, step_since=at, attempt=0, cause="step", sentence=sentence)
        case Passed(_, sentence) if state.phase is Phase.PROBATION and is_last(state):
            return _commit(state, "probation_passed", sentence)
        case Crashed(_, cause, dropped) if state.phase is Phase.PROBATION:
            return _crashed(state, cause, dropped=dropped)
        case Restored() if state.phase in {Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED}:
            return _restored(state)
        case Failed(_, cause, sentence):
            return _failed(state, cause, sentence)
        case _:
            return state


def _attempted(state: State) -> State:
    limit = ATTEMPTS.get(state.phase)
    if limit is None:
        return state
    if state.attempt < limit:
        return replace(state, attempt=state.attempt + 1)
    sentence = f"{state.phase} was begun {limit} times without coming to an end."
    return _failed(state, "attempts_exhausted", sentence)


def _accepted(state: State, order: Order) -> State:
    if state.good is not None and state.good.release == order.release:
        sentence = f"Version {order.version} is installed and proven here already."
        return _enter(replace(state, candidate=None), Phase.COMMITTED, "already_installed", sentence)
    return _enter(state, Phase.VERIFIED, "verified", f"Both trust repositories vouch for version {order.version}.")


def _proceeded(state: State, order: Order) -> State:
    if state.phase is Phase.VERIFIED:
        return _enter(state, Phase.DOWNLOADING, "downloading", f"Version {order.version} is being fetched.")
    if state.phase is Phase.STAGED:
        sentence = f"Version {order.version} is tried out on this box, away from the traffic."
        return _enter(state, Phase.PREFLIGHT, "preflight", sentence)
    return state


def _activated(state: State, order: Order, at: str) -> State:
    if state.abort:
        return _roll_back(state, state.abort, "The order changed while the version was being activated.")
    if order.rollback:
        back = _commit(state, "ordered_back", f"The hub ordered the return to version {order.version}.")
        return replace(back, previous=None)  # nobody returns to what the hub led away from
    sentence = f"Version {order.version} is on probation: {doing(state)}."
    return replace(_enter(state, Phase.PROBATION, "activated", sentence), since=at, step_since=at, step=0, crashes=0)


def _crashed(state: State, cause: str, *, dropped: bool) -> State:
    crashes = state.crashes + 1
    limit = state.order.probation.max_crashes if state.order else MAX_CRASHES
    # Nobody asks it any more, so that it would be on probation to the last day, and die no further.
    over = dropped and stage_of(state).role is not Role.ANSWERS
    if crashes < limit and not over:
        return replace(state, crashes=crashes)
    sentence = f"The worker died {crashes} times while this version was on probation (last: {cause})."
    return _roll_back(replace(state, crashes=crashes), "worker_crashed", sentence)


def _failed(state: State, cause: str, sentence: str) -> State:
    if state.phase in BEFORE_ACTIVATION:
        return _enter(replace(state, candidate=None), Phase.REJECTED, cause, sentence)
    if state.phase in {Phase.ACTIVATING, Phase.PROBATION}:
        return _roll_back(state, cause, sentence)
    if state.phase is Phase.ROLLING_BACK:
        return _enter(state, Phase.ROLLBACK_FAILED, cause, sentence)
    return state


def _restored(state: State) -> State:
    back = state.target
    where = f"version {back.version} serves again" if back else "there is no earlier version: the site collects again"
    previous = None if back == state.previous else state.previous
    returned = replace(state, good=back, previous=previous, candidate=None, target=None)
    return _enter(returned, Phase.ROLLED_BACK, state.cause, f"{state.sentence.rstrip('.')}; {where}.")


def _receive(state: State, order: Order) -> State:
    sentence = f"The hub orders version {order.version}."
    back = state.target if state.phase is Phase.ROLLBACK_FAILED else state.good
    clean = replace(state, candidate=None, target=None, since="", step=0, step_since="", crashes=0)
    fresh = replace(clean, order=order, good=back)
    return _enter(fresh, Phase.RECEIVED, "ordered", sentence)


def _cancel(state: State, cause: str, sentence: str, queued: Order | None = None) -> State:
    return _enter(replace(state, candidate=None, queued=queued), Phase.CANCELLED, cause, sentence)


def _roll_back(state: State, cause: str, sentence: str) -> State:
    return _enter(replace(state, target=state.good), Phase.ROLLING_BACK, cause, sentence)


def _commit(state: State, cause: str, sentence: str) -> State:
    factory = state.factory or state.good or state.candidate
    proven = replace(state, good=state.candidate, previous=state.good, candidate=None, factory=factory)
    return _enter(proven, Phase.COMMITTED, cause, sentence)


def _enter(state: State, phase: Phase, cause: str, sentence: str) -> State:
    return replace(state, phase=phase, attempt=0, abort="", cause=cause, sentence=sentence)
