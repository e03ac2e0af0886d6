"""Who answers for which model, and the walk of one request: run, shadow, capture, answer.

The table is replaced by one assignment, so a request sees the old routes or the new ones, never a mixture; what
the old ones had begun they finish. All requests of one run are put on file with one write, before any of them is
answered.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from landreeve_models.samples import derived_rows, predictions

from landreeve_agent.serving.batcher import STUCK_S, Arrays, Batcher, Job, Ran
from landreeve_agent.serving.capture import Line, Spool, SpoolError
from landreeve_agent.serving.control import ModelStatus, Route
from landreeve_agent.serving.errors import (
    BusyError,
    LateError,
    LoadFailedError,
    NotReadyError,
    RunFailedError,
    ServingError,
    UnknownError,
)
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.messages import Infer
from landreeve_agent.serving.metrics import Metrics
from landreeve_agent.serving.model import LoadedModel
from landreeve_agent.serving.session import Array
from landreeve_agent.serving.split import GOOD, NEW, Assigned, pick, point_of, unit_of

SHADOW_EXTRA_S = 0.05  # how much longer than the active model a slow shadow may hold an answer back


class Answered(msgspec.Struct, eq=False):
    """What a request is answered with: an array for each of the interface's outputs, an id for each row.

    ``whole`` are the outputs of its run, in which its own rows begin at ``first``; ``values`` are the plain numbers of
    a model with one float output for each row.
    """

    interface: Interface
    request: Infer
    ids: Sequence[str]
    whole: Arrays
    first: int
    values: list[float] | None

    @property
    def outputs(self) -> list[Array]:
        """The request's own rows of each output."""
        last = self.first + self.request.rows
        return [output[self.first : last] for output in self.whole]


Respond = Callable[[Answered | ServingError], None]


class Ask(Job):
    """A request on its way."""

    __slots__ = ("answer", "assigned", "began_ns", "lane", "request", "respond", "serving", "shadow")

    def __init__(  # noqa: PLR0917  what a request on its way is made of
        self, request: Infer, serving: "Serving", lane: "Lane", respond: Respond, began_ns: int,
        assigned: Assigned | None = None,
    ) -> None:  # fmt: skip
        # Its base's fields too, set here: one call less for each request.
        self.rows = request.rows
        self.priority = request.priority
        self.gone = False
        self.queued_ns = queued_ns = time.perf_counter_ns()
        self.late_ns = queued_ns + request.timeout_us * 1000 if request.timeout_us else 0
        self.request = request
        self.serving = serving
        self.lane = lane
        self.respond = respond
        self.began_ns = began_ns
        self.answer: Answered | ServingError | None = None
        self.shadow: list[float] | None = None
        self.assigned = assigned

    def leave(self) -> None:
        """The caller has gone: a run that has not begun is not begun."""
        self.gone = True


class Lane:
    """A loaded version with its queue. ``finish`` gets what has run."""

    def __init__(
        self, model: LoadedModel, finish: Callable[[Sequence[Ran]], None], alone: Callable[[], bool] = lambda: False,
        stuck_s: float = STUCK_S,
    ) -> None:  # fmt: skip
        self.model = model
        plan = model.opened.plan
        self.batcher = Batcher(
            self._features,
            model.run,
            finish,
            batch_rows=plan.batch,
            quick=model.quick,
            streams=plan.streams,
            alone=alone,
            stuck_s=stuck_s,
        )

    def _features(self, jobs: Sequence[Job]) -> list[Array]:
        """The rows of all jobs as the graph takes them."""
        requests: list[Infer] = [job.request for job in jobs]  # type: ignore[attr-defined]  # an Ask or a Follow
        interface = self.model.interface
        rows: list[Sequence[float]] = []
        for request in requests:
            # Ready features hold the ranks of the version the request was decoded for.
            if request.features is None or request.interface is not interface:
                break
            rows += request.features
        else:
            return [np.array(rows, np.float32)]
        feeds = [self.model.feeds(request) for request in requests]
        if len(feeds) == 1:
            return feeds[0]
        return [np.concatenate(parts) for parts in zip(*feeds, strict=True)]


