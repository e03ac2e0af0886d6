"""The versions behind the routes: loaded, put to sleep, moved and retired, while requests go on.

Everything that takes time happens in threads; the table of routes changes on the event loop only, by one assignment.
"""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from landreeve.blobs.files import PLAIN, Files

from landreeve_agent.serving.control import Residence, Route, Share, Version
from landreeve_agent.serving.errors import LoadFailedError, UnknownError
from landreeve_agent.serving.memory import Memory, Worth, give_back
from landreeve_agent.serving.model import LoadedModel, load
from landreeve_agent.serving.recorder import Recorder
from landreeve_agent.serving.resident import Resident
from landreeve_agent.serving.routes import Lane, Routes, Serving

RETIRE_S = 0.5  # a request that has begun may still ask the shadow it saw
MOVE_S = 5.0
_POLL_S = 0.02
_STUCK_POLL_S = 1.0

OnLost = Callable[[Version, str, int], None]
# A version that follows as a shadow has a queue of its own: what only follows is never joined with what is asked.
Have = dict[tuple[Version, bool], Lane]


class Lanes:
    """Owned by the event loop. ``on_lost(version, cause, restarts)`` is called on it when a version's process ended;
    ``files`` reads the versions' folders; ``recorder`` notes what runs."""

    def __init__(
        self, routes: Routes, memory: Memory, on_lost: OnLost, files: Files = PLAIN, recorder: Recorder | None = None
    ) -> None:
        self._routes = routes
        self._memory = memory
        self._on_lost = on_lost
        self._files = files
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._unloaded: dict[str, Route] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: list[Lane] = []

    @property
    def stuck(self) -> tuple[str, ...]:
        """Versions, wanted or not any more, with a run that never comes back."""
        lanes = [lane for lane in (*self._lanes(), *self._leaving) if lane.batcher.lost]
        return tuple(sorted({f"{lane.model.version.model} {lane.model.version.version}" for lane in lanes}))

    async def apply(self, wanted: Sequence[Route], *, lenient: bool) -> None:
        """Load and warm what is missing while the old routes serve, then swap; `LoadFailedError`.

        A lenient apply, after a restart, refuses nothing and loads beside: callers reach every model at once, and
        wait for the one they asked.
        """
        old = {_place(s, lane): lane for s in self._routes.table.values() for lane in s.lanes()}
        have = dict(old)
        try:
            table = {route.model: await self._serving(route, have, lenient=lenient) for route in wanted}
        except LoadFailedError:
            self._retire_all([lane for place, lane in have.items() if place not in old])
            raise
        self._swap(table)
        if lenient:
            self._start(self._wake_all())

    # --- building

    async def _serving(self, route: Route, have: Have, *, lenient: bool) -> Serving:
        if self._unloaded.get(route.model) == route:
            return Serving(route, None, None, _by_hand(route.model))
        self._unloaded.pop(route.model, None)  # the supervisor wants something new: its routes are the truth
        try:
            active = await self._lane(route.active, have, Worth.ACTIVE, lenient=lenient)
            shares = [await self._share(share, active, have, lenient=lenient) for share in route.shares]
        except LoadFailedError as error:
            if not lenient:
                raise
            return Serving(route, None, None, error)
        if route.shadow is None:
            return Serving(route, active, None, None, tuple(shares))
        try:
            shadow = await self._lane(route.shadow, have, Worth.SHADOW, lenient=lenient)
        except LoadFailedError as error:
            # A shadow that does not load never hurts the answer.
            return Serving(route, active, None, error, tuple(shares))
        return Serving(route, active, shadow, None, tuple(shares))

    async def _share(self, share: Share, active: Lane, have: Have, *, lenient: bool) -> Lane:
        try:
            worth = Worth.ACTIVE if share.share > 0 else Worth.OLD
            return await self._lane(share.version, have, worth, lenient=lenient)
        except LoadFailedError:
            if not lenient:
                raise
            return active  # after a restart its callers are better answered by the active version than by nobody

    async def _lane(self, version: Version, have: Have, worth: Worth, *, lenient: bool) -> Lane:
        place = (version, worth is Worth.SHADOW)
        lane = have.get(place)
        if lane is None:
            other = have.get((version, worth is not Worth.SHADOW))
            model = other.model if other else await self._load(version, lenient=lenient)
            lane = have[place] = self._routes.make_lane(model.as_now())
        if lane.model.resident is not None:
            lane.model.resident.worth = worth
        return lane

    async def _load(self, version: Version, *, lenient: bool) -> LoadedModel:
        model = await asyncio.to_thread(
            load, version, files=self._files, checked=lenient, memory=self._memory, asleep=lenient,
            on_end=self._lost(version), recorder=self._recorder,
        )  # fmt: skip
        if model.resident is not None:
            model.resident.on_move = lambda wait: self._moved(version, wait=wait)
        return model

    def _lost(self, version: Version) -> Callable[[str, int], None]:
        def told(cause: str, restarts: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to tell
                self._loop.call_soon_threadsafe(self._on_lost, version, cause, restarts)

        return told

    # --- changing the table

    def _swap(self, table: dict[str, Serving]) -> None:
        old = {id(lane): lane for serving in self._routes.table.values() for lane in serving.lanes()}
        self._routes.replace(table)
        kept = {id(lane) for serving in table.values() for lane in serving.lanes()}
        self._retire_all([lane for number, lane in old.items() if number not in kept])

    def _retire_all(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            self._start(self._retire(lane))

    async def _retire(self, lane: Lane) -> None:
        resident = lane.model.resident
        if resident is not None and not self._serves(resident):
            resident.worth = Worth.OLD
        self._leaving.append(lane)
        await asyncio.sleep(RETIRE_S)
        while lane.batcher.busy:  # noqa: ASYNC110 - the hot path keeps no events for this
            await asyncio.sleep(_STUCK_POLL_S if lane.batcher.lost else _POLL_S)
        self._leaving.remove(lane)
        if resident is None or self._serves(resident):  # another lane of the same version goes on
            return
        await asyncio.to_thread(resident.close)
        await asyncio.to_thread(give_back)

    async def _wake_all(self) -> None:
        """Open what a restart left asleep, as far as there is room; what cannot be opened says so."""
        for worth in sorted(Worth, reverse=True):
            for lane in self._lanes():
                resident = lane.model.resident
                if resident is None or resident.worth is not worth or resident.awake or not resident.fits:
                    continue
                try:
                    await asyncio.to_thread(resident.wake)
                except LoadFailedError as error:
                    self._failed(lane.model.version, error)

    def _failed(self, version: Version, error: LoadFailedError) -> None:
        table = dict(self._routes.table)
        for name, serving in table.items():
            if serving.route.active == version:
                table[name] = Serving(serving.route, None, None, error)
            elif any(lane.model.version == version for lane in serving.lanes()):
                table[name] = _without(serving, version, error)
        self._swap(table)

    def _moved(self, version: Version, *, wait: bool) -> None:
        """Called from any thread but the loop's."""
        try:
            done = asyncio.run_coroutine_threadsafe(self._renew(version), self._loop)
        except RuntimeError:
            return  # the loop has ended
        if wait:
            with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
                done.result(MOVE_S)

    async def _renew(self, version: Version) -> None:
        """Give the version a lane by how it runs now; return when the old one has answered what waited in it."""
        olds = [lane for lane in self._lanes() if lane.model.version == version]
        for old in olds:
            new = self._routes.make_lane(old.model.as_now())
            self._routes.replace({name: _replaced(serving, old, new) for name, serving in self._routes.table.items()})
        while any(old.model.quick and old.batcher.waiting for old in olds):  # noqa: ASYNC110 - a turn of the loop
            await asyncio.sleep(0)

    def _lanes(self) -> list[Lane]:
        return [lane for serving in self._routes.table.values() for lane in serving.lanes()]

    def _serves(self, resident: Resident) -> bool:
        return any(lane.model.resident is resident for lane in self._lanes())

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- by hand (the repository extension)

    async def unload(self, model: str) -> None:
        """Answer for this model no more until `load`, or until the supervisor wants another version of it."""
        serving = self._known(model)
        self._unloaded[model] = serving.route
        self._swap({**self._routes.table, model: Serving(serving.route, None, None, _by_hand(model))})

    async def load(self, model: str) -> None:
        """Answer for this model: wake it, or load it after `unload` or a failure. `LoadFailedError`."""
        serving = self._known(model)
        self._unloaded.pop(model, None)
        if serving.active is None:
            fresh = await self._serving(serving.route, {}, lenient=False)
            self._swap({**self._routes.table, model: fresh})
        elif serving.active.model.resident is not None:
            await asyncio.to_thread(serving.active.model.resident.wake)

    def _known(self, model: str) -> Serving:
        found = self._routes.table.get(model)
        if found is None:
            known = ", ".join(sorted(self._routes.table)) or "none"
            raise UnknownError(f"model {model[:80]!r} is not on this box; there are: {known}")
        return found

    def close(self) -> None:
        """End the processes of isolated versions."""
        for lane in self._lanes():
            if lane.model.resident is not None and lane.model.resident.remote is not None:
                lane.model.resident.close()


def residences(serving: Serving) -> tuple[Residence, ...]:
    """What the versions of one model take of memory, and why one of them sleeps."""
    if serving.active is None:
        state = "unloaded" if serving.problem is not None and serving.problem.cause == "unloaded" else "failed"
        reason = serving.problem.sentence if serving.problem is not None else ""
        return (Residence(version=serving.route.active.version, role="active", state=state, reason=reason),)
    roles = {id(serving.active): "active", id(serving.shadow): "shadow"}
    return tuple(_residence(lane, roles.get(id(lane), "share")) for lane in serving.lanes())


def _residence(lane: Lane, role: str) -> Residence:
    resident = lane.model.resident
    version = lane.model.version.version
    if resident is None:
        return Residence(version=version, role=role, state="awake")
    return _of(resident, version, role)


def _of(resident: Resident, version: str, role: str) -> Residence:
    remote = resident.remote
    return Residence(
        version=version,
        role=role,
        state="awake" if resident.awake else "asleep",
        reason=resident.reason,
        memory_mb=round(resident.cost_bytes / 1e6, 1),
        loads=resident.loads,
        pid=remote.pid if remote else 0,
        restarts=remote.restarts if remote else 0,
        last_exit=remote.last_exit if remote else "",
    )


def _place(serving: Serving, lane: Lane) -> tuple[Version, bool]:
    return lane.model.version, lane is serving.shadow


def _by_hand(model: str) -> LoadFailedError:
    return LoadFailedError("unloaded", f"unloaded by hand; POST /v2/repository/models/{model}/load brings it back")


def _replaced(serving: Serving, old: Lane, new: Lane) -> Serving:
    """The same with another lane in the old one's places."""
    if all(lane is not old for lane in serving.lanes()):
        return serving
    return replace(
        serving,
        active=new if serving.active is old else serving.active,
        shadow=new if serving.shadow is old else serving.shadow,
        shares=tuple(new if lane is old else lane for lane in serving.shares),
    )


def _without(serving: Serving, version: Version, error: LoadFailedError) -> Serving:
    """The same without that version: its callers get the active one's answers."""
    shadow, active = serving.shadow, serving.active
    gone = shadow is not None and shadow.model.version == version
    shares = tuple(active if active and lane.model.version == version else lane for lane in serving.shares)
    return replace(serving, shadow=None if gone else shadow, shares=shares, problem=error)
