"""One look: since when, by whose clock and with what a version on probation is judged."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from landreeve.wire.strategy import Strategy
from landreeve_agent.serving.control import WorkerStatus
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update.probation import Fail, ProbationStats
from landreeve_agent.update.standing import Installed, Order, Phase, State
from landreeve_agent.update.stopwatch import Stopwatch
from landreeve_agent.update.vitals import Vitals
from landreeve_agent.update.watching import Watch

START = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
STEP = START + timedelta(hours=2)
PLAN = "{}"


@dataclass
class Source:
    """Evidence that remembers what it was asked for."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, model: str, release: str, since: str, **more: Any) -> ProbationStats:
        self.asked.append({"since": since, **more})
        return ProbationStats()

    async def rows_since(self, *_: object) -> int:
        return 0


@dataclass
class Box:
    """A clock that may jump, and time that really passes."""

    now: datetime = STEP + timedelta(minutes=1)
    uptime_s: float = 1000.0
    rss_mb: float = 100.0
    source: Source = field(default_factory=Source)

    async def look_at_worker(self) -> WorkerStatus:
        return WorkerStatus(pid=7, rss_mb=self.rss_mb, restarts=0, models=(), last_exit="")

    def watch(self) -> Watch:
        return Watch(
            self.source, Vitals(self.look_at_worker), lambda model, release: 0.25, lambda: self.now,
            Stopwatch(lambda: self.uptime_s),
        )  # fmt: skip


def state(kind: str, **changes: Any) -> State:
    shares = {"shares": (0.1, 0.5)} if kind == "canary" else {}
    order = Order("demo", "b", "vb", 10, "r", 2, 10, strategy=Strategy(kind=kind, **shares))  # type: ignore[arg-type]
    installed = {"good": Installed("a", "va", PLAN), "candidate": Installed("b", "vb", PLAN)}
    return State(
        "demo", Phase.PROBATION, 2, order, **installed, since=stamp(START), step=1, step_since=stamp(STEP), **changes
    )


@pytest.mark.parametrize(
    ("kind", "since"), [("canary", START), ("shadow", STEP)], ids=["shares go on", "another kind begins anew"]
)
async def test_steps_of_a_share_add_to_one_comparison_and_a_stage_of_another_kind_begins_with_none(
    kind: str, since: datetime
) -> None:
    box, told = Box(), state(kind)
    assert told.order is not None
    await box.watch().look(told, told.order)
    assert box.source.asked[0]["since"] == stamp(since)
    assert (box.source.asked[0]["good"], box.source.asked[0]["claimed_loss"]) == ("a", 0.25)


async def test_clock_that_jumps_makes_no_probation_older() -> None:
    box, told = Box(), state("shadow")
    assert told.order is not None
    watch = box.watch()
    await watch.look(told, told.order)
    box.uptime_s += 5
    box.now += timedelta(days=400)
    await watch.look(told, told.order)
    assert box.source.asked[1]["now"] - STEP == timedelta(minutes=1, seconds=5)


async def test_what_the_worker_shows_is_part_of_the_evidence() -> None:
    box, told = Box(), state("direct")
    assert told.order is not None
    watch = box.watch()
    await watch.look(told, told.order)
    box.rss_mb = 9000.0
    verdict, figures = await watch.look(told, told.order)
    assert isinstance(verdict, Fail)
    assert verdict.cause == "memory"
    assert figures["probation"]["memory_growth_mb"] == 8900.0
