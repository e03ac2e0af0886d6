"""The agent as a component: the machine, over processes that begin and end, beside the launcher's own rules."""

import asyncio
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed
from landreeve.wire.messages import Probation
from landreeve_agent.launch import slots as book
from landreeve_agent.launch.environment import Built, CannotBuildError, Environments
from landreeve_agent.launch.slots import Slot, to_start
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.update.install import Installer
from landreeve_agent.update.itself import AGENT, AgentEffects, Health
from landreeve_agent.update.machine import effect_of
from landreeve_agent.update.probation import Wait
from landreeve_agent.update.runner import Options, Runner
from landreeve_agent.update.standing import TERMINAL, Order, Phase, State

from tests.fakes.update_ports import (
    FakeEvidence,
    FakeFetcher,
    FakePreflight,
    FakeVerifier,
    FakeWorker,
    Hub,
    MortalDatabase,
    Reaper,
    document,
    release,
    wanted,
)

NOW = datetime(2026, 11, 28, 6, 0, tzinfo=UTC)
NAME = "landreeve-agent"
B, C = (release(version, NAME, AGENT) for version in "BC")
WELL = Health(connected=True, serving=True)


class FakeEnvironments(Environments):
    """Says at once that the environment works, unless it is told otherwise."""

    broken: str = ""

    async def build(self, release: str, wheels: Any, state: Path, deadline_s: float) -> Built:
        if FakeEnvironments.broken:
            raise CannotBuildError("self_test", FakeEnvironments.broken)
        self.python(release).parent.mkdir(parents=True, exist_ok=True)
        self.python(release).touch()
        return Built("0.2.0")


