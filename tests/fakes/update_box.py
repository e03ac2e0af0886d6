"""One device around the real update runner: real store, real blobs and files; the rest are fakes."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from landreeve.blobs.store import BlobStore
from landreeve.wire.codec import decode
from landreeve.wire.messages import Fact, PlanReport
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.update.machine import effect_of
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.runner import Options, Runner
from landreeve_agent.update.standing import TERMINAL, Phase, State
from sqlite_utils import Database as SqliteDatabase

from tests.fakes.update_ports import (
    FakeEvidence,
    FakeFetcher,
    FakePreflight,
    FakeVerifier,
    FakeWorker,
    Hub,
    MortalDatabase,
    Reaper,
    document,
    release,
)

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
A, B, C, D = (release(version) for version in "ABCD")
WORSE = ProbationStats(rows=100, invalid=3)
WAITING = ProbationStats(rows=1)
QUICK = Options(threads=1, probation_every_s=0.005, retry_s=0.0, restore_every_s=0.01, window_every_s=0.02)


class Box:
    """One device. `start` boots the agent, `kill` ends it as a power cut does: nothing is told, files stay."""

    def __init__(self, root: Path, choose: Callable[[str], bool] = lambda _step: False) -> None:
        self.root = root
        self.hub = Hub()
        for packed in (A, B, C, D):
            self.hub.add(packed)
        self.choose = choose
        self.desired = document(0)
        self.worker: FakeWorker

    async def start(self) -> None:
        self.reaper = Reaper(self.choose)
        self.database = MortalDatabase(self.root / "agent.db")
        self.database.reaper = self.reaper
        self.outbox = Outbox(self.database)
        self.worker = FakeWorker(self.hub, self.reaper)
        self.preflight = FakePreflight(self.hub, self.reaper)
        blobs = BlobStore(self.root / "blobs", margin_bytes=0)
        self.runner = Runner(
            self.database,
            self.outbox,
            FakeVerifier(self.hub),
            FakeFetcher(self.hub, blobs, self.reaper),
            blobs,
            self.root / "models",
            self.worker,
            self.preflight,
            FakeEvidence(self.hub, self.reaper),
            lambda: NOW,
            agent_version="0.1.0",
            options=QUICK,
        )
        self.life = asyncio.create_task(self._live())

    async def _live(self) -> None:
        await self.runner.recover()
        if self.desired.generation:
            await self.runner.on_desired(self.desired)  # the broker retains it
        await self.runner.run()

    async def kill(self) -> None:
        self.life.cancel()
        await asyncio.gather(self.life, return_exceptions=True)
        self.database.close()

    async def order(self, generation: int, *models: Any) -> None:
        self.desired = document(generation, *models)
        await self.runner.on_desired(self.desired)

    async def until(self, phase: Phase, generation: int = 0) -> State:
        async with asyncio.timeout(60):
            while True:
                state = self.state
                ended = state is not None and (phase not in TERMINAL or effect_of(state) is None)
                came = state is not None and state.order is not None and state.order.generation >= generation
                if state is not None and ended and came and state.phase is phase:
                    return state
                await asyncio.sleep(0.002)

    @property
    def state(self) -> State | None:
        view = self.runner.views.get("demo")
        return view.state if view else None

    async def settled(self) -> dict[str, tuple[str, str | None]]:
        """Who serves once everything is done."""
        async with asyncio.timeout(10):
            while busy := [drive for drive in self.runner._drives.values() if not drive.done()]:
                await asyncio.wait(busy)
        return self.worker.serves

    async def settled_after_start(self) -> dict[str, tuple[str, str | None]]:
        async with asyncio.timeout(10):
            while not self.runner._drives:  # noqa: ASYNC110 - the runner has no reason to announce its start
                await asyncio.sleep(0.002)
        return await self.settled()

    async def transitions(self) -> list[tuple[str, str, str]]:
        """(rollout, phase, cause) in order."""

        def read(db: SqliteDatabase) -> list[tuple[str, str, str]]:
            return list(db.conn.execute("SELECT rollout, state, cause FROM transitions ORDER BY n"))

        return await self.database.read(read)

    async def facts(self) -> list[Fact]:
        query = "SELECT body FROM outbox ORDER BY seq"
        rows = await self.database.read(lambda db: db.conn.execute(query).fetchall())
        return [decode(body, Fact) for (body,) in rows]


def plan_reports(facts: list[Fact]) -> list[PlanReport]:
    """The plans told among the facts."""
    return [fact.body for fact in facts if isinstance(fact.body, PlanReport)]
