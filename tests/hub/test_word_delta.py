"""Deltas of the method ``words``: right for any two files, small for weights that were trained on, and no way in."""

import hashlib
import io
import random
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.blobs import words
from landreeve.blobs.delta import BadDeltaError, Header, Method, Named, decode, read_header
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests
from landreeve.wire.codec import BLOCK_BYTES
from landreeve.wire.messages import Want
from landreeve.wire.transfers import WORDS, Offer
from landreeve_agent.link.delta import apply
from landreeve_hub.registry import word_delta
from landreeve_hub.registry.blocks import BlockServer
from landreeve_hub.registry.deltas import DeltaCache, Workshop, smallest
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert

RANDOM = np.random.default_rng(7)
WEIGHTS = RANDOM.normal(0, 0.05, 400_000).astype(np.float32)
STEPS = (RANDOM.normal(0, 1e-5, WEIGHTS.size) * np.repeat(2.0 ** RANDOM.integers(-3, 3, 800), 500)).astype(np.float32)
BASE = b"ab" + WEIGHTS.tobytes() + bytes(300) + b"end"
TUNED = b"ab" + (WEIGHTS + STEPS).tobytes() + bytes(300) + b"end"


class Memory:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def named(data: bytes) -> Named:
    return Named(hashlib.sha256(data).hexdigest(), Memory(data))


def made(base: bytes, target: bytes) -> bytes:
    out = io.BytesIO()
    word_delta.write(named(base), named(target), out)
    return out.getvalue()


def result(delta: bytes, base: bytes) -> bytes:
    file = io.BytesIO(delta)
    return b"".join(decode(file, read_header(file), Memory(base)))


def framed(chunks: bytes, size: int, base: bytes = BASE) -> bytes:
    """A delta whose frame holds exactly these bytes."""
    header = Header(Method.WORDS, hashlib.sha256(base).hexdigest(), len(base), "a" * 64, size)
    return header.encode() + zstandard.ZstdCompressor().compress(chunks)


FLOATS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=60).map(
    lambda bits: struct.pack(f"<{len(bits)}I", *bits)
)


