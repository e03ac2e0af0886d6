"""Any history of good, bad, repeated and torn blocks with restarts between: what becomes whole is right."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.wire.codec import BLOCK_BYTES

COUNT = 3
DATA = b"".join(bytes([n + 1]) * BLOCK_BYTES for n in range(COUNT - 1)) + b"the last block is short"
DIGEST, DIGESTS = digest_of(DATA), block_digests(DATA, BLOCK_BYTES)

BLOCK = st.integers(0, COUNT - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("good"), BLOCK),
        st.tuples(st.just("bad"), BLOCK),
        st.tuples(st.just("torn"), BLOCK),
        st.tuples(st.just("restart"), BLOCK),
    ),
    max_size=12,
)


def block(index: int) -> bytes:
    return DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


def tear(file: Path, index: int) -> None:
    """What a power cut leaves of a block that was being written."""
    with file.open("r+b") as opened:
        opened.seek(index * BLOCK_BYTES)
        opened.write(b"\xff" * 9)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_only_the_whole_and_right_blob_ever_appears(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder), margin_bytes=0)
        partial, have = store.begin(DIGEST, len(DATA), DIGESTS), set[int]()
        for what, index in steps:
            match what:
                case "good":
                    assert partial.write(index, block(index))
                    have.add(index)
                case "bad":
                    assert not partial.write(index, block(index)[:-1] + b"?")
                case "torn":
                    tear(Path(folder) / "partial" / DIGEST, index)
                    have.discard(index)
                    partial = store.begin(DIGEST, len(DATA), DIGESTS)
                case "restart":
                    partial = BlobStore(Path(folder), margin_bytes=0).begin(DIGEST, len(DATA), DIGESTS)
            assert partial.missing() == set(range(COUNT)) - have
            assert not store.has(DIGEST)
        for index in partial.missing():
            assert partial.write(index, block(index))
        partial.complete()
        assert store.read(DIGEST) == DATA
