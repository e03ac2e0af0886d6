"""What the box is doing, as one document: made from the store and the living rooms, for pages, API and CLI."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from landreeve_models.definition import Definition
from sqlite_utils import Database as Tables

from landreeve_agent.console.verdict import Finding, Verdict, verdict_of
from landreeve_agent.rooms import Trouble
from landreeve_agent.serving.control import ModelStatus, WorkerStatus
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp
from landreeve_agent.telemetry.machine import Machine, MachineProbe
from landreeve_agent.telemetry.recent import Recent, Series
from landreeve_agent.telemetry.totals import ModelTotals, Totals, read_totals
from landreeve_agent.update.latest import latest_end
from landreeve_agent.update.standing import State

FRESH_S = 0.4
LATENCY_SPAN_S = 60.0
_EXPIRES_SOON_DAYS = 14
CLOCK_OFF_S = 60.0
_DISK_FULL_PERCENT = 92

HubState = Literal["in_sync", "waiting", "unreachable", "not_joined"]
Health = Literal["working", "data_changed", "probation", "collecting", "failing"]


class HubView(msgspec.Struct, frozen=True, kw_only=True):
    """The link to the hub: how many facts wait, when it was last heard of, bytes on the wire since the set-up.

    ``metadata_days`` are left until the signed metadata expires, ``clock`` says why nothing is installed by this clock,
    ``clock_ahead_s`` is this clock minus the hub's.
    """

    state: HubState = "not_joined"
    waiting: int = 0
    last_contact: str | None = None
    certificate_days: float | None = None
    metadata_days: float | None = None
    clock: str = ""
    clock_ahead_s: float | None = None
    problem: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """The inference process; ``pid`` is 0 while none is wanted or one is being restarted."""

    pid: int = 0
    rss_mb: float = 0.0
    restarts: int = 0
    ready: bool = False


class UpdateView(msgspec.Struct, frozen=True):
    """The latest transition of a model's update and its plain sentence; releases whose files stay; the version that is
    ordered and the one that a return would lead to; by when a probation ends at the latest (RFC 3339)."""

    state: str
    sentence: str
    keeps: tuple[str, ...] = ()
    offered: str = ""
    good: str = ""
    until: str = ""


def update_view(state: State, waiting: str, keeps: tuple[str, ...]) -> UpdateView:
    """What people see of a model's update; ``waiting`` is what it does or waits for just now."""
    offered, good = (one.version if one else "" for one in (state.order, state.good))
    return UpdateView(state.phase.value, waiting or state.sentence, keeps, offered, good, latest_end(state))


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this box."""

    name: str
    purpose: str = ""
    version: str = ""
    release: str = ""
    health: Health = "collecting"
    wanted: str = ""
    used: str = ""
    reason: str = ""
    precision: str = ""
    p95_ms: float | None = None
    today: int = 0
    total: int = 0
    samples: int = 0
    labels: int = 0
    update: UpdateView | None = None
    drift: str = ""


class Happened(msgspec.Struct, frozen=True):
    """One line of the log."""

    at: str
    name: str
    sentence: str
    severity: str


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole status document of a box."""

    site: str
    device: str
    version: str
    time: str
    verdict: Verdict
    predictions_today: int
    predictions_total: int
    errors_total: int
    repeats_total: int
    p50_ms: float | None
    p95_ms: float | None
    runs_on: str
    serving: str
    hub: HubView
    worker: WorkerView
    machine: Machine
    models: tuple[ModelView, ...]
    series: Series
    happened: tuple[Happened, ...]
    generation: int = 0
    document: str = ""


@dataclass(frozen=True)
class Stored:
    """What the status needs from the store, read in one moment."""

    totals: Totals
    drift: Mapping[str, tuple[str, str]]
    happened: tuple[Happened, ...]
    waiting: int
    generation: int
    document: str = ""


@dataclass(frozen=True)
class Active:
    """The release a model's pointer names."""

    version: str
    release: str


@dataclass(frozen=True)
class Living:
    """What the living rooms say of one model: its pointer, the worker's word, and its update."""

    active: Active | None
    running: ModelStatus | None
    update: UpdateView | None


