"""Blocks down and up: what several lack goes once, what arrives is checked, what was not asked for is left."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature, block_digests, digest_of
from landreeve.wire.codec import BLOCK_BYTES, Block, decode, decode_block, decode_missing, encode_missing
from landreeve.wire.messages import Want
from landreeve.wire.topics import DownTopic, DownWantTopic, SharedBlocksTopic, parse_topic
from landreeve_hub.errors import QuotaError, TransferError
from landreeve_hub.registry.blocks import BlockServer
from landreeve_hub.registry.quota import Quota
from landreeve_hub.registry.serving import Demand, Piece
from landreeve_hub.registry.uploads import Uploads
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert

DATA = bytes(range(256)) * 1000  # four blocks, the last one short
DIGEST = digest_of(DATA)
BLOCKS = block_digests(DATA, BLOCK_BYTES)


def release(card: str = "a card") -> Packed:
    """A release whose files nobody here looks into."""
    config = ReleaseConfig(
        model="delay",
        family="mlp",
        created="2026-05-01T00:00:00Z",
        signature=Signature(inputs=(), output="late"),
        gates=Gates(),
        lineage=Lineage(),
    )
    return pack({"card.md": card.encode(), "model.onnx": b"a graph"}, config)


def _drain(demand: Demand) -> list[Piece]:
    pieces = []
    while (piece := demand.next()) is not None:
        pieces.append(piece)
    return pieces


def test_what_two_devices_lack_is_sent_once_for_both() -> None:
    demand = Demand()
    demand.want("a", DIGEST, frozenset({0, 1, 2}))
    demand.want("b", DIGEST, frozenset({1, 2, 3}))
    assert _drain(demand) == [Piece(DIGEST, 1, ""), Piece(DIGEST, 2, ""), Piece(DIGEST, 0, "a"), Piece(DIGEST, 3, "b")]


def test_artifacts_take_turns() -> None:
    demand = Demand()
    demand.want("a", "x", frozenset({0, 1}))
    demand.want("a", "y", frozenset({0, 1}))
    assert [piece.digest for piece in _drain(demand)] == ["x", "y", "x", "y"]


@given(st.dictionaries(st.sampled_from("abc"), st.frozensets(st.integers(0, 40)), min_size=1))
def test_every_device_gets_exactly_what_it_lacks(lacks: dict[str, frozenset[int]]) -> None:
    demand = Demand()
    for device, missing in lacks.items():
        demand.want(device, DIGEST, missing)
    got: dict[str, set[int]] = {device: set() for device in lacks}
    for piece in _drain(demand):
        takers = [piece.device] if piece.device else [d for d, missing in lacks.items() if piece.index in missing]
        for device in takers:
            assert piece.index not in got[device]
            got[device].add(piece.index)
    assert got == {device: set(missing) for device, missing in lacks.items()}


class Wire:
    """Keeps what is published, as the broker would hand it on."""

    def __init__(self) -> None:
        self.frames: queue.Queue[tuple[str, bytes]] = queue.Queue()

    def publish_block(self, topic: str, frame: bytes) -> bool:
        self.frames.put((topic, frame))
        return True

    def next(self) -> tuple[object, Block]:
        topic, frame = self.frames.get(timeout=5)
        return parse_topic(topic), decode_block(frame)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


async def test_only_blobs_of_approved_or_assigned_releases_leave(tmp_path: Path, store: Store) -> None:
    packed, blobs, wire = release(), BlobStore(tmp_path / "blobs"), Wire()
    for data in (packed.manifest_bytes, *packed.blobs.values(), b"a secret of the hub"):
        blobs.put(data)
    server = BlockServer(store, blobs, wire, "f", bytes_per_s=1e9)
    server.start()
    row = {"digest": packed.digest, "model": "delay", "version": "v1", "state": "draft", "manifest_bytes": 1}
    await store.write(lambda c: upsert(c, tables.releases, row))
    graph = packed.manifest.layers[-1]
    everything = Want(bytes=0, missing="")
    server.on_want("d-1", graph.sha256, everything)
    server.on_want("d-1", digest_of(b"a secret of the hub"), everything)
    await store.write(lambda c: upsert(c, tables.releases, {**row, "state": "approved"}))
    await asyncio.sleep(0.15)  # a no is remembered for a tenth of a second
    server.on_want("d-1", packed.digest, Want(bytes=len(packed.manifest_bytes), missing="01"))
    topic, block = wire.next()
    assert isinstance(topic, DownTopic)
    assert (topic.device, block) == ("d-1", Block(packed.digest, 0, packed.manifest_bytes))
    server.stop()
    assert wire.frames.empty()


async def test_what_two_devices_want_at_once_is_broadcast(tmp_path: Path, store: Store) -> None:
    packed, blobs, wire = release(), BlobStore(tmp_path / "blobs"), Wire()
    for data in (packed.manifest_bytes, *packed.blobs.values()):
        blobs.put(data)
    row = {"device": "d-1", "model": "delay", "digest": packed.digest}
    await store.write(lambda c: upsert(c, tables.assignments, row))
    server = BlockServer(store, blobs, wire, "f", bytes_per_s=1e9)
    for device in ("d-1", "d-2"):
        server.on_want(device, packed.digest, Want(bytes=0, missing="01"))
    server.start()
    assert wire.next()[0] == SharedBlocksTopic("f", packed.digest)
    server.stop()
    assert wire.frames.empty()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "gone": Path.unlink,
    "other": lambda p: p.write_bytes(b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["manifest", "graph"])
async def test_what_the_disk_has_lost_is_sent_so_that_it_is_found_damaged_until_it_is_pushed_again(
    tmp_path: Path, store: Store, part: str, damage: str
) -> None:
    """A device gets as many bytes as it waits for, whatever has become of them; other releases go on as ever."""
    packed, other, blobs, wire = release(), release("another card"), BlobStore(tmp_path / "blobs"), Wire()
    for one in (packed, other):
        for data in (one.manifest_bytes, *one.blobs.values()):
            blobs.put(data)
        row = {"digest": one.digest, "model": "delay", "version": one.digest[:4], "state": "approved"}
        row |= {"manifest_bytes": len(one.manifest_bytes)}
        await store.write(lambda c, row=row: upsert(c, tables.releases, row))
    graph = packed.manifest.layer("model.onnx")
    assert graph is not None
    digest = packed.digest if part == "manifest" else graph.sha256
    data = packed.manifest_bytes if part == "manifest" else packed.blobs[digest]
    DAMAGE[damage](blobs.path(digest))
    server = BlockServer(store, blobs, wire, "f", bytes_per_s=1e9)
    server.start()
    everything = Want(bytes=len(data), missing="01")
    server.on_want("d-1", digest, everything)
    _, block = wire.next()
    assert len(block.data) == len(data)
    assert digest_of(block.data) != digest
    server.on_want("d-1", other.digest, Want(bytes=len(other.manifest_bytes), missing="01"))
    assert wire.next()[1].data == other.manifest_bytes
    blobs.put(data)
    server.on_want("d-1", digest, everything)
    assert wire.next()[1].data == data
    server.stop()


class Device:
    """A site that answers wants, in its own manner."""

    def __init__(self, answer: Callable[[Want], list[Block]]) -> None:
        self.wants: list[Want] = []
        self._answer = answer
        self.uploads: Uploads | None = None

    def heard(self, topic: str, payload: bytes, retain: bool) -> None:
        assert not retain
        parsed = parse_topic(topic)
        assert isinstance(parsed, DownWantTopic)
        want = decode(payload, Want)
        self.wants.append(want)
        assert self.uploads is not None
        for block in self._answer(want):
            self.uploads.on_block("d-1", block)


def _block(index: int) -> Block:
    return Block(DIGEST, index, DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])


def _uploads(tmp_path: Path, device: Device, store: Store, *, bytes_a_day: int = 10**9) -> Uploads:
    quota = Quota(store, bytes_a_day, lambda: datetime(2026, 5, 1, 12, tzinfo=UTC))
    device.uploads = Uploads(
        BlobStore(tmp_path / "blobs"), device.heard, "f", quota=quota, repair_s=0.02, patience_s=0.1
    )
    return device.uploads


async def test_an_upload_is_asked_for_until_it_is_whole(tmp_path: Path, store: Store) -> None:
    """Every answer but the last loses blocks and adds damaged ones."""
    device = Device(lambda want: [_block(min(decode_missing(want.missing, 4))), Block(DIGEST, 3, b"damaged")])
    path = await _uploads(tmp_path, device, store).request("d-1", DIGEST, len(DATA), BLOCKS)
    assert path.read_bytes() == DATA
    assert [want.missing for want in device.wants] == [encode_missing(set(range(n, 4))) for n in range(4)]


async def test_an_upload_that_the_disk_has_spoilt_is_fetched_once_more(tmp_path: Path, store: Store) -> None:
    device = Device(lambda want: [_block(index) for index in decode_missing(want.missing, 4)])
    uploads = _uploads(tmp_path, device, store)
    for wants in (1, 1):
        path = await uploads.request("d-1", DIGEST, len(DATA), BLOCKS)
        assert (path.read_bytes(), len(device.wants)) == (DATA, wants)
    path.write_bytes(DATA[:-1] + b"?")
    assert (await uploads.request("d-1", DIGEST, len(DATA), BLOCKS)).read_bytes() == DATA
    assert len(device.wants) == 2


async def test_blocks_of_another_device_or_artifact_are_left(tmp_path: Path, store: Store) -> None:
    uploads = _uploads(tmp_path, Device(lambda _want: []), store)
    asking = asyncio.create_task(uploads.request("d-1", DIGEST, len(DATA), BLOCKS))
    await asyncio.sleep(0.03)
    for index in range(4):
        uploads.on_block("d-2", _block(index))
    with pytest.raises(TransferError, match="4 blocks are missing"):
        await asking


async def test_a_blob_that_does_not_have_its_digest_is_not_kept(tmp_path: Path, store: Store) -> None:
    device = Device(lambda _want: [Block("a" * 64, 0, b"something else")])
    with pytest.raises(TransferError, match="dropped"):
        await _uploads(tmp_path, device, store).request("d-1", "a" * 64, 14)
    assert not BlobStore(tmp_path / "blobs").has("a" * 64)


async def test_a_quota_counts_an_artifact_once_however_often_it_is_tried(tmp_path: Path, store: Store) -> None:
    uploads = _uploads(tmp_path, Device(lambda _want: []), store, bytes_a_day=len(DATA) + 10)
    for _ in range(2):
        with pytest.raises(TransferError):
            await uploads.request("d-1", DIGEST, len(DATA), BLOCKS)
    with pytest.raises(QuotaError, match=r"transfer\.quota_mb"):
        await uploads.request("d-1", "b" * 64, 11)
