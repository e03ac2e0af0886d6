"""50 MB to 1, 50 and 200 devices: CPU of hub and broker for each MB delivered, by broadcast, by a stream for each
device, and by HTTP range from a plain FastAPI application, all over mutual TLS. Writes build/bench/broadcast.json.

The hub's rooms, mosquitto and uvicorn are processes of their own; devices are real connections in two processes
(broadcast_devices.py) that speak the block protocol, reports and lanes included, and compare every byte. What costs
most is measured on fewer MB: the figures are per MB. Everything shares the same cores: compare CPU, not seconds.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.blobs.store import BlobStore  # noqa: E402 - needs the path above
from landreeve.release.layout import Packed, pack  # noqa: E402
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature  # noqa: E402
from landreeve.wire.codec import Block  # noqa: E402
from landreeve_hub.broker.child import Broker, find_program  # noqa: E402
from landreeve_hub.broker.plan import BrokerPlan, Guests  # noqa: E402
from landreeve_hub.fleet.authority import Authority  # noqa: E402
from landreeve_hub.ingest.line import Address, Line  # noqa: E402
from landreeve_hub.ingest.receive import Receiver  # noqa: E402
from landreeve_hub.registry.blocks import BlockServer  # noqa: E402
from landreeve_hub.store import tables  # noqa: E402
from landreeve_hub.store.database import Store  # noqa: E402
from landreeve_hub.store.upsert import upsert  # noqa: E402

FLEET, DEVICES, PROCESSES = "bench", 200, 2
WHOLE_MB, PART_MB = 50, 5
HTTP_BAR = 5.0
LIMIT_S = 120.0
# way, devices, MB of the artifact
CASES = (
    ("broadcast", 1, WHOLE_MB), ("own stream", 1, WHOLE_MB), ("http", 1, WHOLE_MB),
    ("broadcast", 50, WHOLE_MB), ("own stream", 50, PART_MB), ("http", 50, PART_MB),
    ("broadcast", 200, WHOLE_MB), ("own stream", 200, PART_MB), ("http", 200, PART_MB),
)  # fmt: skip
Row = dict[str, object]


def _now() -> datetime:
    return datetime.now(UTC)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def artifact(megabytes: int) -> Packed:
    config = ReleaseConfig(
        model="bench", family="none", created="2026-05-01T00:00:00Z", signature=Signature(inputs=(), output="y"),
        gates=Gates(), lineage=Lineage(),
    )  # fmt: skip
    return pack({"weights.safetensors": os.urandom(megabytes * 1_000_000)}, config)


@dataclass
class Place:
    """What all processes share: keys, ports, the artifacts as files."""

    folder: Path
    broker_port: int
    http_port: int

    def artifact(self, megabytes: int) -> tuple[str, Path]:
        digest = (self.folder / f"{megabytes}.digest").read_text()
        return digest, self.folder / "blobs" / "sha256" / digest


class _Wants:
    def __init__(self, server: BlockServer) -> None:
        self.on_want = server.on_want

    def on_block(self, device: str, block: Block) -> None:
        raise AssertionError(f"nobody uploads here, {device} sent {block.index}")


def run_hub(place: Place) -> None:
    """The rooms of a hub that move blocks, until the standard input ends."""
    folder = place.folder
    store, blobs = Store(folder / "hub.db"), BlobStore(folder / "blobs")
    keys = folder / "keys"
    line = Line(Address("127.0.0.1", place.broker_port, folder / "ca.crt", keys / "hub.crt", keys / "hub.key"), FLEET)
    server = BlockServer(store, blobs, line, FLEET, bytes_per_s=400e6)
    receiver = Receiver(store, FLEET, {}, line.publish, _now, blocks=_Wants(server))
    line.on_message = receiver.take
    receiver.start()
    server.start()
    line.start()
    while not line.connected:
        time.sleep(0.05)
    print("ready", flush=True)
    sys.stdin.read()
    line.stop()
    receiver.stop()
    server.stop()
    store.close()


def run_http(place: Place) -> None:
    """What one would write with FastAPI: a route that serves a file, ranges included."""
    import ssl

    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    app = FastAPI()

    @app.get("/blobs/{digest}")
    async def blob(digest: str) -> FileResponse:
        return FileResponse(place.folder / "blobs" / "sha256" / digest, media_type="application/octet-stream")

    keys = place.folder / "keys"
    uvicorn.run(
        app, host="127.0.0.1", port=place.http_port, log_level="warning", access_log=False,
        ssl_certfile=str(keys / "server.crt"), ssl_keyfile=str(keys / "server.key"),
        ssl_ca_certs=str(place.folder / "ca.crt"), ssl_cert_reqs=ssl.CERT_REQUIRED,
    )  # fmt: skip


def prepare(folder: Path) -> tuple[Place, Authority]:
    """Keys for everybody, artifacts that may leave."""
    authority, keys = Authority(folder), folder / "keys"
    authority.init(_now())
    (folder / "ca.crt").write_text(authority.ca_pem)
    keys.mkdir(exist_ok=True)
    server = authority.issue_server("server", _now(), ["127.0.0.1", "localhost"])
    (keys / "server.crt").write_bytes(server.certificate.read_bytes())
    (keys / "server.key").write_bytes(server.key.read_bytes())
    for name in ("hub", *(f"d-{i}" for i in range(DEVICES))):
        pair = authority.issue_client(name, _now())
        (keys / f"{name}.crt").write_bytes(pair.certificate.read_bytes())
        (keys / f"{name}.key").write_bytes(pair.key.read_bytes())
    store, blobs = Store(folder / "hub.db"), BlobStore(folder / "blobs")
    for name in (f"d-{i}" for i in range(DEVICES)):
        row = {"id": name, "fleet": FLEET, "site": name}
        store.submit(lambda c, row=row: upsert(c, tables.devices, row)).result()
    for megabytes in (WHOLE_MB, PART_MB):
        packed = artifact(megabytes)
        for data in (packed.manifest_bytes, *packed.blobs.values()):
            blobs.put(data)
        (folder / f"{megabytes}.digest").write_text(max(packed.manifest.layers, key=lambda layer: layer.size).sha256)
        row = {"device": f"d-{megabytes}", "model": "bench", "digest": packed.digest}
        store.submit(lambda c, row=row: upsert(c, tables.assignments, row)).result()
    store.close()
    return Place(folder, _free_port(), _free_port()), authority


@contextlib.asynccontextmanager
async def child(place: Place, role: str) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = (str(place.folder), str(place.broker_port), str(place.http_port))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        role,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


def cpu_s(*pids: int) -> float:
    return sum(times.user + times.system for times in (psutil.Process(pid).cpu_times() for pid in pids))


async def fetch(place: Place, way: str, count: int, megabytes: int) -> dict[str, float]:
    """Let that many devices fetch; their figures, and the seconds until the last had all."""
    digest, path = place.artifact(megabytes)
    shares = [(first, min(count, first + -(-count // PROCESSES))) for first in range(0, count, -(-count // PROCESSES))]
    program = str(Path(__file__).with_name("broadcast_devices.py"))
    processes = []
    for first, last in shares:
        order = {
            "folder": str(place.folder), "fleet": FLEET, "mqtt": place.broker_port, "http": place.http_port, "way": way,
            "first": first, "last": last, "digest": digest, "path": str(path), "limit_s": LIMIT_S,
        }  # fmt: skip
        processes.append(
            await asyncio.create_subprocess_exec(
                sys.executable,
                program,
                json.dumps(order),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
    for process in processes:
        assert process.stdout is not None
        assert (await process.stdout.readline()).strip() == b"ready"
    began = time.monotonic()
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    found = [json.loads(out) for out, _ in answers]
    names = ("done", "delivered_mb", "received_mb", "own", "reports")
    return {
        "seconds": time.monotonic() - began,
        **{name: sum(each[name] for each in found) for name in names},
    }


async def listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.2)


async def measure(place: Place, broker: Broker) -> list[Row]:
    rows: list[Row] = []
    costs: dict[tuple[str, int], float] = {}
    async with child(place, "hub") as hub, child(place, "http") as http:
        assert hub.stdout is not None
        await hub.stdout.readline()
        await listening(place.http_port)
        for way, count, megabytes in CASES:
            servers = [http.pid] if way == "http" else [hub.pid, broker.pid]
            before = [cpu_s(pid) for pid in servers]
            figures = await fetch(place, way, count, megabytes)
            spent = [cpu_s(pid) - was for pid, was in zip(servers, before, strict=True)]
            delivered = figures["delivered_mb"]
            if figures["done"] < count:
                print(f"{way}, {count} devices: {figures['done']:.0f} had all after {LIMIT_S:.0f} s", flush=True)
            parts = [1000 * one / max(delivered, 1e-9) for one in spent]
            costs[way, count] = sum(parts)
            rows += _rows(f"{way}, {count} of {megabytes} MB", parts, figures, delivered)
    for count in (1, 50, 200):
        for other in ("own stream", "http"):
            ratio = costs[other, count] / costs["broadcast", count]
            rows.append(_ratio(f"{other} by broadcast, {count} devices", ratio, bar=(other, count) == ("http", 200)))
    return rows


def _rows(what: str, parts: list[float], figures: dict[str, float], delivered: float) -> list[Row]:
    names = ("HTTP server",) if len(parts) == 1 else ("hub", "broker")
    found: list[tuple[str, float, str]] = [
        (f"{what}: {name}", part, "ms CPU / MB delivered") for name, part in zip(names, parts, strict=True)
    ]
    found.append((f"{what}: sum", sum(parts), "ms CPU / MB delivered"))
    found.append((f"{what}: until the last device had all", figures["seconds"], "s"))
    found.append((f"{what}: given a stream of their own", figures["own"], "devices"))
    found.append((f"{what}: received for each byte needed", figures["received_mb"] / max(delivered, 1e-9), "times"))
    return [{"what": w, "value": round(v, 3), "unit": unit, "bar": None, "holds": None} for w, v, unit in found]


def _ratio(what: str, value: float, *, bar: bool) -> Row:
    says, holds = (f"≥ {HTTP_BAR:g}", value >= HTTP_BAR) if bar else (None, None)
    return {"what": f"CPU of {what}", "value": round(value, 2), "unit": "times", "bar": says, "holds": holds}


async def bench(folder: Path) -> list[Row]:
    place, authority = prepare(folder)
    keys, guests = folder / "keys", frozenset(f"d-{i}" for i in range(DEVICES))
    plan = BrokerPlan(
        FLEET, "127.0.0.1", place.broker_port, folder / "broker", authority.ca_path, keys / "server.crt",
        keys / "server.key",
    )  # fmt: skip
    broker = Broker(plan, find_program("mosquitto"), Guests(guests))
    await broker.start()
    try:
        return await measure(place, broker)
    finally:
        await broker.stop()


def main() -> None:
    if len(sys.argv) > 1:
        role, folder, broker_port, http_port = sys.argv[1:]
        place = Place(Path(folder), int(broker_port), int(http_port))
        run_hub(place) if role == "hub" else run_http(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(bench(Path(folder)))
    for each in rows:
        bar = f"   bar {each['bar']}: {'holds' if each['holds'] else 'missed'}" if each["bar"] else ""
        print(f"{each['what']:<66} {each['value']:>9} {each['unit']}{bar}")
    target = ROOT / "build/bench/broadcast.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
