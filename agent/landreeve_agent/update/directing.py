"""Who serves in each state, and the stages by which a new version takes over the traffic. Pure.

A strategy is a row of stages, gone through in PROBATION one after another; which one follows from the state alone, so
a box that lost its power comes back to the stage it was in. A first version has nobody to share with and answers at
once. Source of the kinds: `landreeve.wire.strategy`.
"""

from dataclasses import dataclass
from enum import StrEnum

from landreeve.wire.strategy import Strategy, TrialStage

from landreeve_agent.update.standing import FIRMWARE, TERMINAL, Installed, Phase, State


class Role(StrEnum):
    """What the candidate does in a stage."""

    ANSWERS = "answers"  # all requests; the last good version listens
    LISTENS = "listens"  # the last good version answers; its answers and the candidate's are compared
    SHARES = "shares"  # each answers a part
    STANDS_BY = "stands_by"  # loaded and warm, and asked nothing


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: the candidate's role, and its part of the traffic where it shares."""

    role: Role
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Serving:
    """Who answers for the model, who only listens, and who answers a ``share`` of the requests (0 keeps it loaded)
    chosen by the value of ``key``."""

    active: Installed | None
    shadow: Installed | None = None
    other: Installed | None = None
    share: float = 0.0
    key: str = ""


_ANSWERS = Stage(Role.ANSWERS, 1.0)


def stages(strategy: Strategy, *, first: bool = False) -> tuple[Stage, ...]:
    """The stages of a strategy; the last one ends in COMMITTED.

    >>> [stage.share for stage in stages(Strategy(kind="canary", shares=(0.1, 0.5, 1.0)))]
    [0.1, 0.5, 1.0]
    """
    if first:
        return (_ANSWERS,)
    match strategy.kind:
        case "shadow":
            return (Stage(Role.LISTENS), _ANSWERS)
        case "canary":
            return tuple(_ANSWERS if share >= 1 else Stage(Role.SHARES, share) for share in strategy.shares)
        case "ab":
            return (Stage(Role.SHARES, strategy.shares[0]),)
        case "blue_green":
            return (Stage(Role.STANDS_BY), _ANSWERS)
        case _:
            return (_ANSWERS,)


def stage_of(state: State) -> Stage:
    """The stage a version on probation is in."""
    row = _row(state)
    return row[min(state.step, len(row) - 1)]


def is_last(state: State) -> bool:
    """Whether the stage ends in COMMITTED."""
    return state.step >= len(_row(state)) - 1


def told(state: State) -> TrialStage:
    """The same, as the hub is told.

    >>> told(State("demo")).role
    'answers'
    """
    stage = stage_of(state)
    return TrialStage(role=stage.role.value, share=stage.share)


def doing(state: State) -> str:
    """What the candidate does in its stage, in words.

    >>> doing(State("demo"))
    'it answers all requests'
    """
    stage = stage_of(state)
    match stage.role:
        case Role.ANSWERS:
            return "it answers all requests"
        case Role.LISTENS:
            return "it listens, and its answers are compared"
        case Role.SHARES:
            return f"it answers {stage.share:.0%} of the requests"
        case Role.STANDS_BY:
            return "it is loaded and stands by"


def serving(state: State) -> Serving:
    """Who is to serve. Until ACTIVATING is carried out that is the last good version."""
    match state.phase:
        case Phase.PROBATION:
            return _on_probation(state)
        case Phase.ROLLING_BACK | Phase.ROLLBACK_FAILED:
            return Serving(state.target)
        case _:
            return Serving(state.good)


def to_activate(state: State) -> Serving:
    """Who serves once ACTIVATING has been carried out."""
    if state.order is not None and state.order.rollback:
        return Serving(state.candidate)
    return _on_probation(state)


def pinned(state: State) -> frozenset[str]:
    """Releases whose files must stay on the disk. Firmware that was written lies in its slot and needs none."""
    kept: tuple[Installed | None, ...] = (state.good, state.previous, state.candidate, state.target, state.factory)
    if state.order is not None and state.order.component == FIRMWARE:
        kept = (state.candidate,)
    orders = (state.order if state.phase not in TERMINAL else None, state.queued)
    return frozenset(item.release for item in (*kept, *orders) if item is not None)


def kept(state: State) -> tuple[str, ...]:
    """The same in order, as the hub is told."""
    return tuple(sorted(pinned(state)))


def _on_probation(state: State) -> Serving:
    new, good = state.candidate, state.good
    if good is None:
        return Serving(new)
    strategy = state.order.strategy if state.order else Strategy()
    stage = stage_of(state)
    match stage.role:
        case Role.LISTENS:
            return Serving(good, shadow=new)
        case Role.SHARES:
            return Serving(good, other=new, share=stage.share, key=strategy.key)
        case Role.STANDS_BY:
            return Serving(good, other=new)
        case Role.ANSWERS:
            return Serving(new, shadow=good)


def _row(state: State) -> tuple[Stage, ...]:
    strategy = state.order.strategy if state.order else Strategy()
    return stages(strategy, first=state.good is None)