@given(FLOATS, FLOATS, st.binary(max_size=5))
@settings(max_examples=40)
def test_any_bits_come_back(old: bytes, new: bytes, edge: bytes) -> None:
    """Infinities, NaNs, both zeros, the largest steps there are: told as words whatever the hub would choose."""
    count = min(len(old), len(new)) // 4
    before = words.ordered(np.frombuffer(old, np.uint8), 0, count)
    steps = words.ordered(np.frombuffer(new, np.uint8), 0, count) - before
    runs = np.arange(-(-count // 2) if count > 1 else 0).astype(np.int8)
    scales = words.Scales(2 if count > 1 else 0, runs, np.zeros(1, np.int8))
    codes, low = words.told(steps[words.by_group(words.expected(before, scales, 300))])
    head = words.Head(words.WORDS, 0, 1, 300, scales.run, 4 * count, len(edge))
    chunk = head.encode() + scales.encode() + codes.tobytes() + b"".join(low)
    base = edge + old
    assert result(framed(chunk, 4 * count, base), base) == new[: 4 * count]


@given(st.binary(min_size=1, max_size=400), st.binary(min_size=1, max_size=400))
def test_any_file_leads_to_any_other(base: bytes, target: bytes) -> None:
    assert result(made(base, target), base) == target


@pytest.mark.parametrize(
    ("base", "target"),
    [
        (BASE, TUNED),
        (BASE, BASE),
        (BASE, TUNED[:700_000] + b"grown" + TUNED[700_000:]),
        (BASE, TUNED[:-90_001]),
        (TUNED[:1000], TUNED),
        (BASE, random.Random(1).randbytes(150_000)),
    ],
    ids=["trained on", "same", "shifted half way", "shorter", "short base", "unlike"],
)
def test_files_of_many_chunks_come_back(base: bytes, target: bytes) -> None:
    assert result(made(base, target), base) == target


def test_what_moved_little_costs_little() -> None:
    """Against the other methods, and where the new file is shifted by some bytes, which undoes them altogether."""
    base, straight = BASE[:200_000], TUNED[:200_000]
    sizes = {}
    for name, target in (("straight", straight), ("shifted", straight[:90_000] + b"grown" + straight[90_000:])):
        best, former = smallest(named(base), named(target)), smallest(named(base), named(target), "")
        assert best is not None
        assert former is not None
        with best.file, former.file:
            assert (best.method, former.method == Method.WORDS) == (Method.WORDS, False)
            sizes[name] = (best.size / len(target), best.size / former.size)
    assert sizes["straight"][1] < 0.95
    assert sizes["shifted"][0] < sizes["straight"][0] * 1.06


def test_scales_of_runs_and_places_are_found_where_steps_have_them() -> None:
    kernel = np.resize(2.0 ** np.array([0, 3, 0, -3, 0, 4, 0, 1, 0]), WEIGHTS.size)
    before, after = (
        words.ordered(np.frombuffer(weights.astype(np.float32).tobytes(), np.uint8), 0, WEIGHTS.size)
        for weights in (WEIGHTS, WEIGHTS + STEPS * kernel)
    )
    _, scales = word_delta._scales(before, after - before)
    assert scales.run in {64, 128, 256, 512}
    assert scales.places.size
    assert scales.places.size % 9 == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    base, target = BASE[:40_000], TUNED[:40_000]
    damaged = bytearray(made(base, target))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(result(bytes(damaged), base)) >= 0
    except (BadDeltaError, ValueError):
        return


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=0, max_size=4000),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(0, 200),
    st.integers(1, 3000),
)
def test_noise_in_a_chunk_is_refused_or_harmless(noise: bytes, way: int, phase: int, run: int, length: int) -> None:
    """What stands in a chunk is not believed: only `BadDeltaError` leaves, whatever it holds."""
    head = words.Head(way, phase, run * 7 % 90, 0, run, length, run).encode()
    try:
        assert len(result(framed(head + noise, length), BASE)) == length
    except BadDeltaError:
        return


HEADS = {
    "no way known": ((7, 0, 0, 0, 0, 800, 0), "way 7"),
    "nothing in it": ((words.RAW, 0, 0, 0, 0, 0, 0), "chunk of 0 bytes"),
    "more than is left": ((words.RAW, 0, 0, 0, 0, 801, 0), "chunk of 801 bytes"),
    "beyond the base": ((words.BYTES, 0, 0, 0, 0, 800, len(BASE) - 799), "0 bytes|800 bytes of the base"),
    "beyond all": ((words.BYTES, 0, 0, 0, 0, 800, 2**64 - 1), "800 bytes of the base"),
    "a phase of four": ((words.WORDS, 4, 0, 0, 0, 800, 0), "from byte 4"),
    "a period of more words": ((words.WORDS, 0, 201, 0, 0, 800, 0), "period 201"),
    "runs that would fill memory": ((words.WORDS, 0, 0, 0, 2**32 - 1, 800, 0), "runs of 4294967295"),
    "an unknown code": ((words.WORDS, 0, 0, 0, 0, 800, 0), "told as 255"),
}


@pytest.mark.parametrize(("fields", "says"), HEADS.values(), ids=HEADS)
def test_a_chunk_that_cannot_be_is_refused(fields: tuple[int, ...], says: str) -> None:
    with pytest.raises(BadDeltaError, match=says):
        result(framed(words.HEAD.pack(*fields) + b"\xff" * 4000, 800), BASE)


def test_what_goes_on_after_its_end_or_ends_early_is_refused() -> None:
    chunk = words.Head(words.RAW, 0, 0, 0, 0, 3, 0).encode() + b"abc"
    assert result(framed(chunk, 3), BASE) == b"abc"
    for chunks, size in ((chunk + b"x", 3), (chunk, 4), (chunk[:-1], 3)):
        with pytest.raises(BadDeltaError):
            result(framed(chunks, size), BASE)


