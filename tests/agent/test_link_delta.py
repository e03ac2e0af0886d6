"""Artifacts that come as a delta to one that is here, from hubs that are young, old, busy, lying or gone."""

import asyncio
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from landreeve.blobs.delta import Method, Named, encode
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.wire.codec import BLOCK_BYTES, Block, decode, decode_missing
from landreeve.wire.messages import Event, Want
from landreeve.wire.topics import Topic, UpWantTopic
from landreeve.wire.transfers import DELTAS, Lane, Offer
from landreeve_agent.link.transfer import Fetcher

BASE = os.urandom(20 * BLOCK_BYTES + 99)
TARGET = BASE[:100_000] + os.urandom(2000) + BASE[102_000:]
BLOCKS = block_digests(TARGET, BLOCK_BYTES)


class Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def named(data: bytes) -> Named:
    return Named(digest_of(data), Memory(data))


def delta_to(target: bytes) -> bytes:
    out = io.BytesIO()
    encode(Method.XOR, named(BASE), named(target), out)
    return out.getvalue()


def offer_of(delta: bytes) -> Offer:
    blocks = block_digests(delta, BLOCK_BYTES)
    return Offer(state="delta", delta=digest_of(delta), bytes=len(delta), blocks=blocks, base=digest_of(BASE))


DELTA = delta_to(TARGET)


@dataclass(frozen=True)
class Who:
    device: str = "d-1"
    fleet: str = "demo"
    broker_host: str = "broker.invalid"
    broker_port: int = 8883


