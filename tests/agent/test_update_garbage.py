"""The collector of blobs over arbitrary histories of updates: what may be returned to is never taken."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.update import journal, machine
from landreeve_agent.update.directing import pinned
from landreeve_agent.update.garbage import Garbage, Suspects
from landreeve_agent.update.install import Installer
from landreeve_agent.update.pointer import write_pointer
from landreeve_agent.update.standing import Order, Phase, State

from tests.agent.test_update_machine import HAPPY
from tests.fakes.update_ports import FakeFetcher, Hub, Reaper, release

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)
RELEASES = {name: release(name) for name in "abcde"}
Pin = Callable[[State], frozenset[str]]


def parts(packed: Packed) -> frozenset[str]:
    return frozenset({packed.digest, *packed.blobs})


BY_DIGEST = {packed.digest: packed for packed in RELEASES.values()}


@dataclass
class Box:
    """A box's store, blobs and collector, without the rest of it."""

    root: Path
    pin: Pin = pinned
    clock_s: float = 0.0
    busy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.database = Database(self.root / "agent.db")
        self.blobs = BlobStore(self.root / "blobs", margin_bytes=0)
        self.outbox = Outbox(self.database)
        self.installer = Installer(FakeFetcher(Hub(), self.blobs, Reaper()), self.blobs, self.root / "models", "0.1.0")
        self.state = State("demo")
        self.start()

    def start(self) -> None:
        self.garbage = Garbage(
            self.database, self.blobs, (self.installer,), self.root / "models", lambda: frozenset(self.busy),
            lambda: self.clock_s, Suspects(grace_s=10.0), self.pin,
        )  # fmt: skip

    def put(self, packed: Packed) -> None:
        for data in (packed.manifest_bytes, *packed.blobs.values()):
            self.blobs.put(data)

    async def event(self, event: machine.Event) -> None:
        before, self.state = self.state, machine.decide(self.state, event)
        await self.database.write(lambda db: journal.save(db, self.outbox, before, self.state, NOW))

    async def advance(self) -> None:
        """What the runner does next when it works."""
        effect, order = machine.effect_of(self.state), self.state.order
        if effect is machine.Effect.TAKE_NEXT:
            await self.event(machine.NextTaken())
        elif effect is not None and order is not None and self.state.phase in HAPPY:
            if effect is machine.Effect.FETCH:
                self.put(BY_DIGEST[order.release])
            await self.event(HAPPY[self.state.phase](order.generation))

    async def sweep(self, seconds: float = 11.0) -> int:
        self.clock_s += seconds
        return await self.garbage.run()


def run(work: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder)))


STEPS = st.lists(st.sampled_from([*RELEASES, "on", "on", "on", "fail", "back", "none", "sweep", "kill"]), max_size=45)


async def live(root: Path, steps: list[str], pin: Pin = pinned) -> None:
    """One history; the collector looks after every step. Everything that was fetched of a version that may serve
    again must be there."""
    box = Box(root, pin)
    for generation, step in enumerate(steps, 1):
        match step:
            case "on":
                await box.advance()
            case "fail":
                await box.event(machine.Failed(box.state.order.generation if box.state.order else 0, "bad", "Bad."))
            case "back":
                await box.event(machine.RollbackAsked("ann"))
            case "none":
                await box.event(machine.Unordered(generation))
            case "kill":
                box.start()
            case "sweep":
                await box.sweep()
            case name:
                packed = RELEASES[name]
                order = Order("demo", packed.digest, name, len(packed.manifest_bytes), f"r-{generation}", generation, 1)
                await box.event(machine.Ordered(order))
        await box.sweep(6.0)
        state = box.state
        for item in (state.good, state.previous, state.factory, state.candidate, state.target):
            if item is not None:
                assert parts(BY_DIGEST[item.release]) <= box.blobs.digests(), f"{item.version} lost blobs at {step}"
        if state.order is not None and state.phase in {Phase.STAGED, Phase.PREFLIGHT, Phase.ACTIVATING}:
            assert parts(BY_DIGEST[state.order.release]) <= box.blobs.digests()
    box.database.close()


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_what_serves_or_may_serve_again_is_never_taken(steps: list[str]) -> None:
    run(lambda root: live(root, steps))


