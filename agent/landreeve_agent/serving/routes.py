"""Who answers for which model, and the walk of one request: decode, run, shadow, capture, answer.

The table is replaced by one assignment, so a request sees the old routes or the new ones, never a mixture; what
the old ones had begun they finish.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from landreeve_models.samples import derived_rows, predictions

from landreeve_agent.serving.batcher import Arrays, Batcher
from landreeve_agent.serving.capture import Line, Spool, SpoolError
from landreeve_agent.serving.control import ModelStatus, Route
from landreeve_agent.serving.errors import (
    BusyError,
    LoadFailedError,
    NotReadyError,
    RunFailedError,
    ServingError,
    UnknownError,
)
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.metrics import Metrics, ModelCounts
from landreeve_agent.serving.model import LoadedModel
from landreeve_agent.serving.oip import Infer

SHADOW_EXTRA_S = 0.05  # how much longer than the active model a slow shadow may hold an answer back


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request is answered with: an array for each of the interface's outputs, an id for each row."""

    interface: Interface
    request: Infer
    ids: Sequence[str]
    outputs: Arrays


Respond = Callable[[Answered | ServingError], None]


class Lane:
    """A loaded version with its queue."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.batcher = Batcher(model.run, batch_rows=model.version.plan.batch, quick=model.quick)


@dataclass(frozen=True, slots=True)
class Serving:
    """One model's lanes, or why it has none."""

    route: Route
    active: Lane | None
    shadow: Lane | None
    problem: LoadFailedError | None = None

    def status(self) -> ModelStatus:
        """What is wanted and what is used."""
        version, opened = self.route.active, self.active.model.opened if self.active else None
        problem = self.problem.sentence if self.problem else ""
        return ModelStatus(
            model=version.model,
            version=version.version,
            release=version.release,
            wanted=version.plan.wanted,
            used=opened.used if opened else "",
            precision=opened.plan.precision if opened else "",
            reason=opened.reason if opened else problem,
            ready=self.active is not None,
            shadow=self.shadow.model.version.version if self.shadow else "",
        )


class Routes:
    """The table and the walk. Owned by the event loop."""

    def __init__(self, spool: Spool, metrics: Metrics) -> None:
        self._spool = spool
        self._metrics = metrics
        self._table: Mapping[str, Serving] = {}
        self._encode = msgspec.json.Encoder().encode
        self._prefix = f"{time.time_ns():x}"
        self._count = 0

    @property
    def table(self) -> Mapping[str, Serving]:
        """The routes that serve now."""
        return self._table

    def replace(self, table: Mapping[str, Serving]) -> None:
        """Serve by the new table from the next request on; retire lanes that only the old one had."""
        old, self._table = self._table, table
        kept = {id(lane) for serving in table.values() for lane in (serving.active, serving.shadow)}
        for serving in old.values():
            for lane in (serving.active, serving.shadow):
                if lane is not None and id(lane) not in kept:
                    lane.batcher.retire()

    def serving(self, model: str, version: str | None) -> Serving:
        """Who serves that model; `UnknownError` lists what there is."""
        found = self._table.get(model)
        if found is None:
            known = ", ".join(sorted(self._table)) or "none yet"
            raise UnknownError(f"model {model[:80]!r} is not served here; there are: {known}")
        serves = found.route.active.version
        if version is not None and version != serves:
            raise UnknownError(f"version {version[:40]!r} of model {model!r} is not served here; there is: {serves}")
        return found

    def interface(self, model: str, version: str | None) -> Interface:
        """What a request to that model must look like; raises what refuses it."""
        return _lane(self.serving(model, version)).model.interface

    def refused(self, model: str) -> None:
        """Count a request that could not be decoded."""
        self._metrics.of(model).refused += 1

    def submit(self, model: str, version: str | None, request: Infer, respond: Respond) -> None:
        """Answer one decoded request through ``respond``, at once or later; raises what refuses it."""
        began = time.perf_counter_ns()
        serving = self.serving(model, version)
        lane = _lane(serving)
        if not request.id:
            self._count += 1
            request.id = f"{self._prefix}-{self._count:x}"
        walk = _Walk(self, serving, lane, request, counts=self._metrics.of(model), began=began, respond=respond)
        lane.batcher.submit(lane.model.feeds(request), walk.answered)

    def capture(self, lines: list[Line]) -> None:
        """Put the rows on file; a failure is counted and shown, and costs no answer."""
        try:
            self._spool.append(b"".join(self._encode(line) + b"\n" for line in lines))
        except SpoolError:
            # A full disk must not stop the site's predictions; status and metrics carry the count.
            self._metrics.capture_failures += 1


