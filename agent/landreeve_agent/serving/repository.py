"""The model repository and statistics extensions of the Open Inference Protocol, over any transport.

Sources: Triton Inference Server, docs/protocol/extension_model_repository.md and extension_statistics.md. What there
is to load is what the supervisor routes: `load` and `unload` only switch that on and off, they bring nothing new.
"""

import time
from collections.abc import Iterator

import msgspec

from landreeve_agent.serving.control import Residence
from landreeve_agent.serving.errors import BadRequestError, LoadFailedError, NotReadyError
from landreeve_agent.serving.lanes import Lanes, residences
from landreeve_agent.serving.memory import Memory
from landreeve_agent.serving.metrics import Durations, Metrics
from landreeve_agent.serving.routes import Routes, Serving

READY, UNAVAILABLE = "READY", "UNAVAILABLE"


class Entry(msgspec.Struct, frozen=True):
    """One version in the index. A version that sleeps is ready: a request wakes it."""

    name: str
    version: str
    state: str
    reason: str


class Duration(msgspec.Struct, frozen=True):
    """How often something happened and how long it took together."""

    count: int = 0
    ns: int = 0


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """A model's totals since the worker started."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]
    batch_stats: tuple[()] = ()


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class Repository:
    """What the extension's calls do. Owned by the event loop."""

    def __init__(self, lanes: Lanes, routes: Routes, metrics: Metrics, memory: Memory) -> None:
        self._lanes = lanes
        self._routes = routes
        self._metrics = metrics
        self._memory = memory

    def index(self, *, ready: bool = False) -> list[Entry]:
        """Every version there is; with ``ready`` only those that would answer."""
        return [entry for entry in self._entries() if not ready or entry.state == READY]

    def _entries(self) -> Iterator[Entry]:
        for name, serving in sorted(self._routes.table.items()):
            for residence in residences(serving):
                state = READY if residence.state in {"awake", "asleep"} else UNAVAILABLE
                yield Entry(name, residence.version, state, residence.reason)

    async def load(self, model: str) -> None:
        """Answer for the model (again). `UnknownError`, `NotReadyError` with the reason."""
        try:
            await self._lanes.load(model)
        except LoadFailedError as error:
            raise NotReadyError(f"model {model!r} cannot be loaded: {error.sentence}") from error

    async def unload(self, model: str) -> None:
        """Answer for the model no more, until it is loaded or the supervisor wants another version. `UnknownError`."""
        await self._lanes.unload(model)

    def statistics(self, model: str | None = None) -> list[Statistics]:
        """Totals of one model or of all. `UnknownError`."""
        if model is not None:
            self._routes.serving(model)
        names = sorted(self._routes.table) if model is None else [model]
        return [self._statistics(name) for name in names]

    def exposition(self) -> str:
        """Prometheus lines of the models' plans and memory, and of the processes of their own."""
        lines = [
            "# HELP landreeve_model_memory_limit_bytes What all models together may take.",
            "# TYPE landreeve_model_memory_limit_bytes gauge",
            f"landreeve_model_memory_limit_bytes {self._memory.limit_bytes}",
        ]
        kinds = (("memory_bytes", "gauge", "Memory of a version that is awake."),
                 ("loads_total", "counter", "How often a version was loaded."),
                 ("restarts_total", "counter", "Unexpected ends of the version's own process."))  # fmt: skip
        rows = [(name, r) for name, serving in sorted(self._routes.table.items()) for r in residences(serving)]
        for kind, shape, words in kinds:
            lines += [f"# HELP landreeve_model_{kind} {words}", f"# TYPE landreeve_model_{kind} {shape}"]
            for name, r in rows:
                value = {"memory_bytes": _awake_bytes(r), "loads_total": r.loads, "restarts_total": r.restarts}[kind]
                lines.append(f'landreeve_model_{kind}{{model="{name}",version="{r.version}",role="{r.role}"}} {value}')
        return "\n".join([*lines, *self._plans()]) + "\n"

    def _plans(self) -> Iterator[str]:
        """What each loaded version runs with, as read back from its runtime."""
        yield "# HELP landreeve_model_plan The device and plan that a loaded version runs with."
        yield "# TYPE landreeve_model_plan gauge"
        for name, serving in sorted(self._routes.table.items()):
            for lane, residence in zip(serving.lanes(), residences(serving), strict=False):
                plan = lane.model.opened.plan
                yield (
                    f'landreeve_model_plan{{model="{name}",version="{residence.version}",role="{residence.role}",'
                    f'device="{plan.device}",backend="{plan.backend}",precision="{plan.precision}",'
                    f'threads="{plan.threads}",streams="{plan.streams}"}} 1'
                )

    def _statistics(self, model: str) -> Statistics:
        serving, counts = self._routes.table[model], self._metrics.of(model)
        stages = counts.stages
        return Statistics(
            name=model,
            version=serving.route.active.version,
            last_inference=_last_used_ms(serving),
            inference_count=counts.rows,
            execution_count=sum(counts.batches),
            inference_stats={
                "success": Duration(counts.requests, counts.total_us * 1000),
                "fail": Duration(counts.failed),
                "queue": _duration(stages["queue"]),
                "compute_input": _duration(stages["features"]),
                "compute_infer": _duration(stages["run"]),
                "compute_output": _duration(stages["encode"]),
            },
        )


def _awake_bytes(residence: Residence) -> int:
    return int(residence.memory_mb * 1e6) if residence.state == "awake" else 0


def _duration(durations: Durations) -> Duration:
    return Duration(sum(durations.counts), durations.total_ns)


def _last_used_ms(serving: Serving) -> int:
    """When the model ran last, in unix milliseconds; 0 for never."""
    used = [lane.model.resident.last_used for lane in serving.lanes() if lane.model.resident]
    last = max(used, default=float("-inf"))
    return 0 if last < 0 else int((time.time() - (time.monotonic() - last)) * 1000)


def wants_ready(body: bytes | memoryview) -> bool:
    """The index request's one member; `BadRequestError`."""
    if not body:
        return False
    try:
        return msgspec.json.decode(body, type=_IndexRequest).ready
    except msgspec.DecodeError as error:
        raise BadRequestError(f"repository index: {error}") from error
