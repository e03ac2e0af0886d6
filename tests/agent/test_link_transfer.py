"""Artifacts over a line that loses, repeats, damages and dies, into a real blob store."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from landreeve.blobs.errors import FullDiskError
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.wire.codec import (
    BLOCK_BYTES,
    BadMessageError,
    Block,
    decode,
    decode_block,
    decode_missing,
    encode_missing,
)
from landreeve.wire.messages import Want
from landreeve.wire.topics import Topic, UpTopic, UpWantTopic
from landreeve.wire.transfers import Lane, Offer
from landreeve_agent.link.transfer import Fetcher, FetchFailedError
from landreeve_agent.link.upload import Uploader

DATA = os.urandom(9 * BLOCK_BYTES + 17)
DIGEST = digest_of(DATA)
BLOCKS = block_digests(DATA, BLOCK_BYTES)


@dataclass(frozen=True)
class Who:
    device: str = "d-1"
    fleet: str = "demo"
    broker_host: str = "broker.invalid"
    broker_port: int = 8883


@dataclass
class Line:
    """The session's side of a transfer. ``spoil`` may change, drop (None) or keep each block on its way."""

    data: bytes = DATA
    spoil: Callable[[int, bytes], bytes | None] = lambda _index, data: data
    identity: Who = field(default_factory=Who)
    on_block: Callable[[Block], bool] | None = None
    on_guide: Callable[[str, Offer | Lane], None] | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    wants: list[frozenset[int]] = field(default_factory=list)
    told: list[Want] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    sent: dict[int, bytes] = field(default_factory=dict)
    up: bool = True

    def publish(self, topic: Topic, payload: bytes, *, qos: int) -> bool:
        if not self.up:
            return False
        match topic:
            case UpWantTopic(_, _, digest):
                self.told.append(decode(payload, Want))
                if not self.told[-1].report:
                    self._answer(digest, self.told[-1])
            case UpTopic():
                block = decode_block(payload)
                self.sent[block.index] = block.data
        return True

    def share(self, digest: str) -> None:
        self.shared.append(digest)

    def unshare(self, digest: str) -> None:
        if digest in self.shared:
            self.shared.remove(digest)

    async def settle(self, backlog: int) -> None:
        await asyncio.sleep(0)

    def _answer(self, digest: str, want: Want) -> None:
        missing = decode_missing(want.missing, -(-want.bytes // BLOCK_BYTES))
        self.wants.append(missing)
        for index in missing:
            part = self.spoil(index, self.data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
            if part is not None:
                asyncio.get_running_loop().call_soon(self._deliver, Block(digest, index, part))

    def _deliver(self, block: Block) -> None:
        assert self.on_block is not None
        self.on_block(block)


def fetcher(line: Line, root: Path) -> Fetcher:
    line.connected.set()
    return Fetcher(line, BlobStore(root / "blobs", margin_bytes=0), repair_s=0.02)


async def test_lost_blocks_are_asked_for_again_and_only_those(tmp_path: Path) -> None:
    lost = {2, 5}
    line = Line(spoil=lambda index, data: None if index in lost and len(line.wants) == 1 else data)
    path = await fetcher(line, tmp_path).fetch(DIGEST, len(DATA), BLOCKS)
    assert path.read_bytes() == DATA
    assert line.wants == [frozenset(range(10)), frozenset(lost)]
    assert line.shared == []


async def test_damaged_block_is_dropped_alone(tmp_path: Path) -> None:
    line = Line(spoil=lambda index, data: bytes(len(data)) if index == 3 and len(line.wants) == 1 else data)
    path = await fetcher(line, tmp_path).fetch(DIGEST, len(DATA), BLOCKS)
    assert path.read_bytes() == DATA
    assert line.wants[1] == {3}


async def test_fetch_goes_on_after_a_power_cut(tmp_path: Path) -> None:
    first = Line(spoil=lambda index, data: data if index < 4 else None)
    attempt = asyncio.create_task(fetcher(first, tmp_path).fetch(DIGEST, len(DATA), BLOCKS))
    async with asyncio.timeout(5):
        while len(first.wants) < 2:  # noqa: ASYNC110 - waits for another task
            await asyncio.sleep(0.005)
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    second = Line()
    await fetcher(second, tmp_path).fetch(DIGEST, len(DATA), BLOCKS)
    assert second.wants == [frozenset(range(4, 10))]


async def test_artifact_that_is_here_is_not_fetched(tmp_path: Path) -> None:
    BlobStore(tmp_path / "blobs", margin_bytes=0).put(DATA)
    line = Line()
    assert (await fetcher(line, tmp_path).fetch(DIGEST, len(DATA), BLOCKS)).read_bytes() == DATA
    assert line.wants == []


@pytest.mark.parametrize(("listed", "spoilt"), [(None, range(10)), (BLOCKS, [3])], ids=["whole", "one block"])
async def test_artifact_that_is_always_damaged_is_given_up_in_words(
    tmp_path: Path, listed: tuple[str, ...] | None, spoilt: Sequence[int]
) -> None:
    line = Line(spoil=lambda index, data: bytes(len(data)) if index in spoilt else data)
    with pytest.raises(FetchFailedError, match="arrived damaged 3 times") as caught:
        async with asyncio.timeout(20):
            await fetcher(line, tmp_path).fetch(DIGEST, len(DATA), listed)
    assert caught.value.cause == "corrupt_artifact"
    # Mended at the hub, it comes; of what was whole nothing comes again.
    mended = Line()
    assert (await fetcher(mended, tmp_path).fetch(DIGEST, len(DATA), listed)).read_bytes() == DATA
    assert mended.wants == [frozenset(spoilt)]


async def test_two_who_want_the_same_share_one_transfer(tmp_path: Path) -> None:
    line = Line()
    both = fetcher(line, tmp_path)
    await asyncio.gather(both.fetch(DIGEST, len(DATA), BLOCKS), both.fetch(DIGEST, len(DATA), BLOCKS))
    assert len(line.wants) == 1


async def test_fetch_waits_for_the_connection(tmp_path: Path) -> None:
    line = Line()
    waiting = fetcher(line, tmp_path)
    line.connected.clear()
    attempt = asyncio.create_task(waiting.fetch(DIGEST, len(DATA), BLOCKS))
    await asyncio.sleep(0.05)
    assert line.wants == []
    line.connected.set()
    assert (await attempt).read_bytes() == DATA


async def test_full_disk_is_said_before_the_first_block(tmp_path: Path) -> None:
    line = Line()
    line.connected.set()
    greedy = Fetcher(line, BlobStore(tmp_path / "blobs", margin_bytes=2**60), repair_s=0.02)
    with pytest.raises(FetchFailedError) as caught:
        await greedy.fetch(DIGEST, len(DATA), BLOCKS)
    assert caught.value.cause == "disk_full"
    assert isinstance(caught.value.__cause__, FullDiskError)
    assert line.wants == []


async def test_blocks_nobody_waits_for_are_declined(tmp_path: Path) -> None:
    line = Line()
    fetcher(line, tmp_path)
    assert line.on_block is not None
    assert not line.on_block(Block(DIGEST, 0, b"x"))


async def test_a_device_told_to_reports_how_far_it_came_and_leaves_the_shared_stream(tmp_path: Path) -> None:
    line = Line(spoil=lambda index, data: data if index < 4 or any(want.report for want in line.told) else None)
    waiting = fetcher(line, tmp_path)
    attempt = asyncio.create_task(waiting.fetch(DIGEST, len(DATA), BLOCKS))
    async with asyncio.timeout(5):
        while not line.wants:  # noqa: ASYNC110 - waits for another task
            await asyncio.sleep(0.005)
        assert line.on_guide is not None
        line.on_guide(DIGEST, Lane(report_s=0.2, shared=False))
        assert (await attempt).read_bytes() == DATA
    told = [want for want in line.told if want.report]
    assert told
    assert all(want.own and decode_missing(want.missing, 10) == frozenset(range(4, 10)) for want in told)
    assert line.shared == []


async def uploaded(line: Line, uploader: Uploader, count: int) -> None:
    task = asyncio.create_task(uploader.run())
    async with asyncio.timeout(5):
        while len(line.sent) < count:  # noqa: ASYNC110 - waits for another task
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        (Want(bytes=len(DATA), missing=encode_missing({1, 9})), {1, 9}),
        (Want(bytes=0, missing=""), set(range(10))),
        (Want(bytes=0, missing=encode_missing({4})), {4}),
    ],
)
async def test_hub_gets_exactly_the_blocks_it_lacks(tmp_path: Path, want: Want, expected: set[int]) -> None:
    line, blobs = Line(), BlobStore(tmp_path / "blobs", margin_bytes=0)
    blobs.put(DATA)
    uploader = Uploader(line, blobs, bytes_per_s=1e9)
    uploader.on_want(DIGEST, want)
    await uploaded(line, uploader, len(expected))
    assert line.sent == {i: DATA[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in expected}


async def test_want_that_cannot_be_met_is_refused_with_the_reason(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs", margin_bytes=0)
    uploader = Uploader(Line(), blobs)
    with pytest.raises(BadMessageError, match="not on this device"):
        uploader.on_want(DIGEST, Want(bytes=len(DATA), missing="01"))
    blobs.put(DATA)
    with pytest.raises(BadMessageError, match="bytes, not 5"):
        uploader.on_want(DIGEST, Want(bytes=5, missing="01"))


async def test_upload_without_a_connection_stops_and_starts_with_the_next_want(tmp_path: Path) -> None:
    line, blobs = Line(up=False), BlobStore(tmp_path / "blobs", margin_bytes=0)
    blobs.put(DATA)
    uploader = Uploader(line, blobs, bytes_per_s=1e9)
    want = Want(bytes=len(DATA), missing=encode_missing(set(range(10))))
    uploader.on_want(DIGEST, want)
    task = asyncio.create_task(uploader.run())
    await asyncio.sleep(0.05)
    line.up = True
    assert line.sent == {}
    uploader.on_want(DIGEST, want)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await uploaded(line, uploader, 10)