def _lane(serving: Serving) -> Lane:
    if serving.active is None:
        why = serving.problem.sentence if serving.problem else ""
        raise NotReadyError(f"model {serving.route.model!r} is not ready: {why}")
    return serving.active


class _Walk:
    """One request between its run and its answer."""

    __slots__ = ("_began", "_counts", "_model", "_p", "_request", "_respond", "_routes", "_serving", "_timer", "_us")

    def __init__(
        self,
        routes: Routes,
        serving: Serving,
        lane: Lane,
        request: Infer,
        *,
        counts: ModelCounts,
        began: int,
        respond: Respond,
    ) -> None:
        self._routes = routes
        self._serving = serving
        self._model = lane.model
        self._request = request
        self._counts = counts
        self._began = began
        self._respond: Respond | None = respond
        self._p: Arrays | RunFailedError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._us = 0

    def answered(self, p: Arrays | RunFailedError) -> None:
        """The active version has answered; ask the shadow, if there is one."""
        self._p = p
        self._us = (time.perf_counter_ns() - self._began) // 1000
        shadow = self._serving.shadow
        if shadow is None:
            self._finish(None)
            return
        try:
            x = shadow.model.feeds(self._request)
        except Exception as error:  # noqa: BLE001 - whatever a shadow's pipeline raises, the answer must go out
            self.shadowed(RunFailedError(str(error)))
            return
        if not shadow.model.quick:
            wait_s = SHADOW_EXTRA_S + 2e-6 * self._us
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.shadowed, RunFailedError("too slow"))
        try:
            shadow.batcher.submit(x, self.shadowed)
        except BusyError as error:
            self.shadowed(RunFailedError(str(error)))

    def shadowed(self, p: Arrays | RunFailedError) -> None:
        """The shadow has answered, failed, or taken too long."""
        if self._respond is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(p, RunFailedError):
            self._counts.shadow_failures += 1
            self._finish(None)
        else:
            self._finish(p)

    def _finish(self, shadow: Arrays | None) -> None:
        respond, self._respond = self._respond, None
        p, request = self._p, self._request
        if respond is None or p is None:
            return
        ids = request.ids or _row_ids(request)
        self._routes.capture(self._lines(ids, p, shadow))
        if isinstance(p, RunFailedError):
            self._counts.failed += 1
            respond(p)
            return
        self._counts.answered(request.rows, self._us)
        respond(Answered(self._model.interface, request, ids, p))

    def _lines(self, ids: list[str], p: Arrays | RunFailedError, shadow: Arrays | None) -> list[Line]:
        version, definition = self._model.version, self._model.definition
        failed = isinstance(p, RunFailedError)
        values = [None] * len(ids) if isinstance(p, RunFailedError) else predictions(definition, p)
        shadows = [None] * len(ids) if shadow is None else predictions(definition, shadow)
        lane = self._serving.shadow
        rows = _rows(self._model, self._request)
        now = time.time()
        return [
            Line(
                id=ids[i],
                at=self._request.ats[i],
                model=version.model,
                version=version.version,
                release=version.release,
                row=rows[i],
                p=values[i],
                shadow=shadows[i],
                shadow_release=lane.model.version.release if lane else None,
                us=self._us,
                t=now,
                err=str(p) if failed else None,
            )
            for i in range(len(ids))
        ]


def _rows(model: LoadedModel, request: Infer) -> list[dict[str, Any]]:
    """What is captured of each row: its columns, or of tensors the numbers derived from them."""
    if not model.definition.tabular:
        return [*derived_rows(model.definition, request.tensors)]
    return [{name: value[i] for name, value in request.columns.items()} for i in range(request.rows)]


def _row_ids(request: Infer) -> list[str]:
    if request.rows == 1:
        return [request.id]
    return [f"{request.id}/{i}" for i in range(request.rows)]