@dataclass
class Line:
    """A hub with blobs that answers wants; ``offers`` are given one by one, the last for ever. None is silence."""

    offers: list[Offer | None] = field(default_factory=lambda: [offer_of(DELTA)])
    blobs: dict[str, bytes] = field(default_factory=lambda: {digest_of(data): data for data in (TARGET, DELTA)})
    old: bool = False
    identity: Who = field(default_factory=Who)
    on_block: Callable[[Block], bool] | None = None
    on_guide: Callable[[str, Offer | Lane], None] | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Want] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)

    def publish(self, topic: Topic, payload: bytes, *, qos: int) -> bool:
        assert isinstance(topic, UpWantTopic)
        want, loop = decode(payload, Want), asyncio.get_running_loop()
        self.asked.append(want)
        if DELTAS in want.speaks and not self.old:
            offer = self.offers.pop(0) if len(self.offers) > 1 else self.offers[0]
            if offer is not None:
                assert self.on_guide is not None
                loop.call_soon(self.on_guide, topic.digest, offer)
            return True
        data = self.blobs.get(topic.digest, b"")
        for index in decode_missing(want.missing, -(-len(data) // BLOCK_BYTES)):
            assert self.on_block is not None
            self.sent[topic.digest] = self.sent.get(topic.digest, 0) + 1
            part = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            loop.call_soon(self.on_block, Block(topic.digest, index, part))
        return True

    def share(self, digest: str) -> None: ...
    def unshare(self, digest: str) -> None: ...
    async def settle(self, backlog: int) -> None: ...


@dataclass
class Site:
    line: Line
    blobs: BlobStore
    told: list[Event] = field(default_factory=list)

    def fetch(self) -> "asyncio.Task[Path]":
        self.line.connected.set()
        fetcher = Fetcher(self.line, self.blobs, repair_s=0.02, tell=self.told.append)
        work = fetcher.fetch(digest_of(TARGET), len(TARGET), BLOCKS, bases=[digest_of(BASE)])
        return asyncio.create_task(work)

    async def fetched(self) -> dict[str, int]:
        """Blocks sent by artifact, once the target is here and right."""
        async with asyncio.timeout(10):
            assert (await self.fetch()).read_bytes() == TARGET
        assert self.blobs.digests() == {digest_of(BASE), digest_of(TARGET)}
        assert self.blobs.partials() == frozenset()
        return self.line.sent


def site(folder: Path, line: Line) -> Site:
    blobs = BlobStore(folder / "blobs", margin_bytes=0)
    blobs.put(BASE)
    return Site(line, blobs)


WHOLE = {digest_of(TARGET): len(BLOCKS)}


async def test_only_the_delta_travels(tmp_path: Path) -> None:
    line = Line()
    assert await site(tmp_path, line).fetched() == {digest_of(DELTA): 1}
    assert line.asked[0].bases == (digest_of(BASE),)


async def test_a_delta_that_is_being_made_is_waited_for(tmp_path: Path) -> None:
    making = Offer(state="making")
    assert await site(tmp_path, Line(offers=[making, making, offer_of(DELTA)])).fetched() == {digest_of(DELTA): 1}


async def test_an_older_hub_sends_whole_artifacts_and_is_not_asked_again(tmp_path: Path) -> None:
    line = Line(old=True)
    assert await site(tmp_path, line).fetched() == WHOLE
    assert len(line.asked) == 1


async def test_a_hub_that_answers_no_question_still_sends_blocks(tmp_path: Path) -> None:
    here = site(tmp_path, Line(offers=[None]))
    assert await here.fetched() == WHOLE
    assert here.told == []


async def test_a_delta_that_leads_elsewhere_is_told_and_the_whole_fetched(tmp_path: Path) -> None:
    other = delta_to(BASE[:-9] + b"elsewhere")
    line = Line(offers=[offer_of(other)])
    line.blobs[digest_of(other)] = other
    here = site(tmp_path, line)
    assert (await here.fetched())[digest_of(TARGET)] == len(BLOCKS)
    assert [(event.name, event.cause) for event in here.told] == [("transfer.delta_failed", "bad_delta")]


async def test_blocks_that_a_bad_delta_got_right_are_kept(tmp_path: Path) -> None:
    """A delta that claims to lead to the target and goes wrong half way."""
    wrong = bytearray(delta_to(TARGET[:-70_000] + os.urandom(70_000)))
    wrong[:88] = DELTA[:88]
    line = Line(offers=[offer_of(bytes(wrong))])
    line.blobs[digest_of(bytes(wrong))] = bytes(wrong)
    here = site(tmp_path, line)
    assert (await here.fetched())[digest_of(TARGET)] == 3
    assert "comes out wrong" in here.told[0].sentence


async def test_a_delta_that_never_arrives_is_given_up(tmp_path: Path) -> None:
    line = Line()
    del line.blobs[digest_of(DELTA)]
    here = site(tmp_path, line)
    assert await here.fetched() == WHOLE
    assert here.told[0].cause == "delta_stalled"


async def test_an_offer_of_a_base_that_is_not_here_is_refused(tmp_path: Path) -> None:
    offer = offer_of(DELTA)
    strange = Offer(state="delta", delta=offer.delta, bytes=offer.bytes, blocks=offer.blocks, base="e" * 64)
    here = site(tmp_path, Line(offers=[strange]))
    assert await here.fetched() == WHOLE
    assert here.told[0].cause == "bad_offer"


async def test_an_offer_with_the_wrong_number_of_blocks_is_refused(tmp_path: Path) -> None:
    short = Offer(state="delta", delta=digest_of(DELTA), bytes=len(DELTA), blocks=(), base=digest_of(BASE))
    here = site(tmp_path, Line(offers=[short]))
    assert await here.fetched() == WHOLE
    assert here.told[0].cause == "bad_release"


async def test_a_base_that_rotted_costs_only_the_delta(tmp_path: Path) -> None:
    here = site(tmp_path, Line())
    file = here.blobs.path(digest_of(BASE))
    file.write_bytes(bytes(len(BASE)))
    assert (await here.fetched())[digest_of(TARGET)] == len(BLOCKS)


async def test_a_fetch_goes_on_with_its_delta_after_a_kill(tmp_path: Path) -> None:
    big = delta_to(TARGET[:500_000] + os.urandom(len(TARGET) - 500_000))
    lost = Line(offers=[offer_of(big)])
    lost.blobs[digest_of(big)] = big[: 3 * BLOCK_BYTES]
    first = site(tmp_path, lost)
    attempt = first.fetch()
    async with asyncio.timeout(5):
        while len(lost.asked) < 3:  # noqa: ASYNC110 - waits for another task
            await asyncio.sleep(0.005)
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    again = Line(offers=[offer_of(big)])
    again.blobs[digest_of(big)] = big
    await site(tmp_path, again).fetch()
    assert again.sent[digest_of(big)] == -(-len(big) // BLOCK_BYTES) - 3
