"""A version's session, which may be asleep: opened when it is asked, and closed when its memory is needed.

It also notices when an accelerator is lost after the load: a run that fails is followed by runs of the version's own
sample, and when these fail as well, the graph is opened on the CPU.
"""

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.errors import LoadFailedError, NotReadyError, RunFailedError
from landreeve_agent.serving.memory import Memory, Worth, estimate_bytes, private_bytes, trim
from landreeve_agent.serving.recorder import Noted, Tracks, untracked
from landreeve_agent.serving.remote import RemoteSession
from landreeve_agent.serving.session import Array, Opened, Session

WARM_RUNS = 5
INLINE_BELOW_S = 0.002  # a graph faster than this runs on the event loop: a thread handoff would cost more
LOST_TRIES = 3
LOST_PAUSE_S = 0.1

Open = Callable[[Plan], Opened]
OnMove = Callable[[bool], None]


class StillAsleepError(NotReadyError, RunFailedError):
    """The version could not be opened for this request; a later one may succeed."""


class Resident:
    """A `Session` that opens and closes the one behind it; ``prepare`` runs before an opening is measured.

    ``on_move(wait)`` is called, from any thread but the event loop's, after it woke, was opened anew elsewhere, or is
    about to sleep; ``wait`` asks to return only when nobody will run it on the event loop any more. ``tracks`` note
    what could end this process.
    """

    def __init__(
        self, name: str, plan: Plan, open_plan: Open, sample: Sequence[Array], *, graph_bytes: int, memory: Memory,
        prepare: Callable[[Plan], None] = lambda _plan: None, tracks: Tracks | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._tracks = tracks
        self._noted: Noted = tracks.runs if tracks else untracked
        self.worth = Worth.ACTIVE
        self.cost_bytes = 0
        self.last_used = self.woke = float("-inf")
        self.loads = 0
        self.reason = ""
        self.on_move: OnMove | None = None
        self._plan = plan
        self._open = open_plan
        self._prepare = prepare
        self._sample = sample
        self._graph_bytes = graph_bytes
        self._memory = memory
        self._session: Session | None = None
        self._opened = Opened(self, plan, plan.reason)
        self._best_s = float("inf")
        self._ends: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._closed = False
        self._doubted = threading.Lock()

    # --- the session's protocol

    @property
    def inputs(self) -> tuple[str, ...]:
        """The graph's inputs, once it was opened."""
        return self._ends[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs, once it was opened."""
        return self._ends[1]

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """One call; wakes the graph first when it sleeps, which blocks: on the event loop only run what is `quick`."""
        session = self._session
        if session is None:
            session = self._woken()
        self.last_used = time.monotonic()
        try:
            return self._noted(session.run, feeds)
        except RunFailedError as error:
            if self._session is not session and not self._closed:  # it was closed between the two: ask the next one
                return self._woken().run(feeds)
            self._doubt(str(error))
            raise

    # --- what it is

    @property
    def opened(self) -> Opened:
        """How it runs, or ran before it went to sleep."""
        return self._opened

    @property
    def awake(self) -> bool:
        """Whether it takes memory."""
        return self._session is not None

    @property
    def fits(self) -> bool:
        """Whether it could be woken without sending another to sleep."""
        needs = self.cost_bytes or estimate_bytes(self._graph_bytes, self._plan.backend)
        return self._memory.held_bytes + needs <= self._memory.limit_bytes

    @property
    def quick(self) -> bool:
        """Whether it may run on the event loop: on the CPU, in this process, in under 2 ms, and awake."""
        here = self._opened.plan.device == "cpu" and not isinstance(self._session, RemoteSession)
        return self.awake and here and self._best_s < INLINE_BELOW_S

    @property
    def doubted(self) -> bool:
        """Whether a run failed on its device and it is being found out if that is lost."""
        return self._doubted.locked()

    @property
    def remote(self) -> RemoteSession | None:
        """Its process, when it has one of its own."""
        return self._session if isinstance(self._session, RemoteSession) else None

    # --- waking and sleeping

    def wake(self) -> None:
        """Open and warm the graph, if it is not; `LoadFailedError`."""
        with self._memory.room(self, self._needs_bytes):
            if self._session is not None:
                return
            if self._closed:
                raise LoadFailedError("unloaded", f"{self.name} has been unloaded")
            self._open_session(self._plan)
        if self.on_move is not None:
            self.on_move(False)

    def sleep(self, reason: str) -> None:
        """Close the graph; the next run opens it again."""
        session = self._session
        if session is None:
            return
        self._best_s, best = float("inf"), self._best_s
        if self.on_move is not None and best < INLINE_BELOW_S:
            self.on_move(True)
        self._session, self.reason = None, reason
        if isinstance(session, RemoteSession):
            session.close()

    def close(self) -> None:
        """Close it for good."""
        self._closed = True
        self.sleep("unloaded")
        self._memory.leave(self)
        if self._tracks is not None:
            self._tracks.close()

    def _woken(self) -> Session:
        try:
            self.wake()
        except LoadFailedError as error:
            self.reason = error.sentence
            raise StillAsleepError(f"{self.name} could not be opened: {error.sentence}") from error
        session = self._session
        if session is None:
            raise StillAsleepError(f"{self.name} is unloaded, or its memory is needed more elsewhere; try again")
        return session

    def _needs_bytes(self) -> int:
        if self._session is not None:
            return 0
        if self.cost_bytes:
            return self.cost_bytes
        self._memory.require_possible(self.name, self._graph_bytes)
        return min(estimate_bytes(self._graph_bytes, self._plan.backend), self._memory.limit_bytes)

    def _open_session(self, plan: Plan) -> None:
        noted: Noted = self._tracks.loads if self._tracks else untracked
        noted(self._open_and_warm, plan)

    def _open_and_warm(self, plan: Plan) -> None:
        """Open, warm and measure. A NaN answer passes: whether the model is any good is preflight's question."""
        self._prepare(plan)
        trim()
        before = private_bytes()
        opened = self._open(plan)
        session = opened.session
        try:
            best = warm(session, self._sample, self.name)
            trim()  # what parsing took is no part of the model
            cost = _own_cost(session) or max(private_bytes() - before, self._graph_bytes)
            self._memory.require_possible(self.name, cost)
        except LoadFailedError:
            if isinstance(session, RemoteSession):
                session.close()
            raise
        self._opened = Opened(self, opened.plan, opened.reason)
        self._ends = (session.inputs, session.outputs)
        self.cost_bytes, self._best_s, self.loads, self.reason = cost, best, self.loads + 1, ""
        self.woke = time.monotonic()
        self._session = session

    # --- the device may go

    def _doubt(self, error: str) -> None:
        """A run failed on an accelerator: find out beside whether it was the request's fault or the device's."""
        if self._opened.plan.device != "cpu" and self._doubted.acquire(blocking=False):
            threading.Thread(target=self._ask_device, args=(error,), name="ask-device", daemon=True).start()

    def _ask_device(self, error: str) -> None:
        try:
            session = self._session
            for _ in range(LOST_TRIES):
                if session is None or self._noted(_runs, (session, self._sample)):
                    return
                time.sleep(LOST_PAUSE_S)
            self._leave_device(session, error)
        finally:
            self._doubted.release()

    def _leave_device(self, lost: Session | None, error: str) -> None:
        reason = f"{self._opened.plan.device.upper()} was lost while serving ({error[:200]})"
        precision = "fp32" if self._plan.precision in {"bf16", "fp16"} else self._plan.precision
        cpu = msgspec.structs.replace(
            self._plan, backend="onnxruntime", device="cpu", precision=precision, reason=reason
        )
        try:
            with self._memory.room(self, lambda: self.cost_bytes):
                self._open_session(cpu)
                self._plan = cpu
        except LoadFailedError as failed:
            self.reason = f"{reason}, and the CPU cannot take over: {failed.sentence}"
            return
        if isinstance(lost, RemoteSession):
            lost.close()
        if self.on_move is not None:
            self.on_move(False)


def warm(session: Session, sample: Sequence[Array], name: str) -> float:
    """Run the graph until it is warm; the fastest run in seconds. `LoadFailedError` when it fails or misses rows."""
    best = float("inf")
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        try:
            outputs = session.run(sample)
        except RunFailedError as error:
            raise LoadFailedError("run_failed", f"{name}: {error}") from error
        best = min(best, time.perf_counter() - began)
    for output in outputs:
        if output.shape[:1] != (1,):
            raise LoadFailedError("bad_graph", f"{name}: answers shape {list(output.shape)} for one row")
    return best


def _runs(asked: tuple[Session, Sequence[Array]]) -> bool:
    session, sample = asked
    try:
        session.run(sample)
    except RunFailedError:
        return False
    return True


def _own_cost(session: Session) -> int:
    return private_bytes(session.pid) if isinstance(session, RemoteSession) and session.pid else 0
