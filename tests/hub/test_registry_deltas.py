"""Deltas at the hub: the smallest way is offered, and the cache is bounded and survives crashes."""

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from landreeve.blobs.delta import Method, decode, read_header
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import digest_of
from landreeve.wire.codec import BLOCK_BYTES
from landreeve.wire.transfers import Offer
from landreeve_hub.registry.deltas import ENTRY_BYTES, NO_BASE, DeltaCache, Entry, Workshop

BASE = os.urandom(300_000)
TUNED = BASE[:1000] + os.urandom(500) + BASE[1500:]
GROWN = BASE[:5000] + os.urandom(77) + BASE[5000:]
OTHER = os.urandom(300_000)
TEXT = b"the same words " * 20_000


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs", margin_bytes=0)
    for data in (BASE, TUNED, GROWN, OTHER, TEXT):
        store.put(data)
    return store


@pytest.fixture
def workshop(tmp_path: Path, blobs: BlobStore) -> Iterator[Workshop]:
    made = Workshop(blobs, DeltaCache(tmp_path / "deltas", 10**6))
    made.start()
    yield made
    made.stop()


def offered(workshop: Workshop, target: bytes, *bases: bytes) -> Offer:
    deadline = time.monotonic() + 20
    while (offer := workshop.offer(digest_of(target), [digest_of(base) for base in bases])).state == "making":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return offer


@pytest.mark.parametrize(
    ("target", "base", "method"), [(TUNED, BASE, Method.XOR), (GROWN, BASE, Method.PATCH), (TEXT, BASE, None)]
)
def test_the_smallest_way_is_offered(
    workshop: Workshop, blobs: BlobStore, target: bytes, base: bytes, method: Method | None
) -> None:
    offer = offered(workshop, target, base)
    file = io.BytesIO(workshop.cache.store.read(offer.delta))
    header = read_header(file)
    assert method is None or offer.method == method
    assert offer.bytes < 5000
    assert len(offer.blocks) == -(-offer.bytes // BLOCK_BYTES)
    known = blobs.open(header.base) if header.base else None
    assert b"".join(decode(file, header, known)) == target
    if known is not None:
        known.close()


def test_nothing_is_offered_that_is_larger_than_the_whole(workshop: Workshop) -> None:
    assert offered(workshop, OTHER, BASE) == Offer(state="whole")
    assert offered(workshop, OTHER) == Offer(state="whole")


def test_a_base_that_is_not_here_is_passed_over(workshop: Workshop) -> None:
    assert offered(workshop, TUNED, b"unknown", OTHER[:5], BASE).base == digest_of(BASE)


def test_what_was_made_is_found_after_a_restart(tmp_path: Path, blobs: BlobStore, workshop: Workshop) -> None:
    before = offered(workshop, TUNED, BASE)
    assert Workshop(blobs, DeltaCache(tmp_path / "deltas", 10**6)).offer(digest_of(TUNED), [digest_of(BASE)]) == before


def test_what_a_crash_leaves_is_removed_or_whole(tmp_path: Path, workshop: Workshop) -> None:
    kept, lost = offered(workshop, TUNED, BASE), offered(workshop, GROWN, BASE)
    folder = tmp_path / "deltas"
    orphan = workshop.cache.store.put(b"a delta whose entry was not written yet")
    workshop.cache.store.begin("d" * 64, 10, ["e" * 64])
    workshop.cache.store.remove(lost.delta)
    (folder / "index" / f"{'a' * 64}-{NO_BASE}.json").write_bytes(b'{"target": "')
    again = DeltaCache(folder, 10**6)
    assert again.store.digests() == {kept.delta}
    assert again.store.partials() == frozenset()
    assert orphan not in again.store.digests()
    assert again.find(digest_of(TUNED), digest_of(BASE)) is not None
    assert again.find(digest_of(GROWN), digest_of(BASE)) is None


def test_the_cache_keeps_what_is_used_and_stays_within_its_bytes(tmp_path: Path, blobs: BlobStore) -> None:
    targets = [OTHER[:100_000] + os.urandom(40_000) for _ in range(5)]
    base = blobs.put(OTHER[:140_000])
    for target in targets:
        blobs.put(target)
    cache = DeltaCache(tmp_path / "deltas", 100_000)
    workshop = Workshop(blobs, cache)
    workshop.start()
    for target in targets:
        offered(workshop, target, OTHER[:140_000])
        assert cache.find(digest_of(targets[0]), base) is not None
        assert sum(cache.store.size(digest) for digest in cache.store.digests()) <= 100_000
    workshop.stop()
    assert cache.find(digest_of(targets[1]), base) is None


def test_ways_that_gain_nothing_are_bounded_like_all_others(tmp_path: Path) -> None:
    cache = DeltaCache(tmp_path, 100_000)
    for number in range(200):
        cache.keep(Entry("a" * 64, f"{number:064x}", "", 0, "", ()), None)
    assert len(list((tmp_path / "index").iterdir())) <= 100_000 / ENTRY_BYTES
    assert cache.find("a" * 64, f"{199:064x}") is not None


def test_an_entry_that_is_no_text_is_removed_at_the_start(tmp_path: Path) -> None:
    DeltaCache(tmp_path, 100_000)
    (tmp_path / "index" / "damaged.json").write_bytes(b'{"target":"\xff"}')
    DeltaCache(tmp_path, 100_000)
    assert list((tmp_path / "index").iterdir()) == []


def test_a_target_that_cannot_be_read_is_sent_whole(tmp_path: Path, blobs: BlobStore) -> None:
    workshop = Workshop(blobs, DeltaCache(tmp_path / "deltas", 10**6))
    assert workshop.offer(digest_of(TUNED), [digest_of(BASE)]).state == "making"
    blobs.remove(digest_of(TUNED))
    workshop.start()
    deadline = time.monotonic() + 10
    while workshop.offer(digest_of(TUNED), []).state == "making" or threading.active_count() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workshop.stop()