class Site:
    """A box with a launcher: ``run`` is one life of the agent, by the rules the launcher starts it with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hub = Hub()
        for packed in (B, C):
            self.hub.add(packed)
        self.desired = document(0)
        self.health: dict[str, Health] = {}
        self.dies: set[str] = set()
        self.launched = True
        self.lives: list[str] = []
        FakeEnvironments.broken = ""

    @property
    def slots(self) -> Path:
        return self.root / "agent" / book.SLOTS_FILE

    def effects(self, running: str, leave: asyncio.Event, fetcher: FakeFetcher, blobs: BlobStore) -> AgentEffects:
        async def health() -> Health:
            return self.health.get(running, WELL)

        return AgentEffects(
            Installer(fetcher, blobs, self.root / "agent" / "releases", "0.1.0"),
            FakeEnvironments(self.root / "agent" / "env"),
            self.slots,
            self.root,
            running=running,
            launched=self.launched,
            restart=leave.set,
            health=health,
            clock=lambda: NOW,
        )

    async def live(self, until: Phase | None = None) -> State | None:
        """Lives of the agent, one after another, until its update has come to that phase."""
        async with asyncio.timeout(30):
            while True:
                slots, slot = to_start(book.read(self.slots))
                book.write(self.slots, slots)
                self.lives.append(slot.release[:1])
                if slot.release in self.dies:
                    continue
                state = await self._one_life(slot, until)
                if state is not None:
                    return state

    async def _one_life(self, slot: Slot, until: Phase | None) -> State | None:
        reaper, leave = Reaper(), asyncio.Event()
        database = MortalDatabase(self.root / "agent.db")
        database.reaper = reaper
        blobs = BlobStore(self.root / "blobs", margin_bytes=0)
        fetcher = FakeFetcher(self.hub, blobs, reaper)
        runner = Runner(
            database,
            Outbox(database),
            FakeVerifier(self.hub),
            fetcher,
            blobs,
            self.root / "models",
            FakeWorker(self.hub, reaper),
            FakePreflight(self.hub, reaper),
            FakeEvidence(self.hub, reaper),
            lambda: NOW,
            agent_version="0.1.0",
            options=Options(probation_every_s=0.005, retry_s=0.0, restore_every_s=0.01),
            kinds={AGENT: self.effects(slot.release, leave, fetcher, blobs)},
        )

        async def run() -> None:
            await runner.recover()
            await runner.on_desired(self.desired)
            await runner.run()

        life = asyncio.create_task(run())
        try:
            while not leave.is_set():
                view = runner.views.get(NAME)
                if view and view.state.phase is until and (until not in TERMINAL or effect_of(view.state) is None):
                    drives = [d for d in runner._drives.values() if not d.done()]
                    if not drives:
                        return view.state
                await asyncio.sleep(0.002)
            return None
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            database.close()

    def order(self, generation: int, packed: Packed, version: str, **changes: Any) -> None:
        model = wanted(packed, version, f"r{generation}", component=AGENT)
        self.desired = document(generation, msgspec.structs.replace(model, model=NAME, **changes))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_new_agent_that_works_becomes_the_good_one(site: Site) -> None:
    site.order(1, B, "B")
    state = await site.live(Phase.COMMITTED)
    assert state is not None
    assert state.good is not None
    assert state.good.release == B.digest
    slots = book.read(site.slots)
    assert (slots.good.release, slots.trying) == (B.digest, None)
    assert len(site.lives) == 2


async def test_new_agent_that_dies_is_left_and_reported_by_the_old_one(site: Site) -> None:
    site.dies.add(B.digest)
    site.order(1, B, "B")
    state = await site.live(Phase.ROLLED_BACK)
    assert state is not None
    assert (state.cause, state.good) == ("boot_loop", None)
    assert book.read(site.slots).good.release == ""


async def test_new_agent_that_does_not_reach_the_hub_goes_back_by_itself(site: Site) -> None:
    site.health[B.digest] = Health(connected=False, serving=True, problem="certificate refused")
    site.order(1, B, "B", probation=Probation(max_s=0.0))
    state = await site.live(Phase.ROLLED_BACK)
    assert state is not None
    assert state.cause == "not_reconnected"
    assert "certificate refused" in state.sentence
    assert site.lives[-1] == ""
    assert not (site.root / "agent" / "env" / B.digest[:12]).exists()


async def test_environment_that_fails_its_own_test_is_never_started(site: Site) -> None:
    FakeEnvironments.broken = "ModuleNotFoundError"
    site.order(1, B, "B")
    state = await site.live(Phase.REJECTED)
    assert state is not None
    assert state.cause == "self_test"
    assert len(site.lives) == 1


async def test_agent_without_a_launcher_says_how_it_is_updated(site: Site) -> None:
    site.launched = False
    site.order(1, B, "B")
    state = await site.live(Phase.REJECTED)
    assert state is not None
    assert state.cause == "not_launched"


async def test_second_update_fails_back_to_the_first_and_not_to_the_factory(site: Site) -> None:
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    site.dies.add(C.digest)
    site.order(2, C, "C")
    state = await site.live(Phase.ROLLED_BACK)
    assert state is not None
    assert state.good is not None
    assert state.good.release == B.digest
    assert site.lives[-1] == B.digest[:1]


async def test_release_that_was_left_once_may_be_ordered_again(site: Site) -> None:
    site.dies.add(B.digest)
    site.order(1, B, "B")
    await site.live(Phase.ROLLED_BACK)
    site.dies.clear()
    site.order(2, B, "B")
    state = await site.live(Phase.COMMITTED)
    assert state is not None


async def test_agent_of_a_box_that_lost_its_store_is_not_set_back_to_the_factory(site: Site) -> None:
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    for file in site.root.glob("agent.db*"):
        file.unlink()
    FakeEnvironments.broken = "ModuleNotFoundError"
    site.order(2, C, "C")
    await site.live(Phase.REJECTED)
    assert book.read(site.slots).good.release == B.digest
    assert site.lives[-1] == B.digest[:1]


async def test_clock_that_is_set_right_ends_no_probation_of_an_agent(site: Site) -> None:
    """A box without a battery for its clock begins in 1970 and learns the time from the network it is to reach."""
    blobs = BlobStore(site.root / "blobs", margin_bytes=0)
    effects = site.effects(B.digest, asyncio.Event(), FakeFetcher(site.hub, blobs, Reaper()), blobs)
    site.health[B.digest] = Health(connected=False, serving=True)
    order = Order(NAME, B.digest, "B", 1, "r", 1, 1, component=AGENT)
    state = State(NAME, Phase.PROBATION, order=order, since="1970-01-01T00:00:40.000000Z")
    verdict, _ = await effects.look(state, order)
    assert isinstance(verdict, Wait), verdict


# --- a real environment


def wheel(folder: Path, broken: bool = False) -> Path:
    """A wheel of this very distribution with a higher version: everything else is found in the base environment."""
    path = folder / "landreeve-9.9.9-py3-none-any.whl"
    files = {
        "landreeve-9.9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: landreeve\nVersion: 9.9.9\n",
        "landreeve-9.9.9.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if broken:
        files["landreeve_agent/__init__.py"] = "raise RuntimeError('built in haste')\n"
    record = "".join(f"{name},,\n" for name in [*files, "landreeve-9.9.9.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, "landreeve-9.9.9.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    return path


async def test_environment_is_built_over_the_base_and_tests_itself(tmp_path: Path) -> None:
    environments = Environments(tmp_path / "env", sys.executable)
    (tmp_path / "state").mkdir()
    built = await environments.build(B.digest, [wheel(tmp_path)], tmp_path / "state", 120.0)
    assert built.version == "9.9.9"
    assert "rooms" in built.looked_at
    assert environments.python(B.digest).exists()
    environments.clean(frozenset())
    assert not environments.python(B.digest).exists()


async def test_agent_that_does_not_start_is_refused_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    environments = Environments(tmp_path / "env", sys.executable)
    with pytest.raises(CannotBuildError, match="built in haste") as refused:
        await environments.build(B.digest, [wheel(tmp_path, broken=True)], tmp_path / "state", 120.0)
    assert refused.value.cause == "self_test"
    assert not environments.python(B.digest).exists()