@dataclass(frozen=True, slots=True)
class Serving:
    """One model's lanes, or why it has none. ``shares`` answer a part of the requests, as the route says."""

    route: Route
    active: Lane | None
    shadow: Lane | None
    problem: LoadFailedError | None = None
    shares: tuple[Lane, ...] = ()

    def status(self) -> ModelStatus:
        """What is wanted and what is used."""
        # Asked in this order: who is no longer in doubt has been opened elsewhere, if it had to be.
        resident = self.active.model.resident if self.active else None
        doubted = resident is not None and resident.doubted
        version, opened = self.route.active, self.active.model.as_now().opened if self.active else None
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
            doubted=doubted,
        )

    def lanes(self) -> list[Lane]:
        """All of them, each once: the active one may stand in for a share."""
        return list(dict.fromkeys(lane for lane in (self.active, self.shadow, *self.shares) if lane is not None))

    def lane(self, version: str | None, request: Infer) -> Lane:
        """Who answers this request; raises `NotReadyError` or `UnknownError`."""
        active = self.active
        if active is None:
            raise NotReadyError(f"model {self.route.model!r} is not ready: {self._why()}")
        if version is not None:
            return self.named(version)
        return self._assign(active, request)[0] if self.shares else active

    def choose(self, version: str | None, request: Infer) -> tuple[Lane, Assigned | None]:
        """The same, and how it was chosen where versions share the traffic and the request asks for none."""
        if version is not None or self.active is None or not self.shares:
            return self.lane(version, request), None
        return self._assign(self.active, request)

    def _assign(self, active: Lane, request: Infer) -> tuple[Lane, Assigned | None]:
        route = self.route
        key, by = request.assigned_by(route.key)
        unit = unit_of(route.model, key)
        chosen = pick([share.share for share in route.shares], point_of(unit))
        new = route.shares[max(chosen, 0)]
        if not new.share:  # it stands by: nothing is split
            return active, None
        if chosen < 0:
            return active, Assigned(unit, by, GOOD, new.version.release, new.share)
        return self.shares[chosen], Assigned(unit, by, NEW, route.active.release, new.share)

    def named(self, version: str) -> Lane:
        """The lane of an answering version; `UnknownError` lists what there is."""
        answering = [lane for lane in (self.active, *self.shares) if lane is not None]
        for lane in answering:
            if lane.model.version.version == version:
                return lane
        there = ", ".join(lane.model.version.version for lane in answering)
        asked = f"version {version[:40]!r} of model {self.route.model!r}"
        raise UnknownError(f"{asked} is not served here; there is: {there}")

    def _why(self) -> str:
        return self.problem.sentence if self.problem else ""


