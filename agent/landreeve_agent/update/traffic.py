"""Who serves, told to the worker: the one place where routes are made.

Something always serves: what cannot be loaded is replaced by an older version that can, and a refusal by the
worker leaves its old routes in place.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from landreeve_agent.serving.control import Plan, Route, Share, Version
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.update.directing import Serving
from landreeve_agent.update.pointer import release_folder, remove_pointer, write_pointer
from landreeve_agent.update.ports import Worker
from landreeve_agent.update.standing import Installed

logger = logging.getLogger(__name__)


class Traffic:
    """The worker's routes, one for each model that serves."""

    def __init__(self, worker: Worker, models_dir: Path) -> None:
        self._worker = worker
        self._models_dir = models_dir
        self._routes: dict[str, Route] = {}
        self._lock = asyncio.Lock()

    async def direct(self, model: str, to: Serving) -> None:
        """Makes exactly that serve, then moves the pointer. `LoadFailedError`: all is as before.

        Once begun it goes on to its end even when the caller is cancelled: worker, routes and pointer must agree.
        """
        await asyncio.shield(asyncio.ensure_future(self._direct(model, to)))

    async def _direct(self, model: str, to: Serving) -> None:
        async with self._lock:
            route = self._route(model, to)
            if route != self._routes.get(model):
                await self._apply({**self._without(model), **({model: route} if route else {})})
            await asyncio.to_thread(self._point, model, to)

    async def restore(self, wanted: dict[str, list[Serving]]) -> dict[str, Serving]:
        """After a start: for each model the first of its choices that loads. Returns what serves."""
        async with self._lock:
            first = {model: choices[0] for model, choices in wanted.items() if choices}
            try:
                await self._apply(self._make(first))
            except LoadFailedError as error:
                logger.warning("not everything could be loaded (%s): trying one model after another", error)
                return await self._restore_one_by_one(wanted)
            return first

    async def _restore_one_by_one(self, wanted: dict[str, list[Serving]]) -> dict[str, Serving]:
        serving: dict[str, Serving] = {}
        for model, choices in wanted.items():
            found = await self._first_that_loads(model, choices)
            if found is not None:
                serving[model] = found
        return serving

    async def _first_that_loads(self, model: str, choices: Iterable[Serving]) -> Serving | None:
        for choice in choices:
            try:
                await self._apply({**self._routes, **self._make({model: choice})})
            except LoadFailedError as error:
                logger.warning("model %s: %s", model, error)
            else:
                return choice
        logger.error("model %s: no version on this box can be loaded", model)
        return None

    async def _apply(self, routes: dict[str, Route]) -> None:
        await self._worker.apply(tuple(routes[model] for model in sorted(routes)))
        self._routes = routes

    def _make(self, serving: dict[str, Serving]) -> dict[str, Route]:
        routes = {model: self._route(model, to) for model, to in serving.items()}
        return {model: route for model, route in routes.items() if route is not None}

    def _without(self, model: str) -> dict[str, Route]:
        return {name: route for name, route in self._routes.items() if name != model}

    def _route(self, model: str, to: Serving) -> Route | None:
        if to.active is None:
            return None
        shadow = self._version(model, to.shadow) if to.shadow else None
        shares = (Share(self._version(model, to.other), to.share),) if to.other else ()
        return Route(model, self._version(model, to.active), shadow, shares, to.key)

    def _version(self, model: str, installed: Installed) -> Version:
        folder = release_folder(self._models_dir, model, installed.release)
        plan = msgspec.json.decode(installed.plan, type=Plan)
        return Version(model, installed.version, installed.release, str(folder), plan)

    def _point(self, model: str, to: Serving) -> None:
        if to.active is None:
            remove_pointer(self._models_dir, model)
        else:
            write_pointer(self._models_dir, model, to.active, to.shadow.release if to.shadow else None)
