"""What encryption at rest costs: store commits, reads, blobs and the capture spool, sealed by plain in one run.

    .venv/bin/python tests/bench/bench_at_rest.py

Ratios are of CPU time (user and system of this process) unless they say wall: other programs on the machine move
wall clocks, and fsync hides what a cipher costs. Prints a table and writes build/bench/at_rest.json.
"""

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from landreeve.blobs.codec import Codec
from landreeve.blobs.store import BlobStore
from landreeve.release.manifest import block_digests, digest_of
from landreeve.sealed import sqlite
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.files import SealedFiles
from landreeve.sealed.lines import LineSealer
from landreeve.wire.codec import BLOCK_BYTES
from landreeve_agent.serving.capture import Spool
from landreeve_agent.serving.control import Plan, Route, Secrets, Version
from landreeve_agent.serving.options import Options
from landreeve_agent.serving.supervise import WorkerProcess
from landreeve_agent.store.database import Database

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.agent.onnx_models import write_release

KEY = bytes(range(32))
KEYS = {"00" * 8: KEY}
COMMITS, ROUNDS, BLOB_BYTES, APPENDS = 300, 5, 32 * 2**20, 3000
LINE = b'{"id":"r-%07d","at":"2026-01-01T00:00:00Z","model":"delay","row":{"a":1.5,"b":"EWR"},"p":0.25,"us":120}\n'
Cost = tuple[float, float]


def cost(run: Callable[[], object]) -> Cost:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def commits(root: Path, keys: tuple[bytes, ...]) -> tuple[Cost, Cost]:
    """Single commits of ten rows, as the intake makes them, and a scan of all."""
    database = Database(root / "agent.db", keys=keys)

    async def write() -> None:
        for number in range(COMMITS):
            rows = [("m", f"{number}-{i}", "2026-01-01T00:00:00.000000Z", '{"x": 1}' * 20, "c") for i in range(10)]
            await database.write(
                lambda db, rows=rows: db.conn.executemany(  # type: ignore[misc]
                    'INSERT INTO samples (model, id, at, "row", captured) VALUES (?, ?, ?, ?, ?)', rows
                )
            )

    async def read() -> None:
        for _ in range(20):
            await database.read(lambda db: db.conn.execute('SELECT sum(length("row")) FROM samples').fetchone())

    try:
        return cost(lambda: asyncio.run(write())), cost(lambda: asyncio.run(read()))
    finally:
        database.close()