class Routes:
    """The table and the walk. Owned by the event loop. ``alone`` says whether there is only one caller now."""

    def __init__(self, spool: Spool, metrics: Metrics, *, stuck_s: float = STUCK_S) -> None:
        self._stuck_s = stuck_s
        self._spool = spool
        self._metrics = metrics
        self._table: Mapping[str, Serving] = {}
        self._plain: dict[str, tuple[Serving, Lane]] = {}  # those with one answering version: most requests' way
        self._encoder = msgspec.json.Encoder()
        self._prefix = f"{time.time_ns():x}"
        self._count = 0
        self.alone: Callable[[], bool] = lambda: False

    @property
    def table(self) -> Mapping[str, Serving]:
        """The routes that serve now."""
        return self._table

    def make_lane(self, model: LoadedModel) -> Lane:
        """A lane whose answers these routes give."""
        return Lane(model, self._finish, self._alone, self._stuck_s)

    def _alone(self) -> bool:
        return self.alone()

    def replace(self, table: Mapping[str, Serving]) -> None:
        """Serve by the new table from the next request on; retire lanes that only the old one had."""
        old, self._table = self._table, table
        self._plain = {
            name: (serving, serving.active)
            for name, serving in table.items()
            if serving.active is not None and not serving.shares
        }
        kept = {id(lane) for serving in table.values() for lane in serving.lanes()}
        for serving in old.values():
            for lane in serving.lanes():
                if id(lane) not in kept:
                    lane.batcher.retire()

    def serving(self, model: str, version: str | None = None) -> Serving:
        """Who serves that model, and that version of it; `UnknownError` lists what there is."""
        found = self._table.get(model)
        if found is None:
            known = ", ".join(sorted(self._table)) or "none yet"
            raise UnknownError(f"model {model[:80]!r} is not served here; there are: {known}")
        if version is not None and version != found.route.active.version:
            found.named(version)
        return found

    def interface(self, model: str, version: str | None) -> Interface:
        """What a request to that model must look like; raises what refuses it."""
        plain = self._plain.get(model) if version is None else None
        lane = self.serving(model).lane(version, _NOBODY) if plain is None else plain[1]
        return lane.model.interface

    def refused(self, model: str) -> None:
        """Count a request that could not be decoded."""
        self._metrics.of(model).refused += 1

    def submit(
        self, model: str, version: str | None, request: Infer, respond: Respond, began_ns: int = 0
    ) -> Callable[[], None]:
        """Answer one decoded request through ``respond``, at once or later; raises what refuses it.

        ``began_ns`` is when its bytes came, in monotonic nanoseconds. Call what is returned when the caller leaves.
        """
        if not request.id:
            self._count += 1
            request.id = f"{self._prefix}-{self._count:x}"
        plain = self._plain.get(model) if version is None else None
        if plain is None:
            serving = self.serving(model)
            lane, assigned = serving.choose(version, request)
        else:
            (serving, lane), assigned = plain, None
        ask = Ask(request, serving, lane, respond, began_ns or time.perf_counter_ns(), assigned)
        try:
            lane.batcher.submit(ask)
        except BusyError:
            self._metrics.of(model).busy += 1
            raise
        return ask.leave

    # --- after the run

    def _finish(self, done: Sequence[Ran]) -> None:
        """Capture and answer what has run; what has a shadow waits for it."""
        began = time.perf_counter_ns()
        asks: list[Ask] = []
        for ran in done:
            jobs: Sequence[Any] = ran.jobs
            if isinstance(jobs[0], Follow):
                self._followed(ran, jobs)
                continue
            _set_answers(ran, jobs)
            self._observe(ran, jobs)
            for ask in jobs:
                if ask.serving.shadow is None or not isinstance(ask.answer, Answered):
                    asks.append(ask)
                else:
                    self._ask_shadow(ask, ask.serving.shadow)
        if asks:
            self._answer(asks)
            counts = self._metrics.of(asks[0].serving.route.model)
            counts.stages["encode"].add((time.perf_counter_ns() - began) // len(asks), len(asks))

    def _observe(self, ran: Ran, asks: Sequence[Ask]) -> None:
        counts = self._metrics.of(asks[0].serving.route.model)
        stages, total = counts.stages, len(asks)
        if isinstance(ran.outputs, LateError):
            counts.late += sum(not ask.gone for ask in asks)  # a caller that left is no late one
            return
        stages["features"].add(ran.ready_ns - ran.taken_ns, total)
        stages["run"].add(ran.ended_ns - ran.ready_ns, total)
        rows = began = queued = 0
        for ask in asks:
            rows += ask.rows
            began += ask.began_ns
            queued += ask.queued_ns
        counts.batched(rows)
        # What joined one run counts by its mean: a histogram of each request would cost as much as its answer's JSON.
        stages["decode"].add((queued - began) // total, total)
        stages["queue"].add((ran.taken_ns * total - queued) // total, total)

    def _answer(self, asks: Sequence[Ask]) -> None:
        """Put the rows on file, then send every answer."""
        now_ns, now = time.perf_counter_ns(), time.time()
        buffer = bytearray()
        rows, times_us = 0, []
        for ask in asks:
            us = (now_ns - ask.began_ns) // 1000
            if type(ask.answer) is Answered:
                rows += ask.rows
                times_us.append(us)
            if not isinstance(ask.answer, LateError):
                self._write(buffer, ask, us, now)
        if buffer:
            try:
                self._spool.append(buffer)
            except SpoolError:
                # A full disk must not stop the site's predictions; status and metrics carry the count.
                self._metrics.capture_failures += 1
        counts = self._metrics.of(asks[0].serving.route.model)  # one queue, one model
        counts.answered(rows, times_us)
        for ask in asks:
            answer = ask.answer
            if type(answer) is not Answered:
                counts.failed += isinstance(answer, RunFailedError)
                answer = answer or RunFailedError("the run ended without an answer")
            if not ask.gone:
                ask.respond(answer)

    def _write(self, buffer: bytearray, ask: Ask, us: int, now: float) -> None:
        """Add a line for each row of a request."""
        request, version = ask.request, ask.lane.model.version
        answer = ask.answer
        if (
            ask.rows == 1
            and type(answer) is Answered
            and answer.values
            and ask.serving.shadow is None
            and ask.assigned is None
        ):
            model, of_model, release = version.model, version.version, version.release
            row = request.captured()[0]
            line = Line(answer.ids[0], request.ats[0], model, of_model, release, row, answer.values[0], us, now)
            self._encoder.encode_into(line, buffer, -1)
            buffer += b"\n"
            return
        failed = not isinstance(answer, Answered)
        values = [None] * ask.rows if not isinstance(answer, Answered) else _numbers(ask.lane.model, answer)
        shadow = ask.serving.shadow.model.version.release if ask.serving.shadow else None
        records = _records(ask.lane.model, request)
        chose = ask.assigned
        split = (chose.unit, chose.by, chose.arm, chose.against, chose.share) if chose is not None else ()
        for i, name in enumerate(request.ids or _row_ids(request)):
            line = Line(
                name,
                request.ats[i],
                version.model,
                version.version,
                version.release,
                records[i],
                values[i],
                us,
                now,
                ask.shadow[i] if ask.shadow else None,
                shadow,
                str(answer) if failed else None,
                *split,
            )
            self._encoder.encode_into(line, buffer, -1)
            buffer += b"\n"

    # --- the shadow

    def _ask_shadow(self, ask: Ask, shadow: Lane) -> None:
        """Let the shadow see the same rows; the answer waits for it, but not long."""
        follow = Follow(ask)
        if not shadow.model.quick:
            wait_s = SHADOW_EXTRA_S + 2e-9 * (time.perf_counter_ns() - ask.began_ns)
            follow.timer = asyncio.get_running_loop().call_later(wait_s, self._without, follow)
        try:
            shadow.batcher.submit(follow)
        except BusyError:
            self._without(follow)

    def _without(self, follow: "Follow") -> None:
        """The shadow takes too long: answer without it."""
        if follow.settle():
            self._metrics.of(follow.ask.serving.route.model).shadow_failures += 1
            self._answer([follow.ask])

    def _followed(self, ran: Ran, follows: "Sequence[Follow]") -> None:
        """The shadow has run, or failed."""
        offset = 0
        values = None
        if not isinstance(ran.outputs, ServingError):
            shadow = follows[0].ask.serving.shadow
            values = predictions(shadow.model.definition, ran.outputs) if shadow else None
        asks: list[Ask] = []
        for follow in follows:
            if follow.settle():
                if values is None:
                    self._metrics.of(follow.ask.serving.route.model).shadow_failures += 1
                else:
                    follow.ask.shadow = values[offset : offset + follow.rows]
                asks.append(follow.ask)
            offset += follow.rows
        if asks:
            self._answer(asks)


class Follow(Job):
    """The same request, for the shadow."""

    __slots__ = ("ask", "request", "timer")

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask.rows)
        self.ask = ask
        self.request = ask.request
        self.timer: asyncio.TimerHandle | None = None

    def settle(self) -> bool:
        """True the first time: the request is answered once, with the shadow's numbers or without them."""
        first, self.gone = not self.gone, True
        if self.timer is not None:
            self.timer.cancel()
        return first


# For asking a route what a request must look like, before there is one.
_NOBODY = Infer("", None, [], 0, {}, [], ())


def _set_answers(ran: Ran, asks: Sequence[Ask]) -> None:
    """Give each request its part of a run's outcome."""
    if isinstance(ran.outputs, ServingError):
        for ask in asks:
            ask.answer = ran.outputs
        return
    model = asks[0].lane.model
    values: list[float] | None = ran.outputs[0].tolist() if model.definition.tabular else None
    interface = model.interface
    offset = 0
    for ask in asks:
        last = offset + ask.rows
        ids = ask.request.ids or _row_ids(ask.request)
        part = None if values is None else values[offset:last]
        ask.answer = Answered(interface, ask.request, ids, ran.outputs, offset, part)
        offset = last


def _numbers(model: LoadedModel, answer: Answered) -> list[float]:
    """The one number of each row that is captured."""
    return predictions(model.definition, answer.outputs) if answer.values is None else answer.values


def _records(model: LoadedModel, request: Infer) -> Sequence[dict[str, Any]]:
    """What is captured of each row: its columns, or of tensors the numbers derived from them."""
    return request.captured() if model.definition.tabular else derived_rows(model.definition, request.tensors)


def _row_ids(request: Infer) -> list[str]:
    if request.rows == 1:
        return [request.id]
    return [f"{request.id}/{i}" for i in range(request.rows)]
