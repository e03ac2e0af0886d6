"""Sealed blobs: the address stays that of the plain bytes, and what the disk or a thief changes is never read."""

import os
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.blobs.errors import CorruptBlobError
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.sealed import state
from landreeve.sealed.blobs import HEAD_BYTES, TAG_BYTES, SealedCodec
from landreeve.sealed.errors import KeyMissingError
from landreeve.sealed.vault import Vault
from landreeve.wire.codec import BLOCK_BYTES

KEY = bytes(range(32))
OLD, NEW = "00" * 8, "11" * 8
DATA = b"canary-in-the-blob" * 12_000  # 3.3 blocks
DIGEST = digest_of(DATA)
DIGESTS = block_digests(DATA, BLOCK_BYTES)
CHUNK = BLOCK_BYTES + TAG_BYTES


def sealed_store(root: Path, keys: dict[str, bytes] | None = None) -> BlobStore:
    return BlobStore(root, margin_bytes=0, codec=SealedCodec(keys or {OLD: KEY}))


@given(st.binary(max_size=3 * BLOCK_BYTES), st.integers(0, 3 * BLOCK_BYTES), st.integers(0, 3 * BLOCK_BYTES))
@settings(max_examples=40, deadline=None)
def test_any_part_reads_as_the_plain_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, n: int
) -> None:
    store = sealed_store(tmp_path_factory.mktemp("blobs"))
    digest = store.put(data)
    assert digest == digest_of(data)
    assert store.size(digest) == len(data)
    with closing(store.open(digest)) as reader:
        assert reader.read_at(at, n) == data[at : at + n]


def test_no_plain_byte_run_is_on_the_disk_and_a_plain_store_shows_it(tmp_path: Path) -> None:
    for name, store in (("sealed", sealed_store(tmp_path / "s")), ("plain", BlobStore(tmp_path / "p", 0))):
        store.put(DATA)
        partial = store.begin(digest_of(DATA + b"!"), len(DATA) + 1, block_digests(DATA + b"!", BLOCK_BYTES))
        assert partial.write(0, DATA[:BLOCK_BYTES])
        found = [p for p in (tmp_path / name[0]).rglob("*") if p.is_file() and b"canary" in p.read_bytes()]
        assert len(found) == (0 if name == "sealed" else 2)


