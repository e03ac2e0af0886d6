"""A model as a component: installed from blobs, proven by preflight, judged on the site's own traffic."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from landreeve.wire.plans import BoxFacts

from landreeve_agent.link.transfer import FetchFailedError
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.store.stamps import stamp
from landreeve_agent.tuning.report import PreflightFailed
from landreeve_agent.update import directing, machine, plans
from landreeve_agent.update.effects import CannotServeError, Learnt, Say
from landreeve_agent.update.install import Installer
from landreeve_agent.update.machine import Outcome
from landreeve_agent.update.ports import Preflight
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.standing import Order, State
from landreeve_agent.update.stepping import Step
from landreeve_agent.update.traffic import Traffic
from landreeve_agent.update.watching import Watch

logger = logging.getLogger(__name__)

# Perhaps not the version's doing; attempts are bounded.
_WORKER_GONE = {"worker_down", "worker_died"}


@dataclass(frozen=True)
class ModelEffects:
    """``threads`` is what inference may use on this box."""

    installer: Installer
    preflight: Preflight
    traffic: Traffic
    watch: Watch
    clock: Callable[[], datetime]
    box: Callable[[], Awaitable[BoxFacts]]
    threads: int
    preflight_deadline_s: float
    retry_s: float

    async def fetch(self, state: State, order: Order, say: Say) -> Outcome:
        """Manifest, config and layers, laid out as a folder; what changed may come as deltas to what is here."""

        def progress(done: int, whole: int) -> None:
            say(f"Fetching version {order.version}: {done // 1024} of {whole // 1024} KiB.")

        try:
            held = [item.release for item in (state.good, state.previous) if item is not None]
            await self.installer.install(order, progress, held, lambda why: say(f"Version {order.version}: {why}"))
        except FetchFailedError as error:
            return machine.Failed(order.generation, error.cause, error.sentence)
        return machine.Staged(order.generation)

    async def prove(self, state: State, order: Order) -> tuple[Outcome, Learnt]:
        """Quantise, measure and hold it to its golden set, in a child process."""
        current = self.installer.folder(state.model, state.good.release) if state.good else None
        hints = plans.taken(order.hints, self.threads)
        for fault in hints.refused:
            logger.warning("model %s: a hint of the hub is not tried: %s", order.model, fault)
        verdict = await self.preflight.run(
            self.installer.folder(order.model, order.release),
            current=current,
            threads=self.threads,
            deadline_s=self.preflight_deadline_s,
            hints=hints.plans,
        )
        if isinstance(verdict, PreflightFailed):
            return machine.Failed(order.generation, verdict.cause, verdict.sentence), Learnt()
        report = plans.report_of(order, verdict, await self.box(), hints)
        data = {"plan": verdict.plan.name, "preflight": report.sentence}
        return machine.Proven(order.generation, msgspec.json.encode(verdict.plan).decode()), Learnt(data, report)

    async def activate(self, state: State, order: Order) -> Outcome | None:
        """Let the worker serve it as the first stage of its strategy says."""
        try:
            await self.traffic.direct(state.model, directing.to_activate(state))
        except LoadFailedError as error:
            if error.cause in _WORKER_GONE:
                await asyncio.sleep(self.retry_s)
                return None
            return machine.Failed(order.generation, error.cause, error.sentence)
        except OSError as error:
            sentence = f"Which version serves cannot be written down: {error.strerror or error}."
            return machine.Failed(order.generation, "disk_failed", sentence)
        return machine.Activated(order.generation, stamp(self.clock()))

    async def look(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        """Judge what the traffic showed; losing the hub plays no part in it."""
        return await self.watch.look(state, order)

    async def direct(self, state: State) -> None:
        """Route the traffic as the state says."""
        try:
            await self.traffic.direct(state.model, directing.serving(state))
        except LoadFailedError as error:
            raise CannotServeError(error.sentence) from error
        except OSError as error:
            raise CannotServeError(f"which version serves cannot be written down: {error}") from error

    async def clean(self, state: State) -> None:
        """Remove the folders of releases nobody needs."""
        await asyncio.to_thread(self.installer.clean, state.model, directing.pinned(state))
