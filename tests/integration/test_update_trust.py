"""The update runner behind the hub's real signing: only what both repositories vouch for ever reaches a disk."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed
from landreeve.trust.anchor import install
from landreeve.trust.document import document_text
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.codec import decode
from landreeve.wire.messages import Desired, Event, Fact, SignedDesired
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.update.runner import Options, Runner
from landreeve_agent.update.standing import Phase
from landreeve_hub.signing import keys
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.roots import newest_root_text
from landreeve_hub.signing.targets import TargetsRepository

from tests.fakes.update_ports import FakeEvidence, FakeFetcher, FakePreflight, FakeWorker, Hub, Reaper, release, wanted

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
A, B, UNAPPROVED = release("A"), release("B"), release("U")


class Fleet:
    """A hub's signing, with a clock the test sets."""

    def __init__(self, state: Path) -> None:
        keys.init(state, NOW)
        self.state = state
        self.targets = TargetsRepository(state)
        self.director = Director(state)
        for packed, version in ((A, "A"), (B, "B")):
            self.targets.add_release(packed.digest, len(packed.manifest_bytes), "demo", version, "ada", NOW)

    def order(self, generation: int, packed: Packed, version: str, now: datetime = NOW) -> SignedDesired:
        models = (wanted(packed, version, f"r{generation}"),)
        desired = Desired(device="d-1", generation=generation, issued=now.isoformat(), models=models)
        lengths = {packed.digest: len(packed.manifest_bytes)}
        return SignedDesired(
            generation=generation,
            document=document_text(desired),
            director=self.director.sign("d-1", desired, lengths, now),
            targets=self.targets.metadata(),
        )


class Box:
    def __init__(self, root: Path, fleet: Fleet) -> None:
        roots = {name: newest_root_text(fleet.state, name) for name in ("director", "targets")}
        install(root / "trust", roots, NOW - timedelta(days=1))
        hub, reaper = Hub(), Reaper()
        for packed in (A, B, UNAPPROVED):
            hub.add(packed)
        self.now = NOW
        self.database = Database(root / "agent.db")
        self.outbox = Outbox(self.database)
        self.blobs = BlobStore(root / "blobs", margin_bytes=0)
        self.worker = FakeWorker(hub, reaper)
        self.runner = Runner(
            self.database,
            self.outbox,
            DesiredVerifier(root / "trust", "d-1", NOW - timedelta(days=30)),
            FakeFetcher(hub, self.blobs, reaper),
            self.blobs,
            root / "models",
            self.worker,
            FakePreflight(hub, reaper),
            FakeEvidence(hub, reaper),
            lambda: self.now,
            agent_version="0.1.0",
            options=Options(probation_every_s=0.005, retry_s=0.0),
        )

    async def until_committed(self, version: str) -> None:
        async with asyncio.timeout(20):
            while True:
                view = self.runner.views.get("demo")
                good = view.state.good if view and view.state.phase is Phase.COMMITTED else None
                if good is not None and good.version == version:
                    return
                await asyncio.sleep(0.005)

    async def refusals(self) -> list[str]:
        facts = [decode(row.body, Fact).body for row in await self.outbox.pending(0, 1000)]
        return [body.cause for body in facts if isinstance(body, Event) and body.name == "update.refused"]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "hub")


@pytest.fixture
async def box(tmp_path: Path, fleet: Fleet) -> AsyncIterator[Box]:
    box = Box(tmp_path / "box", fleet)
    await box.runner.recover()
    running = asyncio.create_task(box.runner.run())
    yield box
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    box.database.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()


async def test_signed_and_approved_release_is_installed(box: Box, fleet: Fleet) -> None:
    await box.runner.on_desired(fleet.order(1, A, "A"))
    await box.until_committed("A")
    await box.runner.on_desired(fleet.order(2, B, "B"))
    await box.until_committed("B")
    assert await box.refusals() == []


async def test_release_nobody_approved_is_not_even_fetched(box: Box, fleet: Fleet) -> None:
    await box.runner.on_desired(fleet.order(1, UNAPPROVED, "U"))
    assert await box.refusals() == ["not_approved"]
    assert box.blobs.digests() == frozenset()
    assert box.runner.generation == 0


async def test_document_changed_on_its_way_is_refused(box: Box, fleet: Fleet) -> None:
    signed = fleet.order(1, A, "A")
    forged = msgspec.structs.replace(signed, document=signed.document.replace(A.digest, UNAPPROVED.digest))
    await box.runner.on_desired(forged)
    assert await box.refusals() == ["document_tampered"]
    await box.runner.on_desired(signed)
    await box.until_committed("A")


async def test_envelope_with_a_higher_number_gains_nothing(box: Box, fleet: Fleet) -> None:
    await box.runner.on_desired(msgspec.structs.replace(fleet.order(1, A, "A"), generation=99))
    assert await box.refusals() == ["wrong_generation"]
    assert box.runner.generation == 0


async def test_expired_document_installs_nothing_and_what_serves_goes_on(box: Box, fleet: Fleet) -> None:
    await box.runner.on_desired(fleet.order(1, A, "A"))
    await box.until_committed("A")
    stale = fleet.order(2, B, "B")
    box.now = NOW + timedelta(days=4000)
    await box.runner.on_desired(stale)
    assert await box.refusals() == ["metadata_expired"]
    assert box.worker.serves["demo"][0] == "A"


async def test_order_refused_for_the_clock_is_taken_up_when_the_clock_is_set(box: Box, fleet: Fleet) -> None:
    """The broker sends it once; nobody has to send it again."""
    box.now = datetime(1970, 1, 1, tzinfo=UTC)
    await box.runner.on_desired(fleet.order(1, A, "A"))
    await box.runner.reconsider()
    assert await box.refusals() == ["clock_behind"]
    box.now = NOW
    await box.runner.reconsider()
    await box.until_committed("A")
    await box.runner.reconsider()
    assert box.runner.generation == 1
