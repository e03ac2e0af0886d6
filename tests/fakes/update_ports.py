"""What an update touches, in memory, with a switch to kill the agent at any of its steps.

The fakes keep the promises of the real parts: a worker refuses a version whose files are not all there and keeps
its old routes, a fetch puts verified blobs into a real store, a kill leaves files and database as they are.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack, read_folder
from landreeve.release.manifest import BadReleaseError, Gates, Lineage, ReleaseConfig, Signature
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.wire.messages import Desired, DesiredModel, Probation, SignedDesired
from landreeve_agent.link.transfer import FetchFailedError
from landreeve_agent.serving.control import Plan, Route
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.store.database import Database
from landreeve_agent.tuning.report import PreflightFailed, PreflightReport
from landreeve_agent.update.directing import Role
from landreeve_agent.update.probation import ProbationStats
from sqlite_utils import Database as SqliteDatabase

from tests.fakes.graphs import graph_of

T = TypeVar("T")


class Reaper:
    """Kills the agent at chosen steps: the step never ends, and ``killed`` tells the test to drop everything."""

    def __init__(self, choose: Callable[[str], bool] = lambda _step: False) -> None:
        self.choose = choose
        self.killed = asyncio.Event()
        self.steps: list[str] = []

    async def step(self, name: str) -> None:
        self.steps.append(name)
        if self.choose(name):
            self.killed.set()
            await asyncio.Event().wait()


class MortalDatabase(Database):
    """The real store; the agent may die right after a commit, before it learns of it."""

    reaper: Reaper

    async def write(self, run: Callable[[SqliteDatabase], T]) -> T:
        result = await super().write(run)
        await self.reaper.step("commit")
        return result


def release(version: str, model: str = "demo", component: str = "model") -> Packed:
    """A release with real bytes, whose digest depends on its version."""
    config = ReleaseConfig(
        model=model,
        family="mlp",
        component=component,
        created="2026-11-23T06:00:00Z",
        signature=Signature(inputs=(), output="p"),
        gates=Gates(metrics={"log_loss": 0.5}),
        lineage=Lineage(),
    )
    return pack({"model.onnx": graph_of(version.encode() * 1000), "card.md": f"# {version}".encode()}, config)


def wanted(packed: Packed, version: str, rollout: str, **changes: Any) -> DesiredModel:
    """The order for that release."""
    return DesiredModel(
        model="demo",
        release=packed.digest,
        version=version,
        manifest_bytes=len(packed.manifest_bytes),
        rollout=rollout,
        probation=Probation(min_rows=10, min_labelled=0),
        **changes,
    )


def document(generation: int, *models: DesiredModel, device: str = "d-1") -> SignedDesired:
    """A document as the hub sends it; the fake verifier believes it without signatures."""
    desired = Desired(device=device, generation=generation, issued="2026-11-23T06:00:00Z", models=models)
    return SignedDesired(generation=generation, document=msgspec.json.encode(desired).decode(), director={}, targets={})


@dataclass
class Hub:
    """What exists outside the box: releases to fetch, and how each behaves once it runs."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    unapproved: set[str] = field(default_factory=set)
    preflight_fails: dict[str, str] = field(default_factory=dict)
    does_not_load: dict[str, str] = field(default_factory=dict)
    stats: dict[str, ProbationStats] = field(default_factory=dict)
    reachable: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.reachable.set()

    def add(self, packed: Packed, stats: ProbationStats | None = None) -> None:
        self.blobs |= packed.blobs | {packed.digest: packed.manifest_bytes}
        self.stats[packed.digest] = stats or ProbationStats(rows=100, distinct=50)


@dataclass
class FakeVerifier:
    hub: Hub

    def verify(self, signed: SignedDesired, now: datetime) -> Believed | Rejected:
        desired = msgspec.json.decode(signed.document, type=Desired)
        for model in desired.models:
            if model.release in self.hub.unapproved:
                return Rejected(Cause.NOT_APPROVED, f"Release {model.release[:12]} is not approved.")
        return Believed(desired, {m.release: m.manifest_bytes for m in desired.models}, signed.generation)


