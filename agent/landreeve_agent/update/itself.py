"""The agent as a component of its own: another environment, another process, and a way back that needs neither.

ACTIVATING offers the new environment to the launcher and ends this process; the machine goes on in the new one, which
is on PROBATION until the hub has acknowledged something of it and the models serve. Unlike a model, a new agent must
reach the hub: one that cannot could never be mended from afar. The launcher leaves it when it dies or hangs
(`landreeve_agent.launch`); here it is left when it lives and does not reconnect.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from landreeve_agent.launch import slots as book
from landreeve_agent.launch.environment import CannotBuildError, Environments
from landreeve_agent.launch.slots import Slot
from landreeve_agent.link.transfer import FetchFailedError
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update import directing, machine
from landreeve_agent.update.effects import NOTHING, CannotServeError, Learnt, Say
from landreeve_agent.update.install import Installer
from landreeve_agent.update.machine import Outcome
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.standing import Order, Phase, State
from landreeve_agent.update.stepping import Step

logger = logging.getLogger(__name__)

AGENT = "agent"
BUILD_S = 600.0
CONFIRM_S = 900.0
_GRACE_S = 120.0
_LEAVING_S = 60.0


class Health(msgspec.Struct, frozen=True):
    """Whether the hub has acknowledged something since this process began, and whether the models serve."""

    connected: bool
    serving: bool
    problem: str = ""


@dataclass(frozen=True)
class AgentEffects:
    """``running`` is the release this process is of, empty for what the box came with; ``restart`` ends it in order so
    that the launcher starts anew. ``launched`` says that there is a launcher. ``began`` is when this process did, by
    ``monotonic``: a new agent is judged by its own life, since its clock may be set while it reaches for the hub."""

    installer: Installer
    environments: Environments
    slots: Path
    state: Path
    running: str
    launched: bool
    restart: Callable[[], None]
    health: Callable[[], Awaitable[Health]]
    clock: Callable[[], datetime]
    monotonic: Callable[[], float] = time.monotonic
    began: float = field(default_factory=time.monotonic)

    async def fetch(self, state: State, order: Order, say: Say) -> Outcome:
        """The wheels of the release."""
        if not self.launched:
            sentence = (
                "This agent was not started by landreeve-launch, so it cannot change itself: "
                "update its package or its container image instead."
            )
            return machine.Failed(order.generation, "not_launched", sentence)
        try:
            await self.installer.install(order, lambda done, whole: say(_fetching(order, done, whole)))
        except FetchFailedError as error:
            return machine.Failed(order.generation, error.cause, error.sentence)
        return machine.Staged(order.generation)

    async def prove(self, state: State, order: Order) -> tuple[Outcome, Learnt]:
        """Build the environment; the new agent tests itself on this box."""
        wheels = sorted(self.installer.folder(order.model, order.release).rglob("*.whl"))
        try:
            built = await self.environments.build(order.release, wheels, self.state, BUILD_S)
        except CannotBuildError as error:
            return machine.Failed(order.generation, error.cause, error.sentence), NOTHING
        plan = {"python": str(self.environments.python(order.release)), "agent": built.version}
        return machine.Proven(order.generation, msgspec.json.encode(plan).decode()), Learnt({"agent": built.version})

    async def activate(self, state: State, order: Order) -> Outcome | None:
        """Offer it to the launcher and go; in the new process this is asked again."""
        if self.running == order.release:
            return machine.Activated(order.generation, stamp(self.clock()))
        slots = await asyncio.to_thread(book.read, self.slots)
        if slots.failed is not None and slots.failed.release == order.release:
            return machine.Failed(order.generation, slots.failed.cause, slots.failed.sentence)
        slot = Slot(order.release, str(self.environments.python(order.release)))
        deadline_s = confirm_s(order) + _GRACE_S
        await asyncio.to_thread(book.write, self.slots, book.offered(slots, slot, deadline_s))
        await self._leave()
        return None

    async def look(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        """Whether the new agent reached the hub and serves what was served."""
        health = await self.health()
        figures = {"health": msgspec.to_builtins(health)}
        if self.running != order.release:  # the launcher has left it
            failed = (await asyncio.to_thread(book.read, self.slots)).failed
            known = failed is not None and failed.release == order.release
            cause, sentence = (failed.cause, failed.sentence) if known and failed else ("left", "It was left.")
            return Fail(cause, sentence), figures
        return judge(health, self.monotonic() - self.began, order), figures

    async def direct(self, state: State) -> None:
        """Let the agent run which the state says: nothing, or another process."""
        if state.phase is Phase.PROBATION or not self.launched:
            return
        active = directing.serving(state).active
        slots = await asyncio.to_thread(book.read, self.slots)
        # A store that was lost knows of no version; the launcher's own book still does.
        wanted = active.release if active else slots.good.release
        settled = self._settled(slots, wanted)
        if settled != slots:
            await asyncio.to_thread(book.write, self.slots, settled)
        if self.running != wanted:
            await self._leave()

    async def clean(self, state: State) -> None:
        """Remove environments and wheels that nobody returns to."""
        keep = directing.pinned(state) | ({self.running} if self.running else set())
        await asyncio.to_thread(self.environments.clean, frozenset(keep))
        await asyncio.to_thread(self.installer.clean, state.model, frozenset(keep))

    def _settled(self, slots: book.Slots, wanted: str) -> book.Slots:
        """What the launcher is to start from now on."""
        if slots.trying is not None and slots.trying.release == wanted:
            return book.confirmed(slots, wanted)
        # Why it was left stands in the journal by now; kept here it would speak against a later try.
        cleared = replace(slots, trying=None, starts=0, failed=None)
        if cleared.good.release == wanted:
            return cleared
        python = self.environments.python(wanted) if wanted else None
        if python is not None and not python.exists():
            raise CannotServeError(f"the environment of release {wanted[:12]} is gone")
        return replace(cleared, good=Slot(wanted, str(python or "")))

    async def _leave(self) -> None:
        logger.warning("the agent ends so that the launcher starts another one")
        self.restart()
        await asyncio.sleep(_LEAVING_S)


def confirm_s(order: Order) -> float:
    """How long the new agent may take to prove itself."""
    return min(order.probation.max_s, CONFIRM_S)


def judge(health: Health, elapsed_s: float, order: Order, what: str = "agent") -> Pass | Fail | Wait:
    """The verdict on a new agent, or on new firmware, which must show the same.

    >>> from landreeve_agent.update.standing import Order
    >>> judge(Health(True, True), 5, Order("landreeve-agent", "b", "v2", 1, "r", 1, 1))
    Pass(sentence='The hub heard of the new agent and the models serve.')
    """
    if health.connected and health.serving:
        if elapsed_s < order.probation.min_s:
            return Wait(f"The new {what} works; it is watched for {order.probation.min_s - elapsed_s:.0f} s more.")
        return Pass(f"The hub heard of the new {what} and the models serve.")
    missing = "it did not reach the hub" if not health.connected else "the models do not serve"
    why = f" ({health.problem})" if health.problem else ""
    if elapsed_s >= confirm_s(order):
        cause = "not_reconnected" if not health.connected else "models_down"
        return Fail(cause, f"In {elapsed_s:.0f} s of the new {what} {missing}{why}.")
    return Wait(f"The new {what} is on probation: so far {missing}{why}.")


def _fetching(order: Order, done: int, whole: int) -> str:
    return f"Fetching agent {order.version}: {done // 1024} of {whole // 1024} KiB."
