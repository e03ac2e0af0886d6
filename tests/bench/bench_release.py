"""What judging and serving a release costs, beside hashing its bytes once. Writes build/bench/release.json.

CPU seconds of this process, in one run. The release has 48 MB of weights and as much golden set; a graph of
20,000 nodes is scanned alone.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402 - needs the path above
import onnx  # noqa: E402
from landreeve.release.contents import check_contents  # noqa: E402
from landreeve.release.layout import Packed, pack  # noqa: E402
from landreeve.release.manifest import digest_of  # noqa: E402
from landreeve.release.vet import vet  # noqa: E402
from landreeve_hub.access.roles import Role  # noqa: E402

from tests.fakes.graphs import field, graph_of, tensors_of  # noqa: E402
from tests.hub.hub_without_broker import Hub, release  # noqa: E402

NODES, WEIGHT_BYTES = 20_000, 48_000_000


def cpu(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


async def cpu_of(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.process_time()
    await work()
    return time.process_time() - began


def row(what: str, value: float, unit: str, bar: float | None = None, *, holds: bool = True) -> dict[str, Any]:
    return {"what": what, "value": round(value, 3), "unit": unit, "bar": bar, "holds": holds}


def graphs() -> tuple[bytes, bytes]:
    """A graph of many nodes, and one of much weight."""
    node = field(1, field(1, b"x") + field(2, b"p") + field(4, b"Identity") + field(5, field(1, b"a") + field(3, 1)))
    weight = field(1, WEIGHT_BYTES // 4) + field(2, 1) + field(8, b"w") + field(9, b"\1" * WEIGHT_BYTES)
    return graph_of(nodes=node * NODES), graph_of(nodes=field(5, weight))


def judging(packed: Packed, nodes: bytes, weight: bytes) -> list[dict[str, Any]]:
    hashed = cpu(lambda: [digest_of(data) for data in packed.blobs.values()])
    whole = cpu(lambda: vet(packed.manifest_bytes, packed.blobs.__getitem__))
    scanned, parsed = cpu(lambda: check_contents("m.onnx", nodes)), cpu(lambda: onnx.load_model_from_string(nodes))
    heavy = cpu(lambda: check_contents("m.onnx", weight))
    return [
        row("hashing the release once", hashed, "CPU s"),
        row("judging all of it (with digests of its blocks)", whole, "CPU s"),
        row("judging against hashing", whole / hashed, "ratio", 5.0, holds=whole <= 5 * hashed),
        row("a graph of 20,000 nodes, scanned", scanned, "CPU s", 1.0, holds=scanned <= 1.0),
        row("the same, parsed by protobuf (not judged)", parsed, "CPU s"),
        row("48 MB of weights, scanned", heavy, "CPU s", 0.1, holds=heavy <= 0.1),
    ]


async def serving(packed: Packed, folder: Path) -> list[dict[str, Any]]:
    hub = Hub(folder)
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        await hub.services.releases.register(packed, "ann", hub.now)
        digest, data = max(packed.blobs.items(), key=lambda item: len(item[1]))
        url = f"/v2/delay/blobs/sha256:{digest}"
        got: list[httpx2.Response] = []

        async def pull() -> None:
            got.append(await ann.get(url))

        took = await cpu_of(pull)
        assert got[0].content == data
    hub.store.close()
    rate = len(data) / 1e6 / took
    return [row("a blob by /v2/, client and hub in one process", rate, "MB per CPU s", 50.0, holds=rate >= 50)]


def main() -> int:
    out = ROOT / "build" / "bench" / "release.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    nodes, weight = graphs()
    files = {"golden.safetensors": tensors_of(b"\2" * WEIGHT_BYTES), "definition.json": b'{"name": "delay"}'}
    config = release().config
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        rows = judging(pack({**files, "model.onnx": weight}, config), nodes, weight)
        rows += asyncio.run(serving(pack(files, config), Path(folder)))
    for one in rows:
        held = "" if one["bar"] is None else f"  (bar {one['bar']:g}: {'held' if one['holds'] else 'MISSED'})"
        print(f"{one['what']:<50} {one['value']:>10,} {one['unit']}{held}")
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["holds"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
