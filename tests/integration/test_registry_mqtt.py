"""Releases between the hub's registry and real agents' links, over a real broker and mutual TLS."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from socket import socket

import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature
from landreeve.wire.codec import Block
from landreeve.wire.messages import Command, DeviceState, SignedDesired, Want
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.session import Handlers, Options, Session
from landreeve_agent.link.transfer import Fetcher
from landreeve_agent.link.upload import Uploader
from landreeve_agent.store.database import Database
from landreeve_hub.broker.child import Broker, Kind, find_program
from landreeve_hub.broker.plan import BrokerPlan, Guests
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.learning.runner import fetch_release
from landreeve_hub.registry.blocks import BlockServer
from landreeve_hub.registry.deltas import DeltaCache, Workshop
from landreeve_hub.registry.quota import Quota
from landreeve_hub.registry.releases import Registry
from landreeve_hub.registry.uploads import Challengers, Uploads
from landreeve_hub.signing import keys
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert

from tests.fakes.graphs import tensors_of

FLEET = "f"
DEVICES = ("d-one", "d-two")
QUICK = Options(reconnect_jitter_s=0.1, resend_s=0.3)


def _now() -> datetime:
    return datetime.now(UTC)


def release(note: str, weights: bytes = b"") -> Packed:
    """A release without a graph, large enough to need many blocks."""
    config = ReleaseConfig(
        model="delay",
        family="mlp",
        created="2026-05-01T00:00:00Z",
        signature=Signature(inputs=(), output="late"),
        gates=Gates(),
        lineage=Lineage(),
    )
    return pack(
        {"card.md": note.encode(), "calibration.safetensors": tensors_of(weights or os.urandom(3_000_000))}, config
    )


@dataclass(frozen=True)
class Who:
    device: str
    broker_port: int
    fleet: str = FLEET
    broker_host: str = "127.0.0.1"


class Site:
    """A device's link with its blob store, and nothing above it."""

    def __init__(self, folder: Path, who: Who, keys: Path) -> None:
        folder.mkdir()
        self.blobs = BlobStore(folder / "blobs")
        self.database = Database(folder / "agent.db")
        handlers = Handlers(self._unused, self._unused, self._on_want)
        outbox = Outbox(self.database)
        self.session = Session(who, keys, outbox, handlers, self._state, clock=_now, options=QUICK)
        self.fetcher = Fetcher(self.session, self.blobs, repair_s=0.3)
        self.uploader = Uploader(self.session, self.blobs)
        self.tasks = [asyncio.create_task(self.session.run()), asyncio.create_task(self.uploader.run())]

    async def fetch(self, packed: Packed, held: Packed | None = None) -> None:
        """Manifest first, then everything it names, as an update does."""
        bases = [layer.sha256 for layer in held.manifest.layers] if held else []
        await self.fetcher.fetch(packed.digest, len(packed.manifest_bytes))
        blocks = packed.config.blocks
        for blob in packed.manifest.blobs():
            await self.fetcher.fetch(blob.sha256, blob.size, blocks.get(blob.sha256), bases=bases)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.database.close()

    async def _unused(self, _message: SignedDesired | Command) -> None:
        raise AssertionError("nothing but blocks is sent here")

    def _on_want(self, digest: str, want: Want) -> None:
        self.uploader.on_want(digest, want)

    def _state(self) -> DeviceState:
        return DeviceState(session=0, online=True, at="")


@dataclass
class Hub:
    """The rooms of the hub that move releases."""

    store: Store
    blobs: BlobStore
    registry: Registry
    line: Line
    receiver: Receiver
    server: BlockServer
    challengers: Challengers
    sites: list[Site] = field(default_factory=list)

    def stop(self) -> None:
        self.receiver.stop()
        self.server.stop()
        self.line.stop()
        self.store.close()


class Traffic:
    def __init__(self, server: BlockServer, uploads: Uploads) -> None:
        self.on_want = server.on_want
        self._uploads = uploads

    def on_block(self, device: str, block: Block) -> None:
        self._uploads.on_block(device, block)


def _hub(folder: Path, address: Address) -> Hub:
    store, blobs, line = Store(folder / "hub.db"), BlobStore(folder / "blobs"), Line(address, FLEET)
    for device in DEVICES:
        row = {"id": device, "fleet": FLEET, "site": device}
        store.submit(lambda c, row=row: upsert(c, tables.devices, row)).result()
    keys.init(folder, _now())
    registry = Registry(store, blobs, TargetsRepository(folder))
    workshop = Workshop(blobs, DeltaCache(folder / "deltas", 10**8))
    server = BlockServer(store, blobs, line, FLEET, bytes_per_s=50e6, workshop=workshop)
    uploads = Uploads(blobs, line.publish, FLEET, quota=Quota(store, 10**9, _now), repair_s=0.3)
    receiver = Receiver(store, FLEET, {}, line.publish, _now, blocks=Traffic(server, uploads))
    line.on_message = receiver.take
    receiver.start()
    server.start()
    line.start()
    return Hub(store, blobs, registry, line, receiver, server, Challengers(uploads, blobs, registry))


