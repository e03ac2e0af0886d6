"""Blobs: only what is verified is whole, and nothing that arrived is asked for twice."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from landreeve.blobs.errors import CorruptBlobError, FullDiskError, MissingBlobError
from landreeve.blobs.partial import MAX_UNLISTED_BYTES
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.wire.codec import BLOCK_BYTES

DATA = bytes(range(256)) * 900  # 3.5 blocks
DIGEST = digest_of(DATA)
DIGESTS = block_digests(DATA, BLOCK_BYTES)
BLOCKS = [DATA[i : i + BLOCK_BYTES] for i in range(0, len(DATA), BLOCK_BYTES)]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs with space", margin_bytes=0)


def test_put_is_found_again_by_its_digest(store: BlobStore) -> None:
    assert store.put(DATA) == DIGEST
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA
    assert store.digests() == {DIGEST}
    assert store.verify(DIGEST)


def test_unknown_blob_is_named_with_what_to_do(store: BlobStore) -> None:
    with pytest.raises(MissingBlobError, match=f"{DIGEST}.*fetch it"):
        store.read(DIGEST)
    assert not store.verify(DIGEST)


def test_bit_rot_is_never_read_as_the_blob(store: BlobStore) -> None:
    store.put(DATA)
    store.path(DIGEST).write_bytes(b"x" + DATA[1:])
    with pytest.raises(CorruptBlobError, match="no longer has its digest"):
        store.read(DIGEST)
    assert not store.verify(DIGEST)


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "ab", ""])
def test_a_name_that_is_no_digest_reaches_no_file(store: BlobStore, name: str) -> None:
    with pytest.raises(ValueError, match="no sha256"):
        store.path(name)


def test_blocks_in_any_order_make_the_whole(store: BlobStore) -> None:
    partial = store.begin(DIGEST, len(DATA), DIGESTS)
    assert partial.missing() == {0, 1, 2, 3}
    for index in (3, 0, 2, 1, 2):
        assert partial.write(index, BLOCKS[index])
    assert partial.complete() == store.path(DIGEST)
    assert store.read(DIGEST) == DATA
    assert store.partials() == frozenset()


def test_wrong_block_is_refused_and_stays_missing(store: BlobStore) -> None:
    partial = store.begin(DIGEST, len(DATA), DIGESTS)
    assert not partial.write(1, BLOCKS[0][:-1] + b"!")
    assert not partial.write(1, BLOCKS[1][:-1])
    assert not partial.write(4, b"")
    assert not partial.write(-1, BLOCKS[3])
    assert partial.missing() == {0, 1, 2, 3}


def test_incomplete_blob_never_becomes_whole(store: BlobStore) -> None:
    partial = store.begin(DIGEST, len(DATA), DIGESTS)
    partial.write(0, BLOCKS[0])
    with pytest.raises(CorruptBlobError, match="3 of 4 blocks are missing"):
        partial.complete()
    assert not store.has(DIGEST)
    assert store.begin(DIGEST, len(DATA), DIGESTS).missing() == {1, 2, 3}


def test_whole_with_another_digest_is_dropped(store: BlobStore) -> None:
    partial = store.begin(DIGEST, 10, None)
    assert partial.write(0, b"0123456789")
    with pytest.raises(CorruptBlobError, match="dropped"):
        partial.complete()
    assert not store.has(DIGEST)
    assert store.partials() == frozenset()


def test_small_blob_without_block_digests_is_verified_whole(store: BlobStore) -> None:
    partial = store.begin(DIGEST, len(DATA), None)
    for index, block in enumerate(BLOCKS):
        assert partial.write(index, block)
    partial.complete()
    assert store.read(DIGEST) == DATA


def test_large_blob_without_block_digests_is_refused(store: BlobStore) -> None:
    with pytest.raises(ValueError, match="without block digests"):
        store.begin(DIGEST, MAX_UNLISTED_BYTES + 1, None)


def test_resume_after_kill_9_asks_only_for_what_is_missing(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.write_bytes(DATA)
    script = (
        "import os, signal, sys; from pathlib import Path; from landreeve.blobs.store import BlobStore\n"
        "from landreeve.release.manifest import block_digests, digest_of\n"
        "data = Path(sys.argv[2]).read_bytes(); digests = block_digests(data, 65536)\n"
        "partial = BlobStore(Path(sys.argv[1]), 0).begin(digest_of(data), len(data), digests)\n"
        "partial.write(0, data[:65536]); partial.write(2, data[131072:196608]); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = store.path(DIGEST).parent.parent
    ended = subprocess.run([sys.executable, "-c", script, str(root), str(source)], check=False)
    assert ended.returncode == -signal.SIGKILL
    partial = BlobStore(root, 0).begin(DIGEST, len(DATA), DIGESTS)
    assert partial.missing() == {1, 3}


def test_block_torn_by_a_power_cut_is_missing_again(store: BlobStore) -> None:
    partial = store.begin(DIGEST, len(DATA), DIGESTS)
    for index, block in enumerate(BLOCKS):
        partial.write(index, block)
    (store.path(DIGEST).parent.parent / "partial" / DIGEST).write_bytes(DATA[: BLOCK_BYTES + 7])
    assert store.begin(DIGEST, len(DATA), DIGESTS).missing() == {1, 2, 3}


def test_full_disk_is_said_before_the_first_block(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, margin_bytes=1 << 60)
    with pytest.raises(FullDiskError, match=r"no room in .*bytes are needed.*are free") as caught:
        store.begin(DIGEST, len(DATA), DIGESTS)
    assert caught.value.needed_bytes == len(DATA) + (1 << 60)
    assert store.partials() == frozenset()
    with pytest.raises(FullDiskError):
        store.put(DATA)
    assert store.digests() == frozenset()


def test_room_is_taken_when_a_blob_begins(store: BlobStore) -> None:
    store.begin(DIGEST, len(DATA), DIGESTS)
    taken = (store.path(DIGEST).parent.parent / "partial" / DIGEST).stat().st_blocks * 512
    assert taken >= len(DATA)


def test_removed_blob_is_gone_with_its_partial(store: BlobStore) -> None:
    store.put(DATA)
    other = hashlib.sha256(b"other").hexdigest()
    store.begin(other, 5, None)
    for digest in (DIGEST, other, other):
        store.remove(digest)
    assert store.digests() == store.partials() == frozenset()


def test_what_a_kill_left_of_a_put_goes_once_nobody_can_be_writing_it(store: BlobStore) -> None:
    store.put(DATA)
    folder = store.path(DIGEST).parent
    for name, age_s in ((".old", 100_000), (".young", 60)):
        (folder / name).write_bytes(b"half")
        moment = time.time() - age_s
        os.utime(folder / name, (moment, moment))
    BlobStore(folder.parent, margin_bytes=0)
    assert {path.name for path in folder.iterdir()} == {DIGEST, ".young"}
