"""Which pairs of state and event the real machines pass, while histories are played.

``BOX`` are the (phase, event) pairs that change the state of the agent's machine, ``HUB`` the (state, command) and
(state, state after a decision) pairs of a rollout.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from landreeve_agent.update import machine
from landreeve_agent.update.standing import BEFORE_ACTIVATION, Phase
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.state import Refused, State

from tests.agent import test_update_machine
from tests.fleet import test_rollout_histories
from tests.fleet.whole import mistakes

P, S = Phase, State
Pair = tuple[str, str]
COUNTED = frozenset(machine.ATTEMPTS)
"""Phases whose tries are counted."""
_BOX: dict[str, frozenset[Phase]] = {
    "Ordered": frozenset(P),
    "Unordered": frozenset(P),
    "RollbackAsked": BEFORE_ACTIVATION | {P.ACTIVATING, P.PROBATION, P.COMMITTED},
    "NextTaken": frozenset({P.CANCELLED, P.ROLLED_BACK, P.ROLLBACK_FAILED}),
    "Attempted": COUNTED,
    "Accepted": frozenset({P.RECEIVED}),
    "Failed": BEFORE_ACTIVATION | {P.ACTIVATING, P.PROBATION, P.ROLLING_BACK},
    "Staged": frozenset({P.DOWNLOADING}),
    "Proceeded": frozenset({P.VERIFIED, P.STAGED}),
    "Proven": frozenset({P.PREFLIGHT}),
    "Activated": frozenset({P.ACTIVATING}),
    "Stepped": frozenset({P.PROBATION}),
    "Passed": frozenset({P.PROBATION}),
    "Crashed": frozenset({P.PROBATION}),
    "Restored": frozenset({P.ROLLING_BACK, P.ROLLBACK_FAILED}),
}
BOX: frozenset[Pair] = frozenset((str(phase), event) for event, phases in _BOX.items() for phase in phases)
"""Pairs of the agent's machine that change something."""

OBEYED: dict[str, frozenset[State]] = {
    "approve": frozenset({S.AWAITING_APPROVAL}),
    "pause": frozenset({S.RUNNING}),
    "resume": frozenset({S.PAUSED}),
    "next": frozenset({S.RUNNING}),
    "abort": frozenset({S.AWAITING_APPROVAL, S.RUNNING, S.PAUSED}),
    "rollback": frozenset({S.RUNNING, S.PAUSED, S.FINISHED}),
    "retry": frozenset({S.RUNNING, S.PAUSED, S.FINISHED}),
}
_MOVES: dict[State, frozenset[State]] = {
    S.RUNNING: frozenset({S.RUNNING, S.PAUSED, S.FINISHED, S.ROLLING_BACK, S.ROLLED_BACK, S.ABORTED}),
    S.PAUSED: frozenset({S.PAUSED, S.ROLLING_BACK, S.ROLLED_BACK, S.ABORTED}),
    S.FINISHED: frozenset({S.FINISHED, S.ROLLING_BACK, S.ROLLED_BACK}),
    S.ROLLING_BACK: frozenset({S.ROLLING_BACK, S.ROLLED_BACK}),
    S.AWAITING_APPROVAL: frozenset({S.AWAITING_APPROVAL}),
}
HUB: frozenset[Pair] = frozenset(
    {(str(state), verb) for verb, states in OBEYED.items() for state in states}
    | {(str(state), f"{verb} refused or again") for verb in OBEYED for state in set(S) - {S.DRAFT} - OBEYED[verb]}
    | {(str(before), f"-> {after}") for before, states in _MOVES.items() for after in states}
)
"""Pairs of the hub's machine: a command obeyed or not, and where a decision leads."""


class Visited:
    """How often each pair was seen."""

    def __init__(self) -> None:
        self.box: Counter[Pair] = Counter()
        self.hub: Counter[Pair] = Counter()

    def table(self) -> str:
        """For people: how many pairs of each machine, and those that were not seen."""
        lines = []
        for name, seen, all_ in (("box", self.box, BOX), ("hub", self.hub, HUB)):
            never = ", ".join(f"{state} {event}" for state, event in sorted(all_ - seen.keys()))
            lines.append(f"{name}: {len(all_ & seen.keys())} of {len(all_)} pairs; never: {never or 'none'}")
        return "\n".join(lines)


@contextmanager
def watched(visited: Visited) -> Iterator[Visited]:
    """Within it everything the machines decide is counted, also for the two Hypothesis machines."""
    box, obey, hub = machine.decide, commands.obey, mistakes.DECIDE

    def decide(state: Any, event: Any) -> Any:
        after = box(state, event)
        if after is not state:
            visited.box[str(state.phase), type(event).__name__] += 1
        return after

    def obeyed(rollout: Any, verb: str, asked: Any) -> Any:
        answer = obey(rollout, verb, asked)
        idle = isinstance(answer, Refused) or answer[0] is rollout
        visited.hub[str(rollout.state), f"{verb} refused or again" if idle else verb] += 1
        return answer

    def moved(rollout: Any, *args: Any) -> Any:
        decision = hub(rollout, *args)
        visited.hub[str(rollout.state), f"-> {decision.rollout.state}"] += 1
        return decision

    machine.decide, commands.obey, mistakes.DECIDE = decide, obeyed, moved
    test_update_machine.decide, test_rollout_histories.decide = decide, moved
    try:
        yield visited
    finally:
        machine.decide, commands.obey, mistakes.DECIDE = box, obey, hub
        test_update_machine.decide, test_rollout_histories.decide = box, hub
