"""kill -9 of supervisor, worker, hub and broker at random moments of a replay: nothing lost, nothing doubled."""

import random
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import chapters
from loop import settle
from three_sites import small_world
from world import SITES, World

KILLS = 12
VICTIMS = ("supervisor", "worker", "hub", "broker")
CHILDREN = {"worker": ("serving.worker",), "broker": ("mosquitto", "nats-server")}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = small_world(tmp_path / "three sites", every=12)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.story
@pytest.mark.timeout(600)
def test_no_acknowledged_fact_is_lost_or_doubled_by_kill_nine(world: World) -> None:
    chapters.open_house(world)
    chapters.first_model(world)
    killed = kill_during(world, random.Random(7), days=28)
    assert set(killed) == set(VICTIMS)
    find_all(world)
    settle(world)
    hub = sqlite3.connect(f"file:{world.hub_state}/hub.db?mode=ro", uri=True)
    for site in SITES:
        check_site(world, site, hub)
    hub.close()


def check_site(world: World, site: str, hub: sqlite3.Connection) -> None:
    """The application's record, the agent's store and the hub's store agree row for row."""
    log = (world.options.home / "applications" / f"{site}.csv").read_text().splitlines()[1:]
    sent = [line.split(",")[0] for line in log]
    agent = sqlite3.connect(f"file:{world.sites[site].state}/agent.db?mode=ro", uri=True)
    stored = {row[0] for row in agent.execute("SELECT id FROM samples")}
    (answered,) = agent.execute("SELECT count(*) FROM samples WHERE p IS NOT NULL").fetchone()
    (counted,) = agent.execute("SELECT sum(predictions) FROM counters").fetchone()
    (epoch,) = agent.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    (left,) = agent.execute("SELECT count(*) FROM outbox").fetchone()
    (last,) = agent.execute("SELECT value FROM meta WHERE key = 'next_seq'").fetchone()
    agent.close()
    assert len(sent) == len(set(sent)), "the application was answered twice for one departure"
    assert stored == set(sent), "a departure the application was answered for is missing, or one is there twice"
    assert counted == answered, "the counter of predictions drifted from the rows"
    device = world.sites[site].status()["device"]
    facts, lowest, highest = hub.execute(
        "SELECT count(*), min(seq), max(seq) FROM facts WHERE device = ? AND epoch = ?", (device, int(epoch))
    ).fetchone()
    assert (lowest, highest) == (1, facts), "the hub has a gap or a double in the device's facts"
    assert facts + left >= int(last) - 1, "a fact left the outbox before the hub had it"


def kill_during(world: World, lots: random.Random, days: int) -> list[str]:
    """Replay days while a thread kills something every so often; who died, in order."""
    killed: list[str] = []
    done = threading.Event()

    def reaper() -> None:
        while not done.wait(lots.uniform(0.4, 1.6)) and len(killed) < 3 * KILLS:
            victim = VICTIMS[len(killed) % len(VICTIMS)] if len(killed) < KILLS else lots.choice(VICTIMS)
            if kill(world, victim, lots):
                killed.append(victim)

    thread = threading.Thread(target=reaper)
    thread.start()
    try:
        for _ in range(days):
            world.days(1)
            if len(killed) >= KILLS:
                break
        while len(killed) < KILLS:
            world.days(1)
    finally:
        done.set()
        thread.join()
    return killed


def kill(world: World, victim: str, lots: random.Random) -> bool:
    """SIGKILL one process of that kind; False when it was not there just then."""
    site = lots.choice(SITES)
    service = world.keeper.service("hub" if victim in ("hub", "broker") else f"agent-{site}")
    if not service.running() or service.process is None:
        return False
    try:
        target = psutil.Process(service.process.pid)
        names = CHILDREN.get(victim)
        if names:
            target = next(c for c in target.children() if any(n in " ".join(c.cmdline()) for n in names))
        target.kill()
    except (psutil.NoSuchProcess, StopIteration):
        return False
    return True


def find_all(world: World) -> None:
    """The services that were killed are up again and answer (their ports may have moved)."""
    world.find_hub()
    for site in SITES:
        world.find_agent(site)
