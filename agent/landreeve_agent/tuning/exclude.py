"""Which layers to leave at fp32 so that a quantised graph keeps the release's promise, and no more of them.

Each layer is first quantised alone: the error it then makes at the output is its sensitivity. The layers are ranked by
it, and a binary search finds how many of the worst must be left out until the gate holds. The same idea as NNCF's
accuracy control, but on the release's own gate, for every recipe, within a budget of time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from landreeve_models.samples import Golden

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.session import Array, open_session
from landreeve_agent.tuning.attempts import Attempt, Attempts, Clock
from landreeve_agent.tuning.quantise import Kitchen, NotQuantisedError
from landreeve_agent.tuning.recipes import Recipe, parse_recipe

PROBE_ROWS = 6
MOST_KEPT = 0.5  # with more than half of the layers left out nothing is won
_MIN_GROUPS = 6


@dataclass(frozen=True, slots=True)
class Ranked:
    """Groups of units, the most sensitive first, with the relative error each makes when quantised alone."""

    groups: tuple[frozenset[int], ...]
    errors: tuple[float, ...]


def rank(units: int, groups: int, error_of: Callable[[frozenset[int]], float]) -> Ranked:
    """Rank ``units`` in at most ``groups`` runs of neighbours by the error each makes alone. A failure counts as
    infinite. Pure in ``error_of``.

    >>> rank(4, 2, lambda unit: float(max(unit))).groups
    (frozenset({2, 3}), frozenset({0, 1}))
    """
    size = -(-units // max(1, min(groups, units)))
    made = [frozenset(range(first, min(first + size, units))) for first in range(0, units, size)]
    errors = [error_of(group) for group in made]
    order = sorted(range(len(made)), key=lambda i: -errors[i])
    return Ranked(tuple(made[i] for i in order), tuple(errors[i] for i in order))


def fewest(ranked: Ranked, most: int, passes: Callable[[frozenset[int]], bool]) -> frozenset[int] | None:
    """The units of the fewest worst groups that must be left out for ``passes`` to hold, at most ``most`` groups;
    None when even that does not help.

    >>> r = rank(8, 8, lambda unit: float(sum(unit)))
    >>> sorted(fewest(r, 4, lambda kept: {6, 7} <= kept))
    [6, 7]
    """

    def kept(count: int) -> frozenset[int]:
        return frozenset().union(*ranked.groups[:count])

    most = min(most, len(ranked.groups))
    if most < 1 or not passes(kept(most)):
        return None
    low, high = 0, most  # low fails (the whole graph has), high passes
    while high - low > 1:
        middle = (low + high) // 2
        if passes(kept(middle)):
            high = middle
        else:
            low = middle
    return kept(high)


class Exclusion:
    """Finds the layers to leave out of one release's quantised graphs."""

    def __init__(self, attempts: Attempts, kitchen: Kitchen, clock: Clock) -> None:
        self._attempts = attempts
        self._kitchen = kitchen
        self._clock = clock
        golden = attempts.golden
        rows = np.linspace(0, golden.rows - 1, min(PROBE_ROWS, golden.rows)).astype(int)
        self._probe = Golden(
            tuple(np.ascontiguousarray(array[rows]) for array in golden.inputs),
            tuple(array[rows] for array in golden.expected),
            golden.label[rows],
        )

    def rescue(self, failed: Attempt, until: float) -> Attempt | None:
        """The plan with as few layers at fp32 as its gate needs, or None. ``until`` is the share of the clock that may
        be spent; the search stops as soon as what is left of the gain is nothing."""
        kind = parse_recipe(failed.plan.recipe).kind
        units = len(self._kitchen.units(kind))
        if self._attempts.begin(f"which layers {failed.plan.name} cannot bear"):
            return None
        ranked = self._ranked(failed.plan, kind, units, until)
        found: dict[frozenset[int], Attempt] = {}

        def passes(kept: frozenset[int]) -> bool:
            if self._clock.past(until):
                return False
            found[kept] = attempt = self._try(failed.plan, Recipe(kind, kept))
            return attempt.accepted

        kept = fewest(ranked, int(len(ranked.groups) * MOST_KEPT), passes)
        for units_kept, attempt in found.items():
            if units_kept != kept and attempt.accepted:
                attempt.refuse("golden set", "passes, but leaves more layers at fp32 than its gate needs")
        if kept is None:
            failed.why += f"; {_hopeless(found.values())}"
            return None
        failed.why += f"; it holds with {len(kept)} of {units} layers left at fp32"
        return found[kept]

    def _ranked(self, plan: Plan, kind: str, units: int, until: float) -> Ranked:
        began = self._clock.spent_s
        everything = frozenset(range(units))
        self._error(plan, Recipe(kind, everything - {0}))
        once_s = max(self._clock.spent_s - began, 1e-3)
        affordable = int(self._clock.left_s * until / 2 / once_s)
        return rank(
            units, max(_MIN_GROUPS, affordable), lambda alone: self._error(plan, Recipe(kind, everything - alone))
        )

    def _error(self, plan: Plan, recipe: Recipe) -> float:
        """The relative error at the first output with only what the recipe does not keep quantised."""
        try:
            graph = self._kitchen.make(recipe)
            session = open_session(_by(plan, recipe), self._attempts.files.read(graph)).session
            outputs = session.run(self._probe.inputs)
            graph.unlink()
        except (NotQuantisedError, LoadFailedError, RunFailedError, OSError):
            return float("inf")
        return relative_error(outputs, self._probe.expected)

    def _try(self, plan: Plan, recipe: Recipe) -> Attempt:
        made = _by(plan, recipe)
        try:
            self._kitchen.make(recipe)
        except NotQuantisedError as error:
            attempt = self._attempts.add(made)
            attempt.refuse("made", str(error))
            return attempt
        return self._attempts.consider(made)


def _hopeless(tried: Iterable[Attempt]) -> str:
    """Why leaving out layers did not help."""
    stages = {attempt.stage for attempt in tried}
    if not stages:
        return "no time was left to leave out layers"
    if "first look" in stages:
        return "with the layers at fault left out it is too slow"
    return "nor does it hold with half of the layers left out"


def relative_error(outputs: Sequence[Array], expected: Sequence[Array]) -> float:
    """The first output's distance to the expected one by the latter's length; infinite when it is no number.

    >>> relative_error([np.array([3.0])], [np.array([2.0])])
    0.5
    """
    wanted = expected[0].astype(np.float64).reshape(-1)
    apart = float(np.linalg.norm(outputs[0].astype(np.float64).reshape(-1) - wanted))
    error = apart / max(float(np.linalg.norm(wanted)), 1e-12)
    return error if np.isfinite(error) else float("inf")


def _by(plan: Plan, recipe: Recipe) -> Plan:
    return msgspec.structs.replace(plan, recipe=recipe.text, graph=recipe.graph)
