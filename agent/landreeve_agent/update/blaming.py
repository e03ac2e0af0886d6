"""Which updates a death of the worker counts against. Pure.

One worker holds every model of a box, so that two releases may be on probation in it at once: the death of the one must
not take the other back, here or in the fleet.
"""

from collections.abc import Collection, Iterable

from landreeve_agent.serving.ending import Running
from landreeve_agent.update.standing import MODEL, Order, Phase, State

_NEW = frozenset({Phase.ACTIVATING, Phase.PROBATION})


def accused(states: Iterable[State], suspects: Collection[Running]) -> list[State]:
    """Those on probation that the end speaks against.

    Without suspects it is all of them. Else it is the suspects; when none of these is new, it is what lies below every
    model (the agent, the firmware) and was in every run, and no model.
    """
    states = list(states)
    on_probation = [state for state in states if state.phase is Phase.PROBATION and state.order is not None]
    if not suspects:
        return on_probation
    named = {state.model for state in states if state.phase in _NEW and _is_any(state.order, suspects)}
    if named:
        return [state for state in on_probation if state.model in named]
    return [state for state in on_probation if state.order is not None and state.order.component != MODEL]


def _is_any(order: Order | None, suspects: Collection[Running]) -> bool:
    return order is not None and any(_is(order, suspect) for suspect in suspects)


def _is(order: Order, suspect: Running) -> bool:
    """By the release; a version's own process is known by the version's name only."""
    if order.component != MODEL or order.model != suspect.model:
        return False
    return order.release == suspect.release if suspect.release else order.version == suspect.version
