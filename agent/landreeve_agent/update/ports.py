"""What the update runner needs of other rooms, and no more."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from landreeve.trust.verdict import Believed, Rejected
from landreeve.wire.messages import SignedDesired

from landreeve_agent.serving.control import Plan, Route
from landreeve_agent.tuning.report import PreflightFailed, PreflightReport
from landreeve_agent.update.directing import Role
from landreeve_agent.update.probation import ProbationStats


class Verifier(Protocol):
    """`landreeve.trust.verify.DesiredVerifier`; one call at a time."""

    def verify(self, signed: SignedDesired, now: datetime) -> Believed | Rejected: ...


class Fetcher(Protocol):
    """`landreeve_agent.link.transfer.Fetcher`."""

    async def fetch(
        self,
        digest: str,
        size: int,
        block_digests: tuple[str, ...] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        bases: Sequence[str] = (),
        say: Callable[[str], None] = ...,
    ) -> Path: ...


class Blobs(Protocol):
    """`landreeve.blobs.store.BlobStore`."""

    def has(self, digest: str) -> bool: ...
    def read(self, digest: str) -> bytes: ...
    def taken_bytes(self, digest: str) -> int: ...
    def free_bytes(self) -> int: ...


class Worker(Protocol):
    """`landreeve_agent.serving.supervise.WorkerProcess`."""

    async def apply(self, routes: tuple[Route, ...]) -> None:
        """Serves exactly these, or raises `LoadFailedError` and goes on as before."""


class Preflight(Protocol):
    """`landreeve_agent.tuning.preflight.Preflight`."""

    async def run(
        self,
        folder: Path,
        *,
        current: Path | None = None,
        threads: int,
        deadline_s: float,
        hints: tuple[Plan, ...] = (),
    ) -> PreflightReport | PreflightFailed: ...


class ProbationSource(Protocol):
    """`landreeve_agent.update.evidence.Evidence`."""

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
    ) -> ProbationStats: ...
    async def rows_since(self, model: str, release: str, since: str, role: Role) -> int: ...