@pytest.fixture(params=list(Kind))
async def hub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hub]:
    try:
        program = find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    authority = Authority(tmp_path)
    authority.init(_now())
    pair, client = authority.issue_server("broker", _now()), authority.issue_client("hub", _now())
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tmp_path / "broker"
    plan = BrokerPlan(FLEET, "127.0.0.1", port, folder, authority.ca_path, pair.certificate, pair.key)
    broker = Broker(plan, program, Guests(frozenset(DEVICES)))
    await broker.start()
    made = _hub(tmp_path, Address("127.0.0.1", port, authority.ca_path, client.certificate, client.key))
    made.sites += [Site(tmp_path / name, Who(name, port), _keys(tmp_path, authority, name)) for name in DEVICES]
    for site in made.sites:
        await site.session.connected.wait()
    yield made
    for site in made.sites:
        await site.stop()
    await asyncio.to_thread(made.stop)
    await broker.stop()


def _keys(folder: Path, authority: Authority, device: str) -> Path:
    made, pair = folder / f"keys-{device}", authority.issue_client(device, _now())
    made.mkdir()
    (made / "device.key").write_bytes(pair.key.read_bytes())
    (made / "device.crt").write_bytes(pair.certificate.read_bytes())
    (made / "ca.crt").write_text(authority.ca_pem)
    return made


async def test_an_approved_release_reaches_every_site_whole(hub: Hub) -> None:
    packed = release("for everyone")
    await hub.registry.register(packed, "ann", _now())
    await hub.registry.approve(packed.digest, "bob", _now())
    async with asyncio.timeout(60):
        await asyncio.gather(*(site.fetch(packed) for site in hub.sites))
    for site in hub.sites:
        assert site.blobs.digests() == {packed.digest, *packed.blobs}


async def test_the_next_version_comes_as_a_delta(hub: Hub) -> None:
    """Both sites hold the first version; of the second they get what changed, and end with exactly its blobs."""
    weights = os.urandom(1_500_000)
    first = release("first", weights)
    second = release("second", weights[:500_000] + os.urandom(10_000) + weights[510_000:])
    for packed in (first, second):
        await hub.registry.register(packed, "ann", _now())
        await hub.registry.approve(packed.digest, "bob", _now())
    async with asyncio.timeout(60):
        await asyncio.gather(*(site.fetch(first) for site in hub.sites))
        before = [site.session.meter.down for site in hub.sites]
        await asyncio.gather(*(site.fetch(second, first) for site in hub.sites))
    for site, down in zip(hub.sites, before, strict=True):
        assert site.blobs.digests() == {first.digest, *first.blobs, second.digest, *second.blobs}
        assert site.session.meter.down - down < 60_000


async def test_a_base_that_no_device_may_hold_is_not_used(hub: Hub) -> None:
    """A delta would tell the base to whoever has the target: a draft is no base, even for who knows its digest."""
    weights = os.urandom(1_500_000)
    secret, target = release("secret", weights), release("open", weights[:1_490_000] + os.urandom(10_000))
    for packed in (secret, target):
        await hub.registry.register(packed, "ann", _now())
    await hub.registry.approve(target.digest, "bob", _now())
    site = hub.sites[0]
    for data in secret.blobs.values():
        site.blobs.put(data)
    async with asyncio.timeout(60):
        await site.fetch(target, secret)
    assert site.session.meter.down > 1_500_000


async def test_a_draft_stays_at_the_hub(hub: Hub) -> None:
    packed = release("not yet")
    await hub.registry.register(packed, "ann", _now())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await hub.sites[0].fetch(packed)
    assert hub.sites[0].blobs.digests() == frozenset()


async def test_a_challenger_comes_up_and_becomes_a_draft(hub: Hub) -> None:
    packed, site = release("trained on site"), hub.sites[1]
    for data in (packed.manifest_bytes, *packed.blobs.values()):
        site.blobs.put(data)
    async with asyncio.timeout(60):
        await fetch_release(hub.challengers, DEVICES[1], packed.digest, len(packed.manifest_bytes))
    by = {"by": "site:d-two", "device": DEVICES[1], "run": "r-1"}
    assert await hub.challengers.register(packed.digest, **by, now=_now()) == "v1"
    assert await asyncio.to_thread(hub.registry.pull, packed.digest) == packed
