"""kill -9 of supervisor, worker, hub and broker at random moments of a replay: nothing lost, nothing doubled.

The three sites of the demo serve, a rollout is under way, and every second something dies. Afterwards the books of
four parties are laid side by side: what the airport's file says must have been there, what the application was
answered, what the agent keeps, and what the hub keeps.
"""

import os
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "examples" / "three_sites"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import chapters
import loop
import replay
from three_sites import small_world
from world import CANARY, CATALOG, MODEL, SITES, World

KILLS = 16
EVERY = 12
HOURS_A_SECOND = 40.0
CHILDREN = {"worker": ("serving.worker",), "broker": ("mosquitto", "nats-server")}
VICTIMS = ("supervisor", *CHILDREN, "hub")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A demo on ports that no other demo on this machine asks for: one of them could take a port while its owner is
    dead, and the application would talk to a stranger."""
    base = 20_000 + os.getpid() * 10 % 10_000
    ports = {s: {"console": base + n, "serving": base + 3 + n} for n, s in enumerate(SITES)}
    for module in (chapters, sys.modules["world"]):
        monkeypatch.setattr(module, "wanted_ports", ports.__getitem__)
    made = small_world(tmp_path / "three sites", every=EVERY)
    made.hub_state.mkdir(parents=True)
    made.hub("init", "--set", f"broker.port={base + 6}", "--set", "fleet=three-airports")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.story
@pytest.mark.timeout(600)
def test_kill_nine_of_any_process_loses_nothing_and_doubles_nothing(world: World) -> None:
    chapters.open_house(world)
    version = train(world)
    rollout = loop.roll_out(world, version)
    reaper = Reaper(world, random.Random(7))
    reaper.during_the_replay()
    find_all(world)
    row = loop.finish(world, rollout)
    loop.settle(world)
    assert set(reaper.killed) == set(VICTIMS)
    assert row["state"] == "FINISHED", row
    for site in SITES:
        ours, hub = chapters.wait_for(f"{site} to be quiet", lambda: quiet_pair(world, site), timeout_s=60)  # noqa: B023
        check_site(world, site, ours)
        check_hub(hub, ours, version)
        hub.close()
    assert world.hub("audit", "verify")["whole"] is True


def train(world: World) -> str:
    """A first model from two months at the canary; its version, approved."""
    world.advance(chapters.LEARN_UNTIL, step=timedelta(days=30))
    loop.settle(world)
    world.agent(CANARY, "train", "run", "--model", MODEL, "--from", "2013-01-01", "--to", "2013-03-01", "--wait")
    draft = chapters.wait_for("the challenger at the hub", lambda: chapters._draft(world), timeout_s=60)
    loop.approve(world, draft["version"])
    return str(draft["version"])


@dataclass
class Reaper:
    """Kills something every so often, each kind in turn, while days pass."""

    world: World
    lots: random.Random
    killed: Counter[str] = field(default_factory=Counter)

    def during_the_replay(self) -> None:
        """Live on, a day at a time and at a pace at which the dead come back, until enough have died."""
        done = threading.Event()
        thread = threading.Thread(target=self._reap, args=(done,))
        self.world.pace(HOURS_A_SECOND)
        thread.start()
        try:
            while thread.is_alive():
                self.world.days(1)
        finally:
            done.set()
            thread.join()
        self.world.pace(0)

    def _reap(self, done: threading.Event) -> None:
        while self.killed.total() < KILLS and not done.wait(self.lots.uniform(0.3, 1.5)):
            victim = VICTIMS[self.killed.total() % len(VICTIMS)]
            self.killed[victim] += self._kill(victim)

    def _kill(self, victim: str) -> bool:
        """SIGKILL one process of that kind; False when it was not there just then."""
        named = "hub" if victim in ("hub", "broker") else f"agent-{self.lots.choice(SITES)}"
        service = self.world.keeper.service(named)
        if service.process is None or not service.running():
            return False
        try:
            target = psutil.Process(service.process.pid)
            if names := CHILDREN.get(victim):
                target = next(c for c in target.children() if any(n in " ".join(c.cmdline()) for n in names))
            target.kill()
        except (psutil.NoSuchProcess, StopIteration):
            return False
        return True


def find_all(world: World) -> None:
    """What was killed is up again and answers."""
    world.find_hub()
    for site in SITES:
        world.find_agent(site)


@dataclass
class AgentBooks:
    """What an agent keeps, read in one transaction."""

    device: str
    samples: list[str]
    answered: set[str]
    counted: int
    labels: set[str]
    epoch: int
    last: int
    waiting: dict[int, str]
    taken: dict[str, int]
    transitions: int
    windows: set[tuple[str, int]]


def quiet_books(world: World, site: str) -> "AgentBooks | None":
    """The agent's books when every captured line is taken in and nothing but metrics is on its way; these go on."""
    captured = {path.name: path.stat().st_size for path in (world.sites[site].state / "spool").glob("*.jsonl")}
    books = books_of_agent(world, site)
    drained = all(books.taken.get(name, 0) >= size for name, size in captured.items())
    return books if drained and set(books.waiting.values()) <= {"metric"} else None


