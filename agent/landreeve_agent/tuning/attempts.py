"""Trying plans on this box: each is opened, looked at, and run on the golden set; what becomes of it is kept.

Cheap questions come first, so that a hopeless plan costs two runs and not a golden set.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.manifest import Gates
from landreeve_models.samples import Golden

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.session import Array, Session, open_session
from landreeve_agent.tuning.choose import Timed
from landreeve_agent.tuning.gate import Verdict, judge
from landreeve_agent.tuning.measure import Stopwatch
from landreeve_agent.tuning.race import Samples
from landreeve_agent.tuning.report import FromChild, Trial, Trying
from landreeve_agent.tuning.weigh import Weight, peak_mb

HOPELESS = 3.0  # times the default plan's time
BEHIND = 2.0  # times the time of the best plan that has passed
_MOST_ROWS = 256
_CHUNK_MB = 48.0
Tell = Callable[[FromChild], None]


@dataclass(slots=True)
class Attempt:
    """A plan and how far it came. The session is kept only while the plan may still win."""

    plan: Plan
    stage: str = "opened"
    accepted: bool = False
    why: str = ""
    verdict: Verdict | None = None
    session: Session | None = None
    look_us: float = float("inf")
    samples: Samples = field(default_factory=Samples)
    timed: Timed | None = None
    weight: Weight | None = None

    def refuse(self, stage: str, why: str) -> None:
        """It falls here."""
        self.stage, self.accepted, self.why, self.session = stage, False, why, None

    def trial(self) -> Trial:
        """What is told of it."""
        timed, weight = self.timed, self.weight
        metric = self.verdict.metric if self.verdict else float("nan")
        return Trial(
            what=self.plan.name,
            plan=self.plan,
            accepted=self.accepted,
            why=self.why,
            metric=None if np.isnan(metric) else round(metric, 6),
            p50_us=timed.p50_us if timed else None,
            p95_us=timed.p95_us if timed else None,
            cpu_us=timed.cpu_us if timed else None,
            ratio=round(timed.ratio, 4) if timed else None,
            stage=self.stage,
            memory_mb=weight.memory_mb if weight and not weight.problem else None,
            cold_start_s=weight.cold_start_s if weight and not weight.problem else None,
        )


class Clock:
    """The time a preflight may take, in seconds."""

    def __init__(self, time_s: float) -> None:
        self._began = time.monotonic()
        self._time_s = time_s

    @property
    def spent_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._time_s - self.spent_s)

    def past(self, share: float) -> bool:
        """Whether more than this share of the time is spent."""
        return self.spent_s > share * self._time_s


class Attempts:
    """Every plan of one preflight, by name, the default first."""

    def __init__(
        self,
        folder: Path,
        work: Path,
        *,
        files: Files = PLAIN,
        golden: Golden,
        gates: Gates,
        watch: Stopwatch,
        skip: dict[str, str],
        tell: Tell,
    ) -> None:
        self.folder = folder
        self.work = work
        self.files = files
        self.golden = golden
        self.gates = gates
        self.watch = watch
        self._skip = skip
        self._tell = tell
        self.all: dict[str, Attempt] = {}

    def begin(self, what: str) -> str:
        """Tell of an optional step; why it is to be left out, or the empty text."""
        why = self._skip.get(what, "")
        if not why:
            self._tell(Trying(what=what, vital=False))
        return why

    def add(self, plan: Plan) -> Attempt:
        """The plan's attempt, from now on among all."""
        return self.all.setdefault(plan.name, Attempt(plan))

    @property
    def default(self) -> Attempt:
        """The default plan's."""
        return next(iter(self.all.values()))

    @property
    def passed(self) -> list[Attempt]:
        """Those that may win, the default first."""
        return [attempt for attempt in self.all.values() if attempt.accepted and attempt.session is not None]

    @property
    def best_look_us(self) -> float:
        """The shortest first look among them."""
        return min((attempt.look_us for attempt in self.passed), default=float("inf"))

    def path(self, plan: Plan) -> Path:
        """Where the plan's graph lies while plans are tried."""
        return self.work / plan.graph if plan.recipe else self.folder / plan.graph

    def open(self, plan: Plan) -> Attempt:
        """The plan's session; refused when it cannot be had as asked for."""
        attempt = self.add(plan)
        if why := self.begin(plan.name):
            attempt.refuse("opened", why)
            return attempt
        try:
            opened = open_session(plan, self.files.read(self.path(plan)))
            if opened.plan != plan:
                attempt.refuse("opened", opened.reason)
            else:
                attempt.session = opened.session
                attempt.look_us = self.watch.look(opened.session)
        except (OSError, LoadFailedError, RunFailedError) as error:
            attempt.refuse("opened", str(error))
        return attempt

    def consider(self, plan: Plan, *, patient: bool = False) -> Attempt:
        """Open a plan, look at it, run the golden set; ``patient`` skips the look (a device that was asked for)."""
        attempt = self.open(plan)
        if attempt.session is None:
            return attempt
        if why := "" if patient else self._hopeless(attempt):
            attempt.refuse("first look", why)
            return attempt
        self.prove(attempt)
        return attempt

    def prove(self, attempt: Attempt) -> None:
        """Run the whole golden set through the attempt's session and judge it."""
        if attempt.session is None:
            return
        attempt.stage = "golden set"
        try:
            outputs = outputs_of(attempt.session, self.golden)
        except RunFailedError as error:
            attempt.refuse("golden set", str(error))
            return
        attempt.verdict = judge(outputs, self.golden, self.gates, exact=attempt.plan.precision == "fp32")
        attempt.accepted, attempt.why = attempt.verdict.accepted, attempt.verdict.why
        if not attempt.accepted:
            attempt.session = None

    def _hopeless(self, attempt: Attempt) -> str:
        """Why the first look is enough, or the empty text. A bad look is taken again beside the one it is held
        against: a neighbour may have been busy."""
        default, best = self.default, min(self.passed, key=lambda a: a.look_us)
        for other, most, whose in ((default, HOPELESS, "the default plan"), (best, BEHIND, best.plan.name)):
            if attempt.look_us <= most * other.look_us or attempt.session is None or other.session is None:
                continue
            attempt.look_us = min(attempt.look_us, self.watch.look(attempt.session))
            other_us = max(other.look_us, self.watch.look(other.session))
            if attempt.look_us > most * other_us:
                return f"{attempt.look_us / other_us:.1f} times the time of {whose} at the first look"
        return ""


def outputs_of(session: Session, golden: Golden) -> list[Array]:
    """The graph's outputs for the whole golden set, computed in pieces that grow while memory does not."""
    pieces: list[list[Array]] = []
    first, rows = 0, 1
    while first < golden.rows:
        before = peak_mb()
        pieces.append(session.run(golden.part(first, first + rows)))
        first += rows
        if peak_mb() - before < _CHUNK_MB:
            rows = min(rows * 2, _MOST_ROWS)
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def trials_of(attempts: Iterable[Attempt]) -> list[Trial]:
    """What is told of them."""
    return [attempt.trial() for attempt in attempts]