def blobs(root: Path, codec: Codec | None, data: bytes, digests: list[str]) -> tuple[Cost, Cost, Cost]:
    """Receiving block by block, verifying the whole, and single blocks in any order."""
    store, digest = BlobStore(root, 0, codec), digest_of(data)

    def receive() -> None:
        partial = store.begin(digest, len(data), digests)
        for index in range(len(digests)):
            partial.write(index, data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
        partial.complete()

    def sequential() -> None:
        assert store.verify(digest)

    def scattered() -> None:
        with closing(store.open(digest)) as reader:
            for index in range(len(digests)):
                reader.read_at(index * 37 % len(digests) * BLOCK_BYTES, BLOCK_BYTES)

    return cost(receive), cost(sequential), cost(scattered)


def spool(root: Path, sealer: LineSealer | None) -> Cost:
    """One append for each request of one row."""
    made = Spool(root, time.time_ns(), sealer=sealer)
    try:
        return cost(lambda: [made.append(LINE % n) for n in range(APPENDS)])
    finally:
        made.close()


def measured(root: Path) -> dict[str, tuple[list[Cost], list[Cost]]]:
    """Plain and sealed costs by what was done, in alternating rounds."""
    data = os.urandom(BLOB_BYTES)
    digests = block_digests(data, BLOCK_BYTES)
    found: dict[str, tuple[list[Cost], list[Cost]]] = {}
    for number in range(ROUNDS):
        for side, sealed in enumerate((False, True)):
            folder = root / f"{number}-{side}"
            folder.mkdir()
            written, read = commits(folder, (KEY,) if sealed else ())
            received, sequential, scattered = blobs(
                folder / "b", SealedCodec(KEYS) if sealed else None, data, list(digests)
            )
            appended = spool(folder / "s", LineSealer(KEYS) if sealed else None)
            named = {
                "store: 300 commits of 10 rows": written,
                "store: 20 scans of 3,000 rows": read,
                "blob: receive 32 MiB in blocks": received,
                "blob: verify 32 MiB": sequential,
                "blob: read 512 blocks of 64 KiB": scattered,
                "spool: 3,000 appends of one row": appended,
            }
            for what, one in named.items():
                found.setdefault(what, ([], []))[side].append(one)
    return found


def large_release(folder: Path, size: int) -> None:
    """A release whose graph also multiplies by a matrix of ``size`` squared weights, without effect."""
    write_release(folder)
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    draw = np.random.default_rng(0)
    weights = {
        "in": np.zeros((4, size), np.float32),
        "large": draw.normal(size=(size, size)).astype(np.float32),
        "out": np.zeros((size, 4), np.float32),
        "zero": np.zeros((), np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, f"bench.{n}") for n, a in weights.items())
    made = [("IsNaN", ("x",)), ("Where", ("1", "bench.zero", "x")), ("MatMul", ("2", "bench.in"))]
    made += [("MatMul", ("3", "bench.large")), ("MatMul", ("4", "bench.out")), ("Add", ("x", "5"))]
    nodes = [onnx.helper.make_node(kind, inputs, [str(n)]) for n, (kind, inputs) in enumerate(made, start=1)]
    for node in model.graph.node:
        node.input[:] = ["6" if name == "x" else name for name in node.input]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


async def worker_mb(root: Path, size: int, *, sealed: bool) -> tuple[float, float]:
    """What a worker holds that serves the release, and the most it held, in MB."""
    folder, options = root / "models" / "delay" / "abc", Options()
    large_release(folder, size) if size else write_release(folder)
    if sealed:
        files = SealedFiles(root, KEYS)
        for path in folder.iterdir():
            files.seal(path)
        options = Options(secrets=Secrets(spool={name: key.hex() for name, key in KEYS.items()}, files=files.opening))
    worker = WorkerProcess(root / "spool", options=options)
    await worker.start()
    try:
        await worker.apply((Route(model="delay", active=Version("delay", "1", "a" * 64, str(folder), Plan())),))
        pid = (await worker.status()).pid
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()  # noqa: ASYNC240 - not a disk's
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Vm")}
        return found["VmRSS"], found["VmHWM"]
    finally:
        await worker.stop()


def memory_rows() -> list[dict[str, object]]:
    """Memory of a worker with a small table's model and with one of 90 MB, plain and sealed; printed too."""
    rows = []
    for what, size, most in (("tabular", 0, 85.0), ("90 MB", 4750, 200.0)):
        for sealed in (False, True):
            with tempfile.TemporaryDirectory(prefix="landreeve-at-rest-") as folder:
                holds, peak = asyncio.run(worker_mb(Path(folder), size, sealed=sealed))
            name = f"worker, {what} model, {'sealed' if sealed else 'plain'}"
            print(f"{name}: holds {holds:.0f} MB, at most {peak:.0f}")
            rows += [row(f"{name}: holds", holds, "MB", most), row(f"{name}: held at most", peak, "MB")]
    return rows


def row(what: str, value: float, unit: str, bar: float | None = None, *, most: bool = True) -> dict[str, object]:
    """One line of the JSON; ``most`` says that the bar is an upper one."""
    holds = None if bar is None else (value <= bar if most else value >= bar)
    return {"what": what, "value": round(value, 3), "unit": unit, "bar": bar, "holds": holds}


def main() -> None:
    """Measure, print, write down."""
    with tempfile.TemporaryDirectory(prefix="landreeve-at-rest-") as folder:
        found = measured(Path(folder))
    rows = []
    print(f"{'what':38} {'plain cpu ms':>13} {'sealed cpu ms':>14} {'cpu ratio':>10} {'wall ratio':>11}")
    for what, (plain, sealed) in found.items():
        wall = median(s[0] / p[0] for p, s in zip(plain, sealed, strict=True))
        before, after = median(p[1] for p in plain), median(s[1] for s in sealed)
        print(f"{what:38} {before * 1e3:13.1f} {after * 1e3:14.1f} {after / before:10.2f} {wall:11.2f}")
        rows.append(row(f"{what}, sealed by plain, wall", wall, "x"))
        rows.append(row(f"{what}, sealed by plain, CPU", after / before, "x", 4.0))
    for what in ("blob: receive 32 MiB in blocks", "blob: verify 32 MiB"):
        speed = BLOB_BYTES / 1e6 / median(one[1] for one in found[what][1])
        rows.append(row(f"{what}, sealed", speed, "MB/CPU s", 100, most=False))
        print(f"{what}, sealed: {speed:,.0f} MB per CPU second")
    per_row = median(one[1] for one in found["spool: 3,000 appends of one row"][1]) / APPENDS * 1e6
    rows.append(row("spool: one row, sealed", per_row, "CPU µs", 25))
    print(f"spool: one row, sealed: {per_row:.1f} CPU µs")
    rows += memory_rows()
    print(f"SQLCipher on SQLite {sqlite.module().sqlite_version}; plain SQLite {sqlite3.sqlite_version}")
    target = Path(__file__).parents[2] / "build" / "bench" / "at_rest.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
