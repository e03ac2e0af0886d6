"""50 MB to 1, 50 and 200 devices: CPU of hub and broker for each MB delivered, by broadcast, by a stream for each
device, and by HTTP range from a plain FastAPI application, all over mutual TLS. Writes build/bench/broadcast.json.

The hub's rooms, mosquitto and uvicorn are processes of their own; devices are real connections in two processes
(broadcast_devices.py) that speak the block protocol, reports and lanes included, and compare every byte. What costs
most is measured on fewer MB: the figures are per MB. Everything shares the same cores: compare CPU, not seconds.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
LIMIT_S = 180.0
BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Case:
    """``tls``: mutual TLS, as in the field; without it only to tell what the ciphers cost."""

    way: str
    devices: int
    megabytes: int
    tls: bool = True

    def __str__(self) -> str:
        plain = "" if self.tls else ", without TLS"
        return f"{self.way}, {self.devices} of {self.megabytes} MB{plain}"


CASES = (
    Case("broadcast", 1, WHOLE_MB), Case("own stream", 1, WHOLE_MB), Case("http", 1, WHOLE_MB),
    Case("broadcast", 50, WHOLE_MB), Case("own stream", 50, PART_MB), Case("http", 50, PART_MB),
    Case("floor", 200, PART_MB), Case("broadcast", 200, WHOLE_MB), Case("own stream", 200, PART_MB),
    Case("http", 200, PART_MB),
    Case("floor", 200, PART_MB, tls=False), Case("broadcast", 200, WHOLE_MB, tls=False),
    Case("http", 200, PART_MB, tls=False),
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
    """What all processes share: keys, ports, the artifacts as files. ``plain_port``: the broker's without TLS."""

    folder: Path
    broker_port: int
    plain_port: int
    http_port: int
    floor_port: int

    def artifact(self, megabytes: int) -> tuple[str, Path]:
        digest = (self.folder / f"{megabytes}.digest").read_text()
        return digest, self.folder / "blobs" / "sha256" / digest

    def port(self, case: Case) -> int:
        ports = {"http": self.http_port, "floor": self.floor_port}
        return ports.get(case.way, self.broker_port if case.tls else self.plain_port)


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


def run_http(place: Place, *, tls: bool) -> None:
    """What one would write with FastAPI: a route that serves a file, ranges included."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    app = FastAPI()

    @app.get("/blobs/{digest}")
    async def blob(digest: str) -> FileResponse:
        return FileResponse(place.folder / "blobs" / "sha256" / digest, media_type="application/octet-stream")

    keys = place.folder / "keys"
    secure: dict[str, Any] = {
        "ssl_certfile": str(keys / "server.crt"), "ssl_keyfile": str(keys / "server.key"),
        "ssl_ca_certs": str(place.folder / "ca.crt"), "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }  # fmt: skip
    options = secure if tls else {}
    uvicorn.run(app, host="127.0.0.1", port=place.http_port, log_level="warning", access_log=False, **options)


def run_floor(place: Place, *, tls: bool) -> None:
    """No server at all: every block from memory to each of the sockets in turn. What OpenSSL and the kernel take for
    that, no server of this machine can do without."""
    blocks = place.artifact(PART_MB)[1].read_bytes()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(place.folder / "ca.crt"))
    context.load_cert_chain(place.folder / "keys" / "server.crt", place.folder / "keys" / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", place.floor_port), backlog=DEVICES) as server:
        print("ready", flush=True)
        peers = []
        for _ in range(DEVICES):
            peer = server.accept()[0]
            peers.append(context.wrap_socket(peer, server_side=True) if tls else peer)
        for peer in peers:
            peer.recv(1)
        for at in range(0, len(blocks), BLOCK_BYTES):
            for peer in peers:
                peer.sendall(blocks[at : at + BLOCK_BYTES])
        sys.stdin.read()


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
    return Place(folder, *(_free_port() for _ in range(4))), authority


@contextlib.asynccontextmanager
async def child(place: Place, role: str) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = [str(value) for value in dataclasses.astuple(place)]
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


def cpu_s(*pids: int) -> list[float]:
    return [times.user + times.system for times in (psutil.Process(pid).cpu_times() for pid in pids)]


def peak_mb(pid: int) -> float:
    """The most memory the process ever held."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


