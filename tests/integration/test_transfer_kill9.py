"""A fetching process killed again and again, at moments nobody chose: what arrived stays, and nothing wrong appears."""

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import digest_of

from tests.agent.test_link_delta import BASE, TARGET, delta_to

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import asyncio, sys
from pathlib import Path
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.wire.codec import BLOCK_BYTES, Block, decode, decode_missing
from landreeve.wire.messages import Want
from landreeve.wire.transfers import DELTAS, Offer
from landreeve_agent.link.transfer import Fetcher
from tests.agent.test_link_delta import Line, offer_of

folder, way = Path(sys.argv[1]), sys.argv[2]
base, target, delta = ((folder / name).read_bytes() for name in ("base", "target", "delta"))

class Slow(Line):
    def publish(self, topic, payload, *, qos):
        want = decode(payload, Want)
        if DELTAS in want.speaks:
            offer = offer_of(delta) if way == "delta" else Offer(state="whole")
            asyncio.get_running_loop().call_soon(self.on_guide, topic.digest, offer)
            return True
        data = self.blobs[topic.digest]
        missing = decode_missing(want.missing, -(-len(data) // BLOCK_BYTES))
        print("asked", len(missing), flush=True)
        for place, index in enumerate(sorted(missing)):
            part = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            asyncio.get_running_loop().call_later(0.01 * place, self.arrive, Block(topic.digest, index, part))
        return True
    def arrive(self, block):
        self.on_block(block)
        print("block", block.index, flush=True)

async def main():
    line = Slow(blobs={digest_of(data): data for data in (target, delta)})
    line.connected.set()
    fetcher = Fetcher(line, BlobStore(folder / "blobs", margin_bytes=0), repair_s=0.5)
    blocks = block_digests(target, BLOCK_BYTES)
    await fetcher.fetch(digest_of(target), len(target), blocks, bases=[digest_of(base)])
    print("done", flush=True)

asyncio.run(main())
"""


def start(folder: Path, way: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), way], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


MANY = [pytest.param("whole", 12, marks=pytest.mark.slow), pytest.param("delta", 12, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("way", "kills"), [("whole", 1), ("delta", 2), *MANY])
def test_a_fetch_killed_at_any_block_goes_on_where_it_was(tmp_path: Path, way: str, kills: int) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")  # shown when it fails
    lots, target = random.Random(seed), TARGET[:300_000] + os.urandom(len(TARGET) - 300_000)
    for name, data in (("base", BASE), ("target", target), ("delta", delta_to(target))):
        (tmp_path / name).write_bytes(data)
    blobs = BlobStore(tmp_path / "blobs", margin_bytes=0)
    blobs.put(BASE)
    asked: list[int] = []
    for _ in range(kills):
        with start(tmp_path, way) as child:
            assert child.stdout is not None
            until = lots.randint(1, 2 if kills > 2 else 4)
            for line in child.stdout:
                word, _, number = line.strip().partition(" ")
                asked += [int(number)] if word == "asked" else []
                until -= word == "block"
                if until == 0 or word == "done":
                    child.send_signal(signal.SIGKILL)
                    break
        assert blobs.digests() <= {digest_of(BASE), digest_of(target), digest_of((tmp_path / "delta").read_bytes())}
        assert all(blobs.verify(digest) for digest in blobs.digests())
    with start(tmp_path, way) as child:
        assert child.wait(60) == 0
    assert blobs.read(digest_of(target)) == target
    assert blobs.digests() == {digest_of(BASE), digest_of(target)}
    assert blobs.partials() == frozenset()
    assert all(later < earlier for earlier, later in itertools.pairwise(asked))
