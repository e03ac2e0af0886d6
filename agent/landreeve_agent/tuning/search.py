"""The search for a release's best plan on this box: every way that might pay is tried, those that pass race.

The order is that of cost: the release's own graph on every backend and at every native precision first; then the
graphs that have to be made, cheapest first; then splits of the threads, for the two that lead. Nothing wins that was
not run on the golden set, and nothing that does not certainly beat the default plan.
"""

from collections.abc import Sequence

import msgspec

from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.attempts import Attempt, Attempts, Clock
from landreeve_agent.tuning.candidates import Box, default_plan, made, neighbours, plain, shapes
from landreeve_agent.tuning.choose import Timed, choose, joined_rows
from landreeve_agent.tuning.exclude import Exclusion
from landreeve_agent.tuning.measure import time_batches, time_rounds
from landreeve_agent.tuning.quantise import Kitchen, NotQuantisedError
from landreeve_agent.tuning.race import STAGES, Samples, fallen, ratio_of
from landreeve_agent.tuning.recipes import BadRecipeError, parse_recipe
from landreeve_agent.tuning.report import Task

JOIN_ROWS = 32
BATCHES = (1, 4, 16, 64)
HINT_ROUNDS = 7
MAKE_UNTIL = 0.5  # share of the time after which no further graph is made
RESCUE_UNTIL = 0.7
RACE_UNTIL = 0.9
_GAIN = 0.95  # a rescue or a larger batch must promise this share of the time it competes with


