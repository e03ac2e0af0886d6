"""What the next worker begins with, where that is not what served last."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from landreeve_agent.serving.control import Plan, Route, Version
from landreeve_agent.serving.errors import LoadFailedError


@dataclass(frozen=True, slots=True)
class Afresh:
    """Routes that the next worker begins with; ``loaded`` ends when it has them, or with `LoadFailedError`."""

    routes: tuple[Route, ...]
    loaded: asyncio.Future[None]

    def tell(self, failed: LoadFailedError | None) -> None:
        if self.loaded.done():
            return
        if failed is None:
            self.loaded.set_result(None)
        else:
            self.loaded.set_exception(failed)


def simplest(routes: Sequence[Route], reason: str) -> tuple[Route, ...]:
    """The same models by the plan that least can go wrong with: on the CPU, without shadows and shares."""
    return tuple(Route(route.model, _on_cpu(route.active, reason)) for route in routes)


def _on_cpu(version: Version, reason: str) -> Version:
    return msgspec.structs.replace(version, plan=Plan(wanted=version.plan.wanted, reason=f"{reason}: default plan"))
