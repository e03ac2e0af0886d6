"""How one kind of component is fetched, proven, activated, watched and restored; the machine is the same for all.

A kind knows no journal: the runner commits the state before it calls one of these, and each may be called again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from landreeve.wire.messages import PlanReport

from landreeve_agent.update.machine import Outcome
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.standing import Order, State
from landreeve_agent.update.stepping import Step

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Learnt:
    """What an effect found out besides its outcome: figures for its transition's report, and a fact of its own."""

    data: dict[str, Any] = field(default_factory=dict)
    plan: PlanReport | None = None


NOTHING = Learnt()


class CannotServeError(Exception):
    """What should serve cannot, for now; what served before goes on."""


class Effects(Protocol):
    """One kind. ``say`` tells people what is waited for."""

    async def fetch(self, state: State, order: Order, say: Say) -> Outcome:
        """Every file of the release onto the disk, verified."""

    async def prove(self, state: State, order: Order) -> tuple[Outcome, Learnt]:
        """Try it on this box, away from what serves."""

    async def activate(self, state: State, order: Order) -> Outcome | None:
        """Let it take over; None to be asked again."""

    async def look(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        """What its first time in use shows so far, and the figures behind it."""

    async def direct(self, state: State) -> None:
        """Let exactly that serve which the state says; `CannotServeError`."""

    async def clean(self, state: State) -> None:
        """Remove what nobody needs any more."""
