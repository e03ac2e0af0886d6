"""What the worker itself shows of a version on probation: what it grew by, whether it still runs where it should."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import msgspec

from landreeve_agent.serving.control import ModelStatus, Plan, WorkerStatus
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.standing import Installed

Look = Callable[[], Awaitable[WorkerStatus | None]]


async def unseen() -> WorkerStatus | None:
    """No worker to look at."""
    return None


@dataclass
class Vitals:
    """``look`` asks the worker. Growth is counted from the first look at a release in one process: a worker that was
    started again begins anew, and its death is counted elsewhere."""

    look: Look
    _began_mb: dict[tuple[str, int], float] = field(default_factory=dict)

    async def added(self, stats: ProbationStats, model: str, candidate: Installed) -> ProbationStats:
        """The evidence, with memory and device; as it was where the worker cannot be asked now."""
        status = await self.look()
        if status is None or not status.pid:
            return stats
        return replace(
            stats,
            memory_growth_mb=self._growth(candidate.release, status),
            device_lost=device_lost(status, model, candidate),
            device_doubted=any(m.doubted for m in status.models if _is(m, model, candidate)),
        )

    def _growth(self, release: str, status: WorkerStatus) -> float:
        key = (release, status.pid)
        if key not in self._began_mb:  # what was counted in a former process is of no use any more
            kept = {known: mb for known, mb in self._began_mb.items() if known[1] == status.pid}
            self._began_mb = {**kept, key: status.rss_mb}
        return status.rss_mb - self._began_mb[key]


def device_lost(status: WorkerStatus, model: str, candidate: Installed) -> str:
    """Why the candidate no longer runs on the device it was proven on; empty while it does."""
    plan = msgspec.json.decode(candidate.plan, type=Plan)
    served = next((m for m in status.models if _is(m, model, candidate)), None)
    if plan.device == "cpu" or served is None or not served.ready or not served.used:
        return ""
    if served.used.startswith(plan.device.upper()):
        return ""
    why = f": {served.reason}" if served.reason else ""
    return f"It was proven on the {plan.device.upper()} and now runs on {served.used}{why}."


def _is(served: ModelStatus, model: str, candidate: Installed) -> bool:
    return served.model == model and served.release == candidate.release