async def fetch(place: Place, case: Case, servers: Sequence[int]) -> dict[str, float]:
    """Let the devices fetch; their figures, the CPU of each server from the moment all were connected, and the
    seconds until the last had all."""
    digest, path = place.artifact(case.megabytes)
    each = -(-case.devices // PROCESSES)
    program = str(Path(__file__).with_name("broadcast_devices.py"))
    processes = []
    for first in range(0, case.devices, each):
        order = {
            "folder": str(place.folder), "fleet": FLEET, "port": place.port(case), "way": case.way, "tls": case.tls,
            "first": first, "last": min(case.devices, first + each), "digest": digest, "path": str(path),
            "limit_s": LIMIT_S,
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
    began, before = time.monotonic(), cpu_s(*servers)
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    spent = [now - was for now, was in zip(cpu_s(*servers), before, strict=True)]
    found = [json.loads(out) for out, _ in answers]
    figures = {name: sum(each[name] for each in found) for name in found[0]}
    seconds = time.monotonic() - began
    return {**figures, "seconds": seconds, "cpu_s": sum(spent), "hub_s": spent[0], "peak_mb": peak_mb(servers[-1])}


async def listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def plain_broker(place: Place) -> AsyncIterator[int]:
    """mosquitto with the hub over TLS and devices without; its process id."""
    keys, file = place.folder / "keys", place.folder / "plain.conf"
    secure = (
        f"cafile {place.folder / 'ca.crt'}", f"certfile {keys / 'server.crt'}", f"keyfile {keys / 'server.key'}",
        "require_certificate true", "use_identity_as_username true",
    )  # fmt: skip
    listeners = (f"listener {place.broker_port} 127.0.0.1", *secure, f"listener {place.plain_port} 127.0.0.1")
    file.write_text(
        "\n".join(("user root", "log_type none", f"max_packet_size {2**21}", "allow_anonymous true", *listeners, ""))
    )
    program = str(find_program("mosquitto").path)
    process = await asyncio.create_subprocess_exec(program, "-c", str(file))
    try:
        await listening(place.broker_port)
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def hub_on(place: Place, broker: int) -> AsyncIterator[list[int]]:
    async with child(place, "hub") as hub:
        assert hub.stdout is not None
        await hub.stdout.readline()
        yield [hub.pid, broker]


@contextlib.asynccontextmanager
async def alone(place: Place, case: Case) -> AsyncIterator[list[int]]:
    """The server of a way that has no hub."""
    async with child(place, f"{case.way}{'' if case.tls else '-plain'}") as server:
        if case.way == "http":
            await listening(place.http_port)
        else:
            assert server.stdout is not None
            await server.stdout.readline()
        yield [server.pid]


async def measure(place: Place, broker: Broker, cases: Sequence[Case]) -> list[Row]:
    found: dict[Case, dict[str, float]] = {}
    by_server = [[c for c in cases if c.way in {"http", "floor"}], [c for c in cases if c.way not in {"http", "floor"}]]
    for case in by_server[0]:
        async with alone(place, case) as servers:
            found[case] = await fetch(place, case, servers)
    assert broker.pid is not None
    async with hub_on(place, broker.pid) as servers:
        for case in (case for case in by_server[1] if case.tls):
            found[case] = await fetch(place, case, servers)
    await broker.stop()
    for case in (case for case in by_server[1] if not case.tls):
        async with plain_broker(place) as pid, hub_on(place, pid) as servers:
            found[case] = await fetch(place, case, servers)
    return [*(row for case in cases for row in _rows(case, found[case])), *_ratios(found)]


def _rows(case: Case, figures: dict[str, float]) -> list[Row]:
    delivered = max(figures["delivered_mb"], 1e-9)
    per_mb = "ms CPU / MB delivered"
    rows = [_row(f"{case}: CPU of server{'s' if _has_hub(case) else ''}", 1000 * figures["cpu_s"] / delivered, per_mb)]
    if _has_hub(case):
        rows += [
            _row(f"{case}: of which the hub", 1000 * figures["hub_s"] / delivered, per_mb),
            _row(f"{case}: received for each byte needed", figures["received_mb"] / delivered, "times"),
            _row(f"{case}: peak memory of the broker so far", figures["peak_mb"], "MB"),
            _row(f"{case}: given a stream of their own", figures["own"], "devices"),
        ]
    if figures["done"] < case.devices:
        rows.append(_row(f"{case}: had not all after {LIMIT_S:.0f} s", case.devices - figures["done"], "devices"))
    return [*rows, _row(f"{case}: until the last device had all", figures["seconds"], "s")]


def _has_hub(case: Case) -> bool:
    return case.way not in {"http", "floor"}


def _ratios(found: dict[Case, dict[str, float]]) -> list[Row]:
    """Every way against broadcast to as many; the bar is on HTTP at 200, and the floor says what is possible."""
    costs = {(c.way, c.devices, c.tls): f["cpu_s"] / max(f["delivered_mb"], 1e-9) for c, f in found.items()}
    rows = []
    for (way, devices, tls), cost in costs.items():
        same = ("broadcast", devices, tls)
        if way == "broadcast" or same not in costs:
            continue
        barred = (way, devices, tls) == ("http", DEVICES, True)
        plain = "" if tls else ", without TLS"
        rows.append(_row(f"CPU of {way} by broadcast, {devices} devices{plain}", cost / costs[same], "times", barred))
        if way == "http" and ("floor", devices, tls) in costs:
            most = cost / costs["floor", devices, tls]
            rows.append(_row(f"CPU of http by floor: the most any server could gain{plain}", most, "times"))
    return rows


def _row(what: str, value: float, unit: str, barred: bool = False) -> Row:
    says, holds = (f"≥ {HTTP_BAR:g}", value >= HTTP_BAR) if barred else (None, None)
    return {"what": what, "value": round(value, 3), "unit": unit, "bar": says, "holds": holds}


async def bench(folder: Path, cases: Sequence[Case]) -> list[Row]:
    place, authority = prepare(folder)
    keys, guests = folder / "keys", frozenset(f"d-{i}" for i in range(DEVICES))
    plan = BrokerPlan(
        FLEET, "127.0.0.1", place.broker_port, folder / "broker", authority.ca_path, keys / "server.crt",
        keys / "server.key",
    )  # fmt: skip
    broker = Broker(plan, find_program("mosquitto"), Guests(guests))
    await broker.start()
    try:
        return await measure(place, broker, cases)
    finally:
        await broker.stop()


def play(role: str, place: Place) -> None:
    kind, _, plain = role.partition("-")
    if kind == "hub":
        run_hub(place)
    elif kind == "http":
        run_http(place, tls=not plain)
    else:
        run_floor(place, tls=not plain)


def main() -> None:
    """All cases, or those whose names contain one of the arguments (``"broadcast, 200"``)."""
    if len(sys.argv) == 1 + 1 + len(dataclasses.fields(Place)):
        role, folder, *ports = sys.argv[1:]
        play(role, Place(Path(folder), *map(int, ports)))
        return
    cases = [case for case in CASES if not sys.argv[1:] or any(wanted in str(case) for wanted in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(bench(Path(folder), cases))
    for each in rows:
        bar = f"   bar {each['bar']}: {'holds' if each['holds'] else 'missed'}" if each["bar"] else ""
        print(f"{each['what']:<70} {each['value']:>9} {each['unit']}{bar}")
    if cases != list(CASES):
        return
    target = ROOT / "build/bench/broadcast.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
