"""What the next version costs on the wire, by kind of change, and what making and taking a delta costs. Writes
build/bench/delta.json.

Pairs are made on the spot (delta_pairs.py) and go through the hub's own choice (`landreeve_hub.registry.deltas`). Bytes
are those of the delta, in % of the file. The memory of a device is measured on a file of 200 MB, in a process of its
own: how much its peak grows while it decodes and writes every block into a blob store.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.blobs.delta import Method, Named, decode, encode, read_header  # noqa: E402 - needs the path above
from landreeve.blobs.store import BlobStore  # noqa: E402
from landreeve.release.manifest import block_digests  # noqa: E402
from landreeve.wire.codec import BLOCK_BYTES  # noqa: E402

if TYPE_CHECKING:
    from tests.bench.delta_pairs import Pair

BIG_BYTES = 200_000_000
MEMORY_BAR_MB = 32.0
Row = dict[str, object]


class Memory:
    """A blob in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def peak_kib() -> int:
    """The most memory this process ever held; `resource` would count what its parent held before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def named(data: bytes) -> Named:
    return Named(hashlib.sha256(data).hexdigest(), Memory(data))


def row(what: str, value: float, unit: str, bar: float | None = None) -> Row:
    says, holds = (None, None) if bar is None else (f"≤ {bar:g}", value <= bar)
    return {"what": what, "value": round(value, 3), "unit": unit, "bar": says, "holds": holds}


def measured(pair: "Pair") -> list[Row]:
    """Share of the whole, and the seconds of CPU on either side."""
    from landreeve_hub.registry.deltas import smallest  # with numpy, which a device has not yet

    cpu = time.process_time()
    made = smallest(named(pair.base), named(pair.target))
    encoding = time.process_time() - cpu
    if made is None:
        return [row(f"{pair.name}: sent whole", 100.0, "%", pair.bar)]
    with made.file as file:
        file.seek(0)
        header = read_header(file)
        cpu = time.process_time()
        result = b"".join(decode(file, header, Memory(pair.base) if header.base else None))
        decoding = time.process_time() - cpu
    assert result == pair.target
    share, how = 100 * made.size / len(pair.target), f"{made.method}{'' if header.base else ' without a base'}"
    return [
        row(f"{pair.name} ({how}, {len(pair.target) / 1e6:.1f} MB)", share, "%", pair.bar),
        row(f"{pair.name}: encoding at the hub", encoding, "s CPU"),
        row(f"{pair.name}: decoding on the device", decoding, "s CPU"),
    ]


DEVICE = """
import sys, time
from pathlib import Path
from tests.bench.bench_delta import peak_kib
from landreeve.blobs.store import BlobStore
from landreeve.wire.transfers import Offer
from landreeve_agent.link.delta import apply
root, digest, size, blocks, delta, base = sys.argv[1:]
blobs = BlobStore(Path(root))
partial = blobs.begin(digest, int(size), Path(blocks).read_text().split())
offer = Offer(state="delta", delta=delta, base=base)
before, cpu = peak_kib(), time.process_time()
apply(blobs, offer, digest, int(size), partial)
took, after = time.process_time() - cpu, peak_kib()
partial.complete()
print((after - before) / 1024, took)
"""


def moved() -> tuple[bytes, bytes]:
    base = os.urandom(BIG_BYTES)
    return base, b"".join(base[i : i + 900_000] + os.urandom(100_000) for i in range(0, BIG_BYTES, 1_000_000))


def trained() -> tuple[bytes, bytes]:
    """Weights of a usual spread, and after a step of which the size does not depend on theirs."""
    import numpy as np  # a device has it only once it decodes such a delta: its memory counts

    lots = np.random.default_rng(7)
    weights = lots.standard_normal(BIG_BYTES // 4, np.float32) * np.float32(0.02)
    steps = lots.standard_normal(weights.size, np.float32) * np.float32(1e-6)
    return weights.tobytes(), (weights + steps).tobytes()


def big(method: Method) -> Iterator[Row]:
    """A file of 200 MB, decoded as a device does: a tenth of it moved, or for ``words`` all of it trained on."""
    from landreeve_hub.registry import word_delta

    base, target = trained() if method is Method.WORDS else moved()
    with tempfile.TemporaryDirectory() as folder:
        blobs = BlobStore(Path(folder, "blobs"))
        path = Path(folder, "delta")
        with path.open("wb") as out:
            (word_delta.write if method is Method.WORDS else partial(encode, method))(named(base), named(target), out)
        held, delta = blobs.put(base), blobs.put(path.read_bytes())
        listed = Path(folder, "blocks")
        listed.write_text("\n".join(block_digests(target, BLOCK_BYTES)))
        digest, size = hashlib.sha256(target).hexdigest(), str(len(target))
        share = 100 * path.stat().st_size / len(target)
        del base, target
        arguments = [str(blobs.path(held).parents[1]), digest, size, str(listed), delta, held]
        done = subprocess.run(
            [sys.executable, "-c", DEVICE, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
        )
        with closing(blobs.open(digest)) as whole:
            assert whole.size == int(size)
    grown, took = map(float, done.stdout.split())
    yield row(f"200 MB by {method} ({share:.1f} %): memory a device's peak grows by", grown, "MB", MEMORY_BAR_MB)
    yield row(f"200 MB by {method}: decoding, verifying and writing on the device", took, "s CPU")


def hub_memory() -> Row:
    """What encoding 50 MB by every method adds to a process."""
    program = (
        "import os\nfrom tests.bench.bench_delta import named, peak_kib\n"
        "from landreeve_hub.registry.deltas import smallest\n"
        "base = os.urandom(24_000_000)\ntarget = base[:9_000_000] + os.urandom(9_000_000) + base[17_000_000:]\n"
        "a, b = named(base), named(target)\nbefore = peak_kib()\n"
        "smallest(a, b).file.close()\nprint((peak_kib() - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return row("24 MB by all methods: memory the hub's peak grows by", float(done.stdout), "MB", 512.0)


def main() -> None:
    from tests.bench.delta_pairs import pairs  # torch: the processes whose memory is measured do without

    rows: list[Row] = []
    for pair in pairs():
        rows += measured(pair)
        print(f"{rows[-3]['what']:<78} {rows[-3]['value']:>9} %" if len(rows) > 2 else rows[-1], flush=True)
    rows += [*big(Method.XOR), *big(Method.PATCH), *big(Method.WORDS), hub_memory()]
    for each in rows:
        bar = f"   bar {each['bar']}: {'holds' if each['holds'] else 'missed'}" if each["bar"] else ""
        print(f"{each['what']:<78} {each['value']:>9} {each['unit']}{bar}")
    target = ROOT / "build/bench/delta.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
