"""A 5-wave rollout over fleets of 100, 1,000 and 10,000 simulated devices: decisions, time per tick, CPU and memory.

The hub is the real one from the tables on: SQLite on disk, the real runner, incidents and audit log. Devices speak
through the tables as the ingest would write them (state and update report); documents are numbered but not signed,
since signing costs each device the same whatever the fleet, and its time is not counted in a tick. 2 % of the devices
fail on their own box, 1 % never answer. A busy tick is one with 20 answers before it and 20 new orders in it. Each
fleet has a process of its own, so that memory is its own.
Writes build/bench/fleet.json.
"""

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Role
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.rollout import book
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.propose import Proposal
from landreeve_hub.rollout.roster import Outcome
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.signing import keys
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import Connection, insert, select, update

ROOT = Path(__file__).resolve().parents[2]
SIZES = (100, 1_000, 10_000)
OLD, NEW = "0" * 64, "f" * 64
CHANGES = 20
"""So many devices report between two ticks: the same in every fleet."""
IDLE = 200
PLAN: dict[str, Any] = {
    "waves": [{"share": 0.01}, {"share": 0.04}, {"share": 0.15}, {"share": 0.3}, {"rest": True}],
    "gate": {
        "max_in_flight": 25, "max_failures": 1, "max_silent": 1, "max_failed_share": 0.06, "max_silent_share": 0.06,
        "large_from": 30, "deadline_s": 3600, "figures": {"max_error_rate": 0.05, "max_latency_ratio": 3.0},
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One fleet: milliseconds of CPU a tick, with ``CHANGES`` reports before it and with none."""

    size: int
    state: str
    committed: int
    failed: int
    silent: int
    right: bool
    tick_ms: float
    tick_p95_ms: float
    idle_us: float
    hub_cpu_s: float
    rss_mb: float
    start_ms: float
    ticks: int


class Numbered:
    """The desired document without its signatures: a new number when an assignment changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.spent_s = 0.0
        self.ordered: list[tuple[str, str]] = []  # device and rollout, for the new release

    async def publish_device(self, device: str) -> None:
        began = time.process_time()
        await self._store.write(lambda c: self._number(c, device))
        self.spent_s += time.process_time() - began

    def _number(self, connection: Connection, device: str) -> None:
        held = tables.assignments
        row = connection.execute(select(held.c.digest, held.c.rollout).where(held.c.device == device)).first()
        content = "" if row is None else f"{row.digest}{row.rollout}"
        if row is not None and row.digest == NEW:
            self.ordered.append((device, row.rollout))
        table = tables.desired
        known = connection.execute(
            select(table.c.generation, table.c.content_hash).where(table.c.device == device)
        ).first()
        if known is None or known.content_hash != content:
            generation = 1 + (known.generation if known else 0)
            upsert(
                connection,
                table,
                {"device": device, "generation": generation, "document": b"x", "content_hash": content},
            )


class Fleet:
    """Devices that were ordered something and answer, some at each tick."""

    def __init__(self, store: Store, size: int) -> None:
        self._store = store
        self._random = random.Random(7)
        names = [f"d-{n:05d}" for n in range(size)]
        picked = self._random.sample(names, k=max(1, round(size * 0.02)) + max(1, round(size * 0.01)))
        cut = max(1, round(size * 0.02))
        self.failing, self.mute = frozenset(picked[:cut]), frozenset(picked[cut:])
        self.heard = 0

    def enrol(self, connection: Connection, size: int) -> None:
        served = [{"model": "delay", "version": "v1", "release": OLD}]
        rows = [
            {
                "id": f"d-{n:05d}", "fleet": "bench", "site": f"s-{n:05d}", "online": True, "agent": "0.1.0",
                "doc": {"models": served, "generation": 0}, "enrolled": "2026-01-01T00:00:00Z",
            }
            for n in range(size)
        ]  # fmt: skip
        connection.execute(insert(tables.devices), rows)
        for digest, version in ((OLD, "v1"), (NEW, "v2")):
            release = {"digest": digest, "model": "delay", "version": version, "state": "approved"}
            connection.execute(insert(tables.releases).values(**release, manifest_bytes=9, config={}))

    def answer(self, connection: Connection, ordered: list[tuple[str, str]]) -> int:
        """Up to `CHANGES` devices of those ordered, in their order, come to their end; how many."""
        told = 0
        while told < CHANGES and self.heard < len(ordered):
            device, rollout = ordered[self.heard]
            self.heard += 1
            if device not in self.mute:
                self._end(connection, device, rollout)
                told += 1
        return told

    def _end(self, connection: Connection, device: str, rollout: str) -> None:
        bad = device in self.failing
        shown = {"rows": 500, "errors": self._random.randrange(4), "p95_ratio": self._random.uniform(0.9, 1.3)}
        report = {"device": device, "model": "delay", "release": NEW, "version": "v2", "rollout": rollout}
        state = {"state": "ROLLED_BACK" if bad else "COMMITTED", "cause": "told", "sentence": f"{device} said so."}
        upsert(connection, tables.updates, {**report, **state, "generation": 1, "told": shown})
        served = [{"model": "delay", "version": "v1" if bad else "v2", "release": OLD if bad else NEW}]
        own = tables.devices.c.id == device
        doc = {"models": served, "generation": 1}
        connection.execute(update(tables.devices).where(own).values(doc=doc, generation=1))


async def measure(size: int, folder: Path) -> Run:
    """The whole rollout at one size."""
    now = datetime(2026, 3, 1, tzinfo=UTC)
    keys.init(folder, now)
    store = Store(folder / "hub.db")
    fleet = Fleet(store, size)
    await store.write(lambda c: fleet.enrol(c, size))
    publisher = Numbered(store)
    runner = RolloutRunner(store, publisher, Incidents(), AuditLog(store, folder / "keys"))
    rollout = await runner.create(Proposal("delay", NEW, parse_plan(PLAN)), "ann", now)
    began = time.process_time()
    bob = Person("bob", Role.APPROVER)
    await runner.command(rollout.id, "approve", bob, now)
    publisher.spent_s = 0.0
    start_ms = 1000 * (time.process_time() - began)
    busy: list[float] = []
    hub = 0.0
    for _ in range(100_000):
        now += timedelta(seconds=1)
        told = await store.write(lambda c: fleet.answer(c, publisher.ordered))
        if not told:  # only silent ones are under way: their time runs out
            now += timedelta(hours=2)
        before, signed, ordered = time.process_time(), publisher.spent_s, len(publisher.ordered)
        await runner.tick(now)
        spent = time.process_time() - before
        hub += spent
        if told == CHANGES and len(publisher.ordered) - ordered == CHANGES:  # as many answers as new orders
            busy.append(1000 * (spent - (publisher.spent_s - signed)))
        state = await store.read(lambda c: c.execute(select(tables.rollouts.c.state)).scalar())
        if state in {"FINISHED", "PAUSED", "ROLLED_BACK"}:
            break
    idle = time.process_time()
    for _ in range(IDLE):
        await runner.tick(now)
    idle_us = 1e6 * (time.process_time() - idle) / IDLE
    kept = await store.read(lambda c: book.load(c, rollout.id))
    store.close()
    return _run(size, kept.rollout, fleet, busy or [0.0], (idle_us, hub, start_ms))


def _run(size: int, rollout: Any, fleet: Fleet, busy: list[float], took: tuple[float, float, float]) -> Run:
    counts = {outcome: rollout.members.count(outcome) for outcome in Outcome}
    outcome_of = {device: member.outcome for device, member in rollout.members.items()}
    right = all(
        outcome_of[d]
        is (Outcome.FAILED if d in fleet.failing else Outcome.SILENT if d in fleet.mute else Outcome.COMMITTED)
        for d in outcome_of
    )
    idle_us, hub, start_ms = took
    return Run(
        size,
        rollout.state.value,
        counts[Outcome.COMMITTED],
        counts[Outcome.FAILED],
        counts[Outcome.SILENT],
        right,
        statistics.median(busy),
        sorted(busy)[int(len(busy) * 0.95)],
        idle_us,
        hub,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        start_ms,
        len(busy),
    )


def table(runs: list[Run]) -> None:
    head = f"{'devices':>8} {'ended':>10} {'committed':>9} {'failed':>6} {'silent':>6} {'right':>5}"
    print(f"{head} {'tick ms':>8} {'p95':>7} {'idle us':>8} {'start ms':>9} {'hub CPU s':>9} {'RSS MB':>7}")
    for r in runs:
        line = f"{r.size:>8} {r.state:>10} {r.committed:>9} {r.failed:>6} {r.silent:>6} {r.right!s:>5}"
        cost = f"{r.tick_ms:>8.2f} {r.tick_p95_ms:>7.2f} {r.idle_us:>8.0f} {r.start_ms:>9.0f}"
        print(f"{line} {cost} {r.hub_cpu_s:>9.1f} {r.rss_mb:>7.0f}")


def rows(runs: list[Run]) -> list[dict[str, Any]]:
    """Bars: everything decided right; a tick of as many changes may cost at most 3 times as much in a fleet 100 times
    as large, an idle tick 2 times; the hub stays under 1 GB."""
    small, large = runs[0], runs[-1]
    busy, idle = large.tick_ms / small.tick_ms if small.tick_ms else 0.0, large.idle_us / small.idle_us
    wrong = sum(not run.right or run.state != "FINISHED" for run in runs)
    return [
        {"what": "fleets decided wrong", "value": wrong, "unit": "fleets", "bar": 0, "holds": wrong == 0},
        {
            "what": "busy tick, largest by smallest fleet",
            "value": busy,
            "unit": "ratio",
            "bar": 3.0,
            "holds": busy <= 3,
        },
        {
            "what": "idle tick, largest by smallest fleet",
            "value": idle,
            "unit": "ratio",
            "bar": 2.0,
            "holds": idle <= 2,
        },
        {"what": "RSS, largest fleet", "value": large.rss_mb, "unit": "MB", "bar": 1000, "holds": large.rss_mb < 1000},
        {"what": "CPU of a busy tick, largest fleet", "value": large.tick_ms, "unit": "ms", "bar": None, "holds": True},
        {
            "what": "CPU of an idle tick, largest fleet",
            "value": large.idle_us,
            "unit": "us",
            "bar": None,
            "holds": True,
        },
        {"what": "hub CPU, largest fleet", "value": large.hub_cpu_s, "unit": "s", "bar": None, "holds": True},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, default=0, help="measure one size in this process")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    asked = parser.parse_args()
    if asked.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(asyncio.run(measure(asked.one, Path(folder))))))
        return
    runs = []
    for size in asked.sizes:
        done = subprocess.run([sys.executable, __file__, "--one", str(size)], stdout=subprocess.PIPE, check=True)
        runs.append(Run(**msgspec.json.decode(done.stdout)))
    table(runs)
    found = rows(runs)
    out = ROOT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "fleet.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if all(row["holds"] for row in found) else 3)


if __name__ == "__main__":
    main()