@dataclass
class StatusSource:
    """Makes the status at most a few times a second, however many look.

    ``worker`` and ``hub`` ask the living rooms; ``active`` reads the pointers; ``findings`` adds what the
    supervisor knows (settings that cannot be used, a busy port).
    """

    site: Callable[[], str]
    device: Callable[[], str]
    version: str
    serving: str
    database: Database
    definitions: Mapping[str, Definition]
    recent: Recent
    machine: MachineProbe
    worker: Callable[[], Awaitable[WorkerStatus | None]]
    hub: Callable[[int], HubView]
    active: Callable[[], Mapping[str, Active]]
    updates: Callable[[], Mapping[str, UpdateView]]
    troubles: Callable[[], tuple[Trouble, ...]]
    findings: Callable[[], tuple[Finding, ...]] = field(default=lambda: ())
    _made: AgentStatus | None = None
    _made_at: float = -1e9
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def status(self) -> AgentStatus:
        """The status, at most 0.4 s old."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made_at > FRESH_S:
                self._made = await self._make(datetime.now(UTC))
                self._made_at = time.monotonic()
            return self._made

    @property
    def latest(self) -> AgentStatus | None:
        """The last status that was made, however old."""
        return self._made

    async def _make(self, now: datetime) -> AgentStatus:
        stored = await self.database.read(lambda tables: read_stored(tables, now))
        worker = await self.worker()
        models = self._models(stored, worker, now)
        hub = self.hub(stored.waiting)
        machine = self.machine.read()
        findings = (*self.findings(), *findings_of(models, hub, worker, machine, self.troubles()))
        now_s = now.timestamp()
        return AgentStatus(
            site=self.site(),
            device=self.device(),
            version=self.version,
            time=stamp(now),
            verdict=verdict_of(findings, _quiet(models, hub)),
            predictions_today=stored.totals.today,
            predictions_total=stored.totals.predictions,
            errors_total=stored.totals.errors,
            repeats_total=stored.totals.repeats,
            p50_ms=self.recent.quantile_ms(0.5, now_s=now_s, over_s=LATENCY_SPAN_S),
            p95_ms=self.recent.quantile_ms(0.95, now_s=now_s, over_s=LATENCY_SPAN_S),
            runs_on=_runs_on(models),
            serving=self.serving,
            hub=hub,
            worker=_worker_view(worker),
            machine=machine,
            models=models,
            series=self.recent.series(now_s),
            happened=stored.happened,
            generation=stored.generation,
            document=stored.document,
        )

    def _models(self, stored: Stored, worker: WorkerStatus | None, now: datetime) -> tuple[ModelView, ...]:
        running = {model.model: model for model in worker.models} if worker else {}
        active, updates = self.active(), self.updates()
        names = sorted({*self.definitions, *active, *stored.totals.models})
        pairs = ((name, Living(active.get(name), running.get(name), updates.get(name))) for name in names)
        return tuple(self._model(name, stored, living, now) for name, living in pairs)

    def _model(self, name: str, stored: Stored, living: Living, now: datetime) -> ModelView:
        totals = stored.totals.models.get(name, ModelTotals())
        definition = self.definitions.get(name)
        active, running = living.active, living.running
        verdict, sentence = stored.drift.get(name, ("", ""))
        return ModelView(
            name=name,
            purpose=definition.purpose if definition else "",
            version=active.version if active else "",
            release=active.release if active else "",
            health=health_of(living, verdict),
            wanted=running.wanted if running else "",
            used=running.used if running else "",
            reason=running.reason if running else "",
            precision=running.precision if running else "",
            p95_ms=self.recent.quantile_ms(0.95, now_s=now.timestamp(), over_s=LATENCY_SPAN_S, model=name),
            today=totals.today,
            total=totals.predictions,
            samples=totals.samples,
            labels=totals.labels,
            update=living.update,
            drift=sentence,
        )


def health_of(living: Living, drift: str) -> Health:
    """One word for a model: what matters most about it now."""
    running, phase = living.running, living.update.state if living.update else ""
    if living.active is None:
        return "collecting"
    if running is None or not running.ready or phase == "ROLLBACK_FAILED":
        return "failing"
    if phase == "PROBATION":
        return "probation"
    return "data_changed" if drift in {"drifted", "quality_lost"} else "working"


def doubts_of_time(hub: HubView) -> list[Finding]:
    """What keeps a box from installing though everything else works."""
    found = [Finding("warning", hub.clock, "/")] if hub.clock else []
    if hub.metadata_days is not None and hub.metadata_days <= 0 and not hub.clock:
        found.append(
            Finding("warning", "What the hub signed has expired: nothing new is installed until it signs anew.", "/")
        )
    if hub.clock_ahead_s is not None and abs(hub.clock_ahead_s) >= CLOCK_OFF_S:
        way = "ahead of" if hub.clock_ahead_s > 0 else "behind"
        text = f"This box's clock is {_span(abs(hub.clock_ahead_s))} {way} the hub's; one of them is wrong."
        found.append(Finding("warning", text, "/"))
    return found


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def findings_of(
    models: tuple[ModelView, ...],
    hub: HubView,
    worker: WorkerStatus | None,
    machine: Machine,
    troubles: tuple[Trouble, ...],
) -> tuple[Finding, ...]:
    """Everything that deserves a look."""
    found = [
        Finding("error", f"{trouble.room} does not work: {trouble.sentence}. It is tried again by itself.", "/")
        for trouble in troubles
    ]
    for model in models:
        if model.health == "failing":
            why = model.reason or (worker.last_exit if worker else "") or "the inference server is not running"
            found.append(Finding("error", f"{model.name} does not answer: {why}.", "/models"))
        elif model.health == "data_changed":
            found.append(Finding("warning", f"{model.name}: {model.drift}", "/models"))
        elif model.update and model.update.state in {"ROLLED_BACK", "REJECTED"}:
            found.append(Finding("warning", f"{model.name}: {model.update.sentence}", "/updates"))
    if hub.state == "unreachable":
        last = f"last heard of {hub.last_contact}" if hub.last_contact else "not reached since the start"
        found.append(Finding("warning", f"The hub is out of reach ({last}); {hub.waiting} facts wait for it.", "/"))
    if hub.certificate_days is not None and hub.certificate_days < _EXPIRES_SOON_DAYS:
        found.append(
            Finding("warning", f"The device's certificate ends in {hub.certificate_days:.0f} days: join again.", "/")
        )
    found += doubts_of_time(hub)
    if worker and worker.counts.capture_failures:
        found.append(
            Finding(
                "error",
                f"{worker.counts.capture_failures} requests were answered but their rows could not be kept, so they "
                "are missing from statistics and training; make room on the disk.",
                "/",
            )
        )
    if machine.disk_percent > _DISK_FULL_PERCENT:
        found.append(Finding("warning", f"The disk is {machine.disk_percent:.0f} % full.", "/"))
    return tuple(found)


def read_stored(tables: Tables, now: datetime) -> Stored:
    """Everything the status needs from the store."""
    windows = tables.conn.execute(
        "SELECT model, report FROM windows AS w WHERE window = (SELECT max(window) FROM windows WHERE model = w.model)"
    )
    happened = tables.conn.execute("SELECT at, name, sentence, severity FROM events ORDER BY n DESC LIMIT 20")
    return Stored(
        totals=read_totals(tables, now),
        drift={str(model): _drift(report) for model, report in windows},
        happened=tuple(Happened(*row) for row in happened),
        waiting=int(tables.conn.execute("SELECT facts FROM outbox_size").fetchone()[0]),
        generation=int(tables.conn.execute("SELECT coalesce(max(generation), 0) FROM updates").fetchone()[0]),
        document=digest_of_order(tables),
    )


def digest_of_order(tables: Tables) -> str:
    """The sha256 of the document that is obeyed (`landreeve_agent.update.runner`); empty before the first."""
    row = tables.conn.execute("SELECT value FROM meta WHERE key = 'desired.digest'").fetchone()
    return str(row[0]) if row else ""


def read_active(models: Path) -> dict[str, Active]:
    """The release each model's pointer names; a pointer that cannot be read counts as none."""
    found: dict[str, Active] = {}
    for pointer in sorted(models.glob("*/active.json")):
        try:
            document: dict[str, Any] = msgspec.json.decode(pointer.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            continue  # recovery names it; the model shows as collecting until then
        found[pointer.parent.name] = Active(str(document.get("version", "")), str(document.get("release", "")))
    return found


def _drift(report: str) -> tuple[str, str]:
    document = msgspec.json.decode(report, type=dict[str, Any])
    return str(document.get("verdict", "")), str(document.get("sentence", ""))


def _worker_view(worker: WorkerStatus | None) -> WorkerView:
    if worker is None:
        return WorkerView()
    ready = worker.pid > 0 and all(model.ready for model in worker.models)
    return WorkerView(pid=worker.pid, rss_mb=worker.rss_mb, restarts=worker.restarts, ready=ready)


def _runs_on(models: tuple[ModelView, ...]) -> str:
    return ", ".join(sorted({model.used for model in models if model.used}))


def _quiet(models: tuple[ModelView, ...], hub: HubView) -> str:
    if not models:
        return "There is no model yet. Next: landreeve model add FOLDER, or wait for the hub to send one."
    collecting = [model.name for model in models if model.health == "collecting"]
    if collecting:
        return f"Collecting data for {', '.join(collecting)}; there is no release of it yet."
    if hub.state == "not_joined":
        return "This box works alone. Next: landreeve join TOKEN, if there is a hub."
    return ""