class Search:
    """One search. ``attempts`` already holds the proven default plan."""

    def __init__(self, task: Task, box: Box, attempts: Attempts, kitchen: Kitchen, clock: Clock) -> None:
        self._task = task
        self._box = box
        self._attempts = attempts
        self._kitchen = kitchen
        self._clock = clock
        self._exclusion = Exclusion(attempts, kitchen, clock)
        self.left_out: dict[str, str] = {}

    # --- hints

    def hinted(self) -> Timed | None:
        """The best of the hinted plans that pass their gates and beat the default in a short paired test."""
        tried = [attempt for plan in self._task.hints if (attempt := self._hint(plan)) is not None]
        passed = [attempt for attempt in tried if attempt.accepted]
        if not passed:
            return None
        attempts = [self._attempts.default, *(a for a in passed if a is not self._attempts.default)]
        self._race(attempts, HINT_ROUNDS, self._task.budget_s / 3)
        winner = choose([self._timed(attempt) for attempt in attempts], self._task.wanted)
        if winner.plan.name == self._attempts.default.plan.name and len(attempts) > 1:
            return None
        return winner

    def _hint(self, hint: Plan) -> Attempt | None:
        plan = msgspec.structs.replace(hint, wanted=self._task.wanted, reason="", graph=Plan().graph)
        if plan.name == self._attempts.default.plan.name:
            return self._attempts.default
        if not plan.recipe:
            return self._attempts.consider(plan)
        try:
            recipe = parse_recipe(plan.recipe)
        except BadRecipeError as error:
            self._attempts.add(plan).refuse("left out", str(error))
            return None
        plan = msgspec.structs.replace(plan, graph=recipe.graph, precision=recipe.precision)
        return self._attempts.consider(plan) if self._make(plan) else None

    # --- the search itself

    def run(self) -> Timed:
        """The winner, which passed every gate."""
        self._try_plain()
        self._try_made()
        return self.decide()

    def _try_plain(self) -> None:
        for plan in plain(self._box, self._task.wanted):
            for shaped in shapes(plan, self._box.threads, self._task.objective):
                if shaped.name not in self._attempts.all:
                    self._consider(shaped)

    def _consider(self, plan: Plan) -> Attempt:
        """Try a plan; a device that was asked for and a stock recipe are judged however slow they are."""
        asked = plan.device == self._task.wanted != "cpu"
        return self._attempts.consider(plan, patient=asked or plan.recipe.startswith("stock-"))

    def _try_made(self) -> None:
        run_us = self._attempts.default.look_us
        chosen = made(self._box, self._kitchen.facts, run_us, self._task.wanted, exhaustive=self._task.exhaustive)
        for kind, why in chosen.left_out.items():
            self._leave_out(kind, why)
        for plan in chosen.plans:
            if self._clock.past(MAKE_UNTIL):
                self._attempts.add(plan).refuse("left out", "no time was left to make its graph")
            elif self._make(plan):
                self._try_shapes(plan)
        # Only now, against the best that passed whole: most of what failed is then not worth a long search for layers.
        failed = [
            a for a in self._attempts.all.values() if a.plan.recipe and a.stage == "golden set" and not a.accepted
        ]
        for attempt in sorted(failed, key=lambda a: a.look_us):
            self._rescue(attempt)

    def _leave_out(self, kind: str, why: str) -> None:
        recipe = parse_recipe(kind)
        plan = Plan(precision=recipe.precision, graph=recipe.graph, recipe=kind, wanted=self._task.wanted)
        self._attempts.add(plan).refuse("left out", why)

    def _make(self, plan: Plan) -> bool:
        why = self._attempts.begin(f"make {plan.recipe}")
        if not why:
            try:
                self._kitchen.make(parse_recipe(plan.recipe))
            except NotQuantisedError as error:
                why = str(error)
        if why:
            self._attempts.add(plan).refuse("made", why)
        return not why

    def _try_shapes(self, plan: Plan) -> None:
        """A made graph at each number of threads; the first failure of its gate is that of all."""
        for shaped in shapes(plan, self._box.threads, self._task.objective):
            attempt = self._consider(shaped)
            if attempt.stage == "golden set" and not attempt.accepted:
                return

    def _rescue(self, failed: Attempt) -> None:
        """Leave layers out until the gate holds, where that could still win."""
        if failed.plan.recipe.startswith("stock-") or not self._promising(failed):
            return
        rescued = self._exclusion.rescue(failed, RESCUE_UNTIL)
        if rescued is not None:
            for other in shapes(rescued.plan, self._box.threads, self._task.objective):
                if other.name not in self._attempts.all:
                    self._consider(other)

    def _promising(self, failed: Attempt) -> bool:
        """Whether a rescue could win: with layers left out the graph only becomes slower."""
        same = [a.look_us for a in self._attempts.passed if a.plan.threads == failed.plan.threads]
        if self._clock.past(RESCUE_UNTIL - 0.1):
            failed.why += "; no time was left to look for the layers at fault"
            return False
        if failed.look_us > _GAIN * min(same, default=float("inf")):
            failed.why += "; even so it is no faster than what has passed: no layers were left out to save it"
            return False
        return True

    # --- the race

    def decide(self) -> Timed:
        """Race those that passed, then their neighbours; the winner has run the whole golden set itself."""
        attempts = self._halve(_afresh(self._attempts.passed), STAGES[:-1])
        for leader in [a for a in attempts if a is not self._attempts.default][:2]:
            for plan in neighbours(leader.plan, self._box.threads, self._task.objective):
                if plan.name not in self._attempts.all and not self._clock.past(RACE_UNTIL):
                    self._consider(plan)
        fresh = [a for a in self._attempts.passed if a not in attempts and not a.samples.medians]
        if fresh:
            attempts = self._halve(_afresh([*attempts, *fresh]), STAGES[:1])
        self._attempts.begin("the last rounds")
        rounds = STAGES[1][0] + STAGES[2][0]
        self._race(attempts, rounds, self._task.budget_s / 3)
        for attempt in attempts:
            attempt.stage = f"round {len(STAGES)}"
        return choose([self._timed(attempt) for attempt in attempts], self._task.wanted)

    def _halve(self, attempts: Sequence[Attempt], stages: Sequence[tuple[int, int]]) -> list[Attempt]:
        """The attempts that survive the stages, the default first."""
        alive = list(attempts)
        for number, (rounds, most) in enumerate(stages, start=1):
            if len(alive) < 2:
                break
            self._attempts.begin(f"round {number}")
            self._race(alive, rounds, self._task.budget_s / 3)
            samples = {attempt.plan.name: attempt.samples for attempt in alive}
            dropped = fallen(samples, self._attempts.default.plan.name, most)
            for attempt in alive:
                self._drop(attempt, number, dropped)
            alive = [a for a in alive if a.session is not None]
        return alive

    def _drop(self, attempt: Attempt, number: int, dropped: dict[str, str]) -> None:
        attempt.stage = f"round {number}"
        why = dropped.get(attempt.plan.name)
        if why is None or (self._task.wanted not in ("auto", "cpu") and attempt.plan.device == self._task.wanted):
            return
        attempt.timed = self._timed(attempt)
        attempt.why = f"{why}; {attempt.why}" if attempt.why else why
        attempt.session = None  # it passed its gates, and lost

    def _race(self, attempts: Sequence[Attempt], rounds: int, budget_s: float) -> None:
        sessions = {a.plan: a.session for a in attempts if a.session is not None}
        samples = {a.plan.name: a.samples for a in attempts}
        time_rounds(self._attempts.watch, sessions, samples, rounds, budget_s)

    def _timed(self, attempt: Attempt) -> Timed:
        samples, base = attempt.samples, self._attempts.default.samples
        ratio = ratio_of(samples.medians, base.medians[: len(samples.medians)])
        attempt.timed = Timed(
            plan=attempt.plan,
            p50_us=round(_middle(samples.medians), 2),
            p95_us=round(sorted(samples.all_us)[int(len(samples.all_us) * 0.95)], 2),
            cpu_us=round(_middle(samples.cpu_us), 2),
            ratio=ratio.median,
            high=ratio.high,
        )
        return attempt.timed

    # --- how many rows to join

    def batch(self, winner: Attempt) -> int:
        """How many rows the winner joins: for latency where it saves a third, for throughput what gives most."""
        if winner.session is None:
            return 1
        inputs, budget_s = self._attempts.golden.inputs, self._task.budget_s / 10
        if self._task.objective == "latency":
            one, many = time_batches(winner.session, inputs, (1, JOIN_ROWS), budget_s)
            return joined_rows(one, many, JOIN_ROWS)
        times = time_batches(winner.session, inputs, BATCHES, budget_s)
        best = 0
        for i, size in enumerate(BATCHES):
            if times[i] / size < _GAIN * times[best] / BATCHES[best]:
                best = i
        return BATCHES[best]


def _afresh(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts without samples: rounds are paired, so all that race must begin together."""
    for attempt in attempts:
        attempt.samples = Samples()
    return list(attempts)


def _middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def is_default(plan: Plan) -> bool:
    """Whether a plan is the one every box can do."""
    return plan.name == default_plan().name