def test_a_device_writes_blocks_of_what_it_decodes(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, margin_bytes=0)
    target = TUNED[:300_000] + b"grown" + TUNED[300_000:]
    held, delta = blobs.put(BASE), blobs.put(made(BASE, target))
    digest = hashlib.sha256(target).hexdigest()
    partial = blobs.begin(digest, len(target), block_digests(target, BLOCK_BYTES))
    apply(blobs, Offer(state="delta", delta=delta, base=held), digest, len(target), partial)
    assert partial.complete().read_bytes() == target


def test_only_who_reads_words_is_offered_them(tmp_path: Path) -> None:
    """Both kinds are made and kept beside each other, over a restart of the hub."""
    blobs = BlobStore(tmp_path / "blobs", margin_bytes=0)
    held, wanted = blobs.put(BASE[:60_000]), blobs.put(TUNED[:60_000])

    def methods() -> list[str]:
        workshop = Workshop(blobs, DeltaCache(tmp_path / "deltas", 10**8))
        workshop.start()
        found = []
        for kind in ("", WORDS):
            while (offer := workshop.offer(wanted, [held], kind)).state == "making":
                time.sleep(0.01)
            found.append(offer.method)
        workshop.stop()
        return found

    assert methods() == [Method.XOR, Method.WORDS]
    assert methods() == [Method.XOR, Method.WORDS]
    assert len(list((tmp_path / "deltas" / "index").iterdir())) == 2


def test_the_format_stays_what_it_is() -> None:
    """Hubs and boxes of other versions must agree on every bit: the order of groups and of the words in them too."""
    places = np.arange(200)
    old = (((places * 37 % 101) - 50.0) * 2.0**-9).astype(np.float32)
    new = (old * (1.0 + (places % 7 - 3) * 2.0**-12)).astype(np.float32)
    before, after = (words.ordered(np.frombuffer(part.tobytes(), np.uint8), 0, 200) for part in (old, new))
    scales = words.Scales(50, np.array([1, 0, -1, 2], np.int8), np.array([0, 2, 3], np.int8))
    codes, low = words.told((after - before)[words.by_group(words.expected(before, scales, 300))])
    chunk = words.Head(words.WORDS, 0, 3, 300, 50, 800, 0).encode() + scales.encode() + codes.tobytes() + b"".join(low)
    assert hashlib.sha256(chunk).hexdigest() == "15778f79bbcc5d7144799742f023852a759cd51d29f59b5ceb49350868f2dfba"
    assert result(framed(chunk, 800, old.tobytes()), old.tobytes()) == new.tobytes()


class Asked(Workshop):
    """Notes which kind of delta devices are offered."""

    kinds: list[str]

    def offer(self, target: str, bases: Sequence[str], kind: str = "") -> Offer:
        self.kinds.append(kind)
        return Offer(state="whole")


class Nobody:
    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None: ...
    def publish_block(self, topic: str, frame: bytes) -> bool:
        return False


async def test_a_device_that_does_not_say_so_is_never_offered_words(tmp_path: Path) -> None:
    blobs, store = BlobStore(tmp_path / "blobs", margin_bytes=0), Store(tmp_path / "hub.db")
    digest = blobs.put(b'{"schemaVersion": 2}')
    await store.write(lambda c: upsert(c, tables.assignments, {"device": "d-1", "model": "m", "digest": digest}))
    workshop = Asked(blobs, DeltaCache(tmp_path / "deltas", 10**6))
    workshop.kinds = []
    server = BlockServer(store, blobs, Nobody(), "f", bytes_per_s=1e6, workshop=workshop)
    server._allowed._by_release = {digest: {digest: blobs.size(digest)}}
    for speaks in (("deltas",), ("lanes", "deltas", "words")):
        server.on_want("d-1", digest, Want(bytes=0, missing="", speaks=speaks))
    assert workshop.kinds == ["", WORDS]
    store.close()
