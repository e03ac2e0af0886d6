"""One look at a version on probation: its evidence, judged, and what follows for its strategy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from landreeve_agent.store.stamps import moment
from landreeve_agent.update.directing import Role, is_last, stage_of
from landreeve_agent.update.ports import ProbationSource
from landreeve_agent.update.probation import Fail, Pass, ProbationStats, Wait, judge
from landreeve_agent.update.standing import Order, State
from landreeve_agent.update.stepping import Progress, Step, conclude
from landreeve_agent.update.stopwatch import Stopwatch
from landreeve_agent.update.vitals import Vitals


@dataclass(frozen=True)
class Watch:
    """``claimed_loss`` is what a release says of itself, asked for by model and release."""

    source: ProbationSource
    vitals: Vitals
    claimed_loss: Callable[[str, str], float | None]
    clock: Callable[[], datetime]
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    async def look(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        """What follows now, and the figures it rests on."""
        stage, now = stage_of(state), self.clock()
        stats = await self._evidence(state, order, now)
        began = state.step_since or state.since
        progress = Progress(
            await self.source.rows_since(order.model, order.release, began, stage.role),
            self.stopwatch.since(order.release, began, now),
            self.stopwatch.since(order.release, state.since, now),
        )
        verdict = conclude(stage, order.strategy, judge(stats, order.probation), progress, last=is_last(state))
        figures = {"stage": stage.role.value, "share": stage.share, "step": state.step}
        return verdict, {"probation": msgspec.to_builtins(stats), **figures}

    async def _evidence(self, state: State, order: Order, now: datetime) -> ProbationStats:
        role = stage_of(state).role
        # While it shares, every step adds to the same comparison; a stage of another kind begins with none.
        since = state.since if role is Role.SHARES else state.step_since or state.since
        lasted = timedelta(seconds=self.stopwatch.since(order.release, since, now))
        stats = await self.source(
            order.model, order.release, since,
            good=state.good.release if state.good else None,
            claimed_loss=self.claimed_loss(order.model, order.release),
            now=moment(since) + lasted,
            role=role,
        )  # fmt: skip
        return stats if state.candidate is None else await self.vitals.added(stats, order.model, state.candidate)