def quiet_pair(world: World, site: str) -> "tuple[AgentBooks, sqlite3.Connection] | None":
    """The agent's books and a transaction on the hub's that shows the same moment: nothing was concluded between."""
    before = quiet_books(world, site)
    hub = sqlite3.connect(f"file:{world.hub_state}/hub.db?mode=ro", uri=True)
    hub.execute("BEGIN")
    hub.execute("SELECT count(*) FROM facts").fetchone()  # the transaction's view begins with its first reading
    after = quiet_books(world, site)
    if before and after and (before.windows, before.transitions) == (after.windows, after.transitions):
        return before, hub
    hub.close()
    return None


def books_of_agent(world: World, site: str) -> AgentBooks:
    device = world.sites[site].status()["device"]
    with sqlite3.connect(f"file:{world.sites[site].state}/agent.db?mode=ro", uri=True) as db:
        db.execute("BEGIN")
        one = lambda query: db.execute(query).fetchone()[0]  # noqa: E731
        books = AgentBooks(
            device,
            samples=[row[0] for row in db.execute("SELECT id FROM samples")],
            answered={row[0] for row in db.execute("SELECT id FROM samples WHERE p IS NOT NULL")},
            counted=one("SELECT sum(predictions) FROM counters"),
            labels={row[0] for row in db.execute("SELECT id FROM labels")},
            epoch=int(one("SELECT value FROM meta WHERE key = 'outbox.epoch'")),
            last=one("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'"),
            waiting=dict(db.execute("SELECT seq, kind FROM outbox")),
            taken=dict(db.execute("SELECT file, offset FROM spool")),
            transitions=one("SELECT count(*) FROM transitions"),
            windows=set(db.execute("SELECT model, window FROM windows WHERE release <> ''")),
        )
    db.close()
    return books


def check_site(world: World, site: str, ours: AgentBooks) -> None:
    """The airport's file, the application's log and the agent's store agree departure for departure."""
    file = replay.read_departures(site, CATALOG / "data" / f"{site}.csv.gz", EVERY)
    due = [departure for departure in file if departure.at < world.clock]
    lines = (world.options.home / "applications" / f"{site}.csv").read_text().splitlines()[1:]
    log = [line.split(",") for line in lines]
    assert [line[0] for line in log] == [d.id for d in due], f"{site}: the application skipped or repeated a departure"
    assert sorted(ours.samples) == sorted(d.id for d in due), f"{site}: a departure is missing at the agent"
    assert ours.answered >= {line[0] for line in log if line[2]}, f"{site}: an answer was given and not kept"
    assert ours.counted == len(ours.answered), f"{site}: the counter of predictions drifted from the rows"
    assert ours.labels == {d.id for d in due if d.known <= world.clock}, f"{site}: labels are missing"


def check_hub(hub: sqlite3.Connection, ours: AgentBooks, version: str) -> None:
    """Every number the agent ever gave is at the hub or still waits, and each took effect once."""
    own = (ours.device,)
    epochs = {row[0] for row in hub.execute("SELECT DISTINCT epoch FROM facts WHERE device = ?", own)}
    assert epochs == {ours.epoch}, "the outbox changed its incarnation without having been set back"
    facts = dict(hub.execute("SELECT seq, type FROM facts WHERE device = ?", own))
    gaps = hub.execute("SELECT first, last FROM gaps WHERE device = ?", own).fetchall()
    (highwater,) = hub.execute(
        "SELECT seq FROM highwater WHERE device = ? AND epoch = ?", (*own, ours.epoch)
    ).fetchone()
    had = facts.keys() | {seq for first, last in gaps for seq in range(first, last + 1)}
    assert gaps == [], "metrics were dropped although the outbox was never full"
    assert had >= set(range(1, ours.last + 1)) - ours.waiting.keys(), "a fact left the outbox before the hub had it"
    assert had >= set(range(1, highwater + 1)), "the hub acknowledged a fact it does not have"
    kinds = Counter(facts.values())
    assert kinds["rejected"] == 0
    counted = hub.execute("SELECT facts, rejected FROM delivery WHERE device = ?", own).fetchone()
    assert counted == (len(facts), 0), "the hub's count of facts is not the number of facts"
    (events,) = hub.execute("SELECT count(*) FROM events WHERE device = ?", own).fetchone()
    assert events == kinds["birth"] + kinds["event"] + kinds["update"], "an event took effect twice, or never"
    steps = "SELECT count(*) FROM events WHERE device = ? AND name = 'update.transition'"
    assert hub.execute(steps, own).fetchone() == (ours.transitions,), "a step of the rollout is missing or doubled"
    windows = set(hub.execute("SELECT model, window FROM windows WHERE device = ?", own))
    assert windows == ours.windows, "a drift window is missing"
    assert (kinds["drift"], "COMMITTED", version) == (len(windows), *newest_update(hub, ours.device))


def newest_update(hub: sqlite3.Connection, device: str) -> tuple[str, str]:
    found = hub.execute("SELECT state, version FROM updates WHERE device = ? AND model = ?", (device, MODEL)).fetchone()
    return str(found[0]), str(found[1])