@dataclass
class FakeFetcher:
    hub: Hub
    blobs: BlobStore
    reaper: Reaper

    async def fetch(
        self,
        digest: str,
        size: int,
        block_digests: tuple[str, ...] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        bases: Sequence[str] = (),
        say: Callable[[str], None] = lambda _sentence: None,
    ) -> Path:
        await self.reaper.step("fetch begins")
        await self.hub.reachable.wait()
        data = self.hub.blobs.get(digest)
        if data is None or len(data) != size:
            raise FetchFailedError("corrupt_artifact", f"artifact {digest[:12]} cannot be had")
        self.blobs.put(data)
        if progress is not None:
            progress(1, 1)
        await self.reaper.step("fetch ends")
        return self.blobs.path(digest)


@dataclass
class FakeWorker:
    hub: Hub
    reaper: Reaper
    routes: tuple[Route, ...] = ()
    history: list[tuple[Route, ...]] = field(default_factory=list)

    async def apply(self, routes: tuple[Route, ...]) -> None:
        await self.reaper.step("apply begins")
        for route in routes:
            for version in (route.active, route.shadow, *(share.version for share in route.shares)):
                if version is not None:
                    self._load(version.release, Path(version.folder))
        self.routes = routes
        self.history.append(routes)
        await self.reaper.step("apply ends")

    def _load(self, release: str, folder: Path) -> None:
        if release in self.hub.does_not_load:
            raise LoadFailedError(self.hub.does_not_load[release], "this version cannot be loaded")
        try:
            found = read_folder(folder).digest
        except (BadReleaseError, OSError) as error:
            raise LoadFailedError("bad_release", str(error)) from error
        if found != release:
            raise LoadFailedError("bad_release", f"{folder} holds {found[:12]}, not {release[:12]}")

    @property
    def shares(self) -> dict[str, tuple[tuple[str, float], ...]]:
        """Who else answers, and which part, by model."""
        return {r.model: tuple((s.version.version, s.share) for s in r.shares) for r in self.routes}

    @property
    def serves(self) -> dict[str, tuple[str, str | None]]:
        """Version and shadow's version by model."""
        return {r.model: (r.active.version, r.shadow.version if r.shadow else None) for r in self.routes}


@dataclass
class FakePreflight:
    hub: Hub
    reaper: Reaper
    hints: list[tuple[Plan, ...]] = field(default_factory=list)

    async def run(
        self,
        folder: Path,
        *,
        current: Path | None = None,
        threads: int,
        deadline_s: float,
        hints: tuple[Plan, ...] = (),
    ) -> PreflightReport | PreflightFailed:
        await self.reaper.step("preflight begins")
        self.hints.append(hints)
        cause = self.hub.preflight_fails.get(read_folder(folder).digest)
        if cause is not None:
            return PreflightFailed(cause=cause, sentence="The golden set was not reproduced.")
        await self.reaper.step("preflight ends")
        return proof(threads)


@dataclass
class FakeEvidence:
    hub: Hub
    reaper: Reaper

    async def __call__(
        self,
        model: str,
        release: str,
        since: str,
        *,
        good: str | None,
        claimed_loss: float | None,
        now: datetime,
        role: Role,
    ) -> ProbationStats:
        await self.reaper.step("evidence")
        return self.hub.stats[release]

    async def rows_since(self, model: str, release: str, since: str, role: Role) -> int:
        return self.hub.stats[release].rows


def proof(threads: int) -> PreflightReport:
    """A passed preflight with the default plan."""
    return PreflightReport(
        plan=Plan(threads=threads),
        trials=(),
        metric="log_loss",
        metric_value=0.5,
        golden_rows=100,
        max_difference=0.0,
        rss_mb=50.0,
        seconds=0.1,
        fingerprint="box",
        box_class="box",
        sentence="The default plan is best here.",
    )
