"""The facts a box reports about itself: one birth a start, one row of metrics an interval."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from landreeve.wire import ordering, schedule, strategy
from landreeve.wire.messages import Birth, Event, Metrics
from sqlite_utils import Database as Tables

from landreeve_agent.link.meter import Meter
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.store.events import record
from landreeve_agent.store.stamps import stamp
from landreeve_agent.telemetry.machine import MachineProbe
from landreeve_agent.telemetry.recent import Recent
from landreeve_agent.telemetry.totals import Totals, read_totals

METRIC_SET = 1
METRIC_NAMES = (
    "predictions",
    "errors",
    "p50_ms",
    "p95_ms",
    "worker_rss_mb",
    "supervisor_rss_mb",
    "cpu_percent",
    "memory_percent",
    "disk_percent",
    "outbox",
    "samples",
    "labels",
    "worker_restarts",
)


@dataclass(frozen=True)
class WorkerFigures:
    """What the metrics say about the worker; zero while there is none."""

    rss_mb: float = 0.0
    restarts: int = 0


@dataclass
class Reporter:
    """Writes birth, metrics and events into the outbox. ``interval_s`` is also the span of the latency figures."""

    database: Database
    outbox: Outbox
    recent: Recent
    machine: MachineProbe
    worker: Callable[[], Awaitable[WorkerFigures]]
    interval_s: float
    meter: Meter = field(default_factory=Meter)

    async def birth(
        self,
        now: datetime,
        *,
        agent: str,
        site: str,
        hardware: Mapping[str, Any],
        certificate_expires: str,
        labels: Mapping[str, str],
        box_class: str = "",
    ) -> None:
        """Say who we are and what the columns of the metrics mean."""
        body = Birth(
            agent=agent,
            site=site,
            started=stamp(now),
            hardware=dict(hardware),
            metric_names=METRIC_NAMES,
            metric_set=METRIC_SET,
            certificate_expires=certificate_expires,
            labels=dict(labels),
            box_class=box_class,
            features=(schedule.FEATURE, strategy.FEATURE, ordering.FEATURE),
        )
        await self.database.write(lambda tables: self.outbox.enqueue(tables, body, now))

    async def metrics(self, now: datetime) -> None:
        """One row of metrics; the totals are read in the transaction that makes the fact."""
        worker = await self.worker()
        await self.database.write(lambda tables: self._metrics(tables, worker, now))

    async def event(self, event: Event, now: datetime) -> None:
        """Something happened: into the local log and on its way to the hub, together."""
        await self.database.write(lambda tables: self.tell(tables, event, now))

    def tell(self, tables: Tables, event: Event, now: datetime) -> None:
        """The same inside a write of somebody else's."""
        record(tables, event, now)
        self.outbox.enqueue(tables, event, now)

    def _metrics(self, tables: Tables, worker: WorkerFigures, now: datetime) -> None:
        row = self._row(read_totals(tables, now), worker, _waiting(tables), now)
        self.meter.save(tables)
        self.outbox.enqueue(tables, Metrics(metric_set=METRIC_SET, rows=(row,)), now)

    def _row(self, totals: Totals, worker: WorkerFigures, waiting: int, now: datetime) -> tuple[float | None, ...]:
        now_s = now.timestamp()
        machine = self.machine.read()
        over_s = max(self.interval_s, 10.0)
        return (
            round(now_s, 3),
            totals.predictions,
            totals.errors,
            self.recent.quantile_ms(0.5, now_s=now_s, over_s=over_s),
            self.recent.quantile_ms(0.95, now_s=now_s, over_s=over_s),
            worker.rss_mb,
            machine.rss_mb,
            machine.cpu_percent,
            machine.memory_percent,
            machine.disk_percent,
            waiting,
            totals.samples,
            totals.labels,
            worker.restarts,
        )


def _waiting(tables: Tables) -> int:
    return int(tables.conn.execute("SELECT facts FROM outbox_size").fetchone()[0])
