"""Bad networks: the agent's own link and the hub's own ingest over a real broker, with a spoiled line between two
namespaces. Nothing is lost, nothing counts twice, memory stays bounded. ``make test-net`` prints the table.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.net.line import PORTAL_PORT
from tests.net.space import World, missing, world

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "possible")]

FACTS, OVER_S, LIMIT_S = 200, 8.0, 60.0
MOST_GROWTH_MB = 32.0
OUT = Path(__file__).resolve().parents[2] / "build" / "bench" / "link_faults.json"
GOOD = {"loss": 0.0, "delay_ms": 0, "rate_kbit": 0, "cut_up": False, "cut_down": False, "portal": 0}


@dataclass
class Run:
    """One fault on the line, and what came of it."""

    fault: str
    made: int
    report: dict[str, Any]
    took_s: float
    lost: int
    doubled: int

    @property
    def growth_mb(self) -> float:
        return float(self.report["peak_mb"]) - float(self.report["rss_mb"])


@dataclass
class Bench:
    """The world, and the runs so far."""

    world: World
    made: int = 0
    runs: list[Run] = field(default_factory=list)

    def run(self, fault: str, spoil: Callable[[World], None], burst: int = 0) -> Run:
        """Make facts while the line is spoiled, wait until all are in, and count at the hub."""
        began, made = time.monotonic(), burst or FACTS
        self.world.site.say(f"burst {burst}" if burst else f"make {FACTS} {OVER_S}")
        spoil(self.world)
        self.world.site.answer()
        self.world.site.say(f"wait {LIMIT_S}")
        report = self.world.site.answer()
        took = time.monotonic() - began
        self.world.spoil(**GOOD)
        self.made += made
        facts, events, distinct = self._counted()
        run = Run(fault, made, report, took, self.made - facts, events - distinct)
        self.runs.append(run)
        return run

    def _counted(self) -> tuple[int, int, int]:
        with sqlite3.connect(f"file:{self.world.folder / 'hub.db'}?mode=ro", uri=True) as hub:
            (facts,) = hub.execute("SELECT count(DISTINCT seq) FROM facts WHERE type <> 'rejected'").fetchone()
            events, distinct = hub.execute("SELECT count(*), count(DISTINCT name) FROM events").fetchone()
        hub.close()
        return int(facts), int(events), int(distinct)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with world(tmp_path_factory.mktemp("net")) as place:
        made = Bench(place)
        yield made
    show(made)


def cut(world: World, seconds: float, **how: Any) -> None:
    world.spoil(**how)
    time.sleep(seconds)
    world.spoil(**GOOD)


def flap(world: World) -> None:
    for _ in range(2):
        cut(world, 5, cut_up=True, cut_down=True)
        time.sleep(5)


def rebind(world: World) -> None:
    time.sleep(2)
    world.spoil(rebind=True)


def kill_broker(world: World) -> None:
    time.sleep(2)
    world.hub.ask("kill")


FAULTS: dict[str, Callable[[World], None]] = {
    "none": lambda _world: None,
    "30 % loss, each way": lambda world: world.spoil(loss=0.3),
    "600 ms latency, each way": lambda world: world.spoil(delay_ms=600),
    "64 kbit/s": lambda world: world.spoil(rate_kbit=64),
    "flapping every 5 s": flap,
    "one-way cut up, 12 s": lambda world: cut(world, 12, cut_up=True),
    "one-way cut down, 12 s": lambda world: cut(world, 12, cut_down=True),
    "cut both ways, 10 s, a burst": lambda world: cut(world, 10, cut_up=True, cut_down=True),
    "NAT rebinding": rebind,
    "broker killed": kill_broker,
    "captive portal, 10 s": lambda world: cut(world, 10, portal=PORTAL_PORT),
}


BURSTS = {"cut both ways, 10 s, a burst": 5000}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_counted_twice_over(bench: Bench, fault: str) -> None:
    run = bench.run(fault, FAULTS[fault], BURSTS.get(fault, 0))
    assert run.report["empty"], f"not all in after {LIMIT_S} s: {run.report}"
    assert (run.lost, run.doubled) == (0, 0)
    assert run.growth_mb <= MOST_GROWTH_MB
    if "portal" in fault:
        portal = json.loads(bench.world.hub.ask("portal"))
        assert portal["visits"] > 0
        assert portal["bytes"] == 0  # not one fact, nor anything else, was said to it
        assert any("captive portal" in problem for problem in run.report["problems"])


def show(bench: Bench) -> None:
    """The table, and build/bench/link_faults.json."""
    rows: list[dict[str, Any]] = []
    print(f"\nline spoiled by {'tc netem' if bench.world.netem else 'a forwarder between two TUN devices'}")
    print(
        f"{'fault':<30}{'made':>6}{'lost':>6}{'doubled':>9}{'all in after':>14}{'RSS':>7}{'grown by':>10}{'resent':>8}"
    )
    for run in bench.runs:
        rss, grown = float(run.report["peak_mb"]), run.growth_mb
        counted = f"{run.fault:<30}{run.made:>6}{run.lost:>6}{run.doubled:>9}"
        print(f"{counted}{run.took_s:>12.1f} s{rss:>4.0f} MB{grown:>7.1f} MB{run.report['resent']:>8}")
        rows += [
            row(f"{run.fault}: lost", run.lost, "facts", 0, holds=run.lost == 0),
            row(f"{run.fault}: doubled", run.doubled, "facts", 0, holds=run.doubled == 0),
            row(f"{run.fault}: all in after", round(run.took_s, 1), "s"),
            row(f"{run.fault}: memory grown by", round(grown, 1), "MB", MOST_GROWTH_MB, holds=grown <= MOST_GROWTH_MB),
        ]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def row(what: str, value: float, unit: str, bar: float | None = None, *, holds: bool = True) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "bar": bar, "holds": holds}