@pytest.mark.parametrize(
    "harm",
    [
        lambda raw: raw[:HEAD_BYTES] + bytes([raw[HEAD_BYTES] ^ 1]) + raw[HEAD_BYTES + 1 :],
        lambda raw: (
            raw[:HEAD_BYTES] + raw[HEAD_BYTES + CHUNK : HEAD_BYTES + 2 * CHUNK] * 2 + raw[HEAD_BYTES + 2 * CHUNK :]
        ),
        lambda raw: raw[: HEAD_BYTES + 2 * CHUNK],
        lambda raw: raw[:12] + bytes(32) + raw[44:],
        lambda raw: raw[:44] + (BLOCK_BYTES).to_bytes(8, "big") + raw[52 : 52 + CHUNK],
    ],
    ids=["flipped bit", "chunk repeated", "cut at a chunk", "other salt", "shortened with its length"],
)
def test_a_changed_file_is_never_read_as_the_blob(tmp_path: Path, harm: object) -> None:
    store = sealed_store(tmp_path)
    store.put(DATA)
    path = store.path(DIGEST)
    path.write_bytes(harm(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CorruptBlobError, match="no longer has its digest"):
        store.read(DIGEST)
    assert not store.verify(DIGEST)


def test_the_file_of_another_blob_does_not_pass(tmp_path: Path) -> None:
    store = sealed_store(tmp_path)
    other = store.put(b"other")
    store.put(DATA)
    store.path(DIGEST).write_bytes(store.path(other).read_bytes())
    with pytest.raises(CorruptBlobError):
        store.read_block(DIGEST, 0)  # without the whole's digest: the seal alone tells


def test_blocks_survive_a_restart_and_torn_ones_are_missing(tmp_path: Path) -> None:
    partial = sealed_store(tmp_path).begin(DIGEST, len(DATA), DIGESTS)
    for index in (0, 3):
        assert partial.write(index, DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
    store = sealed_store(tmp_path)
    arriving = tmp_path / "partial" / DIGEST
    with arriving.open("r+b") as file:  # a power cut left half of chunk 3
        file.seek(HEAD_BYTES + 3 * CHUNK + 10)
        file.write(bytes(100))
    again = store.begin(DIGEST, len(DATA), DIGESTS)
    assert again.missing() == {1, 2, 3}
    for index in again.missing():
        assert again.write(index, DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
    again.complete()
    assert store.read(DIGEST) == DATA


def test_an_unlisted_blob_begun_again_has_a_key_of_its_own(tmp_path: Path) -> None:
    """Else two contents of one block would be sealed under one nonce."""
    store, data = sealed_store(tmp_path), b"x" * 1000
    heads = []
    for _ in range(2):
        store.begin(digest_of(data), len(data)).write(0, os.urandom(1000))
        heads.append((tmp_path / "partial" / digest_of(data)).read_bytes()[:HEAD_BYTES])
    assert heads[0] != heads[1]


def test_a_torn_header_costs_only_what_had_arrived(tmp_path: Path) -> None:
    store = sealed_store(tmp_path)
    store.begin(DIGEST, len(DATA), DIGESTS).write(0, DATA[:BLOCK_BYTES])
    with (tmp_path / "partial" / DIGEST).open("r+b") as file:
        file.write(bytes(20))
    assert store.begin(DIGEST, len(DATA), DIGESTS).missing() == {0, 1, 2, 3}


def test_old_keys_open_new_keys_seal_and_a_lost_key_is_named(tmp_path: Path) -> None:
    sealed_store(tmp_path).put(DATA)
    both = SealedCodec({OLD: KEY, NEW: bytes(32)})
    store = BlobStore(tmp_path, 0, both)
    assert store.read(DIGEST) == DATA
    assert not both.is_current(store.path(DIGEST))
    assert both.is_current(store.path(store.put(b"new")))
    with pytest.raises(KeyMissingError, match=OLD):
        sealed_store(tmp_path, {NEW: bytes(32)}).read(DIGEST)


def test_a_plain_blob_that_begins_like_a_sealed_one_is_plain(tmp_path: Path) -> None:
    data = b"LRE1 is how this card begins, and it goes on for long enough to hold a whole header."
    digest = BlobStore(tmp_path, 0).put(data)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    vault, _ = Vault.create(tmp_path / "vault", f"file:{tmp_path}/key", tmp_path / "state")
    store = BlobStore(tmp_path, 0, SealedCodec(vault.keys("blobs")))
    assert store.read(digest) == data
    tally = state.seal(state.Parts(tmp_path, tmp_path / "none", (tmp_path,)), vault)
    assert (tally.current, tally.converted) == (1, 1)
    assert store.read(digest) == data


@pytest.mark.parametrize("is_sealed", [False, True])
def test_blobs_larger_than_the_system_reads_at_once_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sealed: bool
) -> None:
    store = sealed_store(tmp_path) if is_sealed else BlobStore(tmp_path, 0)
    digest, pread = store.put(DATA), os.pread
    monkeypatch.setattr(os, "pread", lambda handle, length, at: pread(handle, min(length, 50_000), at))  # 2 GiB, small
    assert store.read(digest) == DATA


def test_plain_files_are_read_while_a_store_is_converted(tmp_path: Path) -> None:
    BlobStore(tmp_path, 0).put(DATA)
    assert sealed_store(tmp_path).read(DIGEST) == DATA


def test_a_large_blob_takes_constant_memory(tmp_path: Path) -> None:
    store, block = sealed_store(tmp_path), bytes(BLOCK_BYTES)
    count = 320  # 20 MiB
    digest = digest_of(block * count)
    partial = store.begin(digest, count * BLOCK_BYTES, [digest_of(block)] * count)
    tracemalloc.start()
    for index in range(count):
        assert partial.write(index, block)
    partial.complete()
    assert store.verify(digest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20