@pytest.mark.parametrize("forgotten", ["previous", "factory", "order"])
def test_the_histories_find_a_collector_that_forgets(forgotten: str) -> None:
    """The same histories against a planted bug: one kind of version is not counted as needed."""

    def careless(state: State) -> frozenset[str]:
        return pinned(replace(state, **{forgotten: None}))

    def is_caught(steps: list[str]) -> bool:
        try:
            run(lambda root: live(root, steps, careless))
        except AssertionError:
            return True
        return False

    history = ["a", *["on"] * 9, "b", *["on"] * 9, "c", "on", "on", "on", "sweep", "sweep", *["on"] * 9]
    assert is_caught(history)


async def committed(box: Box, *names: str) -> None:
    for generation, name in enumerate(names, 1):
        packed = RELEASES[name]
        await box.event(machine.Ordered(Order("demo", packed.digest, name, 1, f"r{name}", generation, 1)))
        while box.state.phase is not Phase.COMMITTED or machine.effect_of(box.state) is not None:
            await box.advance()


async def test_what_no_version_needs_goes_at_the_second_look(tmp_path: Path) -> None:
    box = Box(tmp_path)
    await committed(box, "a", "b", "c", "d")
    assert await box.sweep() == 0
    assert await box.sweep() == len(parts(RELEASES["b"]) - parts(RELEASES["a"]) - parts(RELEASES["c"]))
    kept = parts(RELEASES["a"]) | parts(RELEASES["c"]) | parts(RELEASES["d"])
    assert box.blobs.digests() == kept
    box.database.close()


async def test_nothing_goes_while_a_release_is_installed_or_a_blob_moves(tmp_path: Path) -> None:
    box = Box(tmp_path)
    stray = box.blobs.put(b"of no version")
    box.installer.busy = 1
    assert [await box.sweep() for _ in range(3)] == [0, 0, 0]
    box.installer.busy = 0
    box.busy.add(stray)
    assert [await box.sweep() for _ in range(3)] == [0, 0, 0]
    box.busy.clear()
    assert await box.sweep() == 1
    box.database.close()


async def test_a_manifest_that_rotted_stops_the_collector(tmp_path: Path) -> None:
    box = Box(tmp_path)
    await committed(box, "a")
    box.blobs.path(RELEASES["a"].digest).write_bytes(b"rotten")
    assert [await box.sweep() for _ in range(3)] == [0, 0, 0]
    assert parts(RELEASES["a"]) <= box.blobs.digests()
    box.database.close()


async def test_what_the_pointer_names_stays_when_the_store_was_lost(tmp_path: Path) -> None:
    box = Box(tmp_path)
    await committed(box, "a")
    assert box.state.good is not None
    write_pointer(tmp_path / "models", "demo", box.state.good, None)
    await box.database.write(lambda db: db.conn.execute("DELETE FROM updates"))
    assert [await box.sweep() for _ in range(3)] == [0, 0, 0]
    box.database.close()


async def test_a_challenger_the_hub_may_fetch_stays(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.put(RELEASES["e"])
    result = f'{{"manifest": "{RELEASES["e"].digest}"}}'
    row = ("r-1", "demo", "finished", "{}", result, (NOW - timedelta(days=1)).isoformat())
    put = "INSERT INTO runs (id, model, state, request, result, at) VALUES (?, ?, ?, ?, ?, ?)"
    await box.database.write(lambda db: db.conn.execute(put, row))
    assert [await box.sweep() for _ in range(3)] == [0, 0, 0]
    await box.database.write(lambda db: db.conn.execute("DELETE FROM runs"))
    await box.sweep()
    assert await box.sweep() == len(parts(RELEASES["e"]))
    box.database.close()
