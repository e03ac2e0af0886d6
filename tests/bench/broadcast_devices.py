"""Many devices in one process, for bench_broadcast.py: MQTT 3.1.1 spoken by hand over mutual TLS, as cheap as can be,
so that what is measured is the other side. Every block is compared with the artifact.

``python broadcast_devices.py ORDER``; says ``ready`` once all are connected, begins at a line on its input, and answers
with a line of JSON.
"""

import asyncio
import json
import mmap
import random
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.codec import BLOCK_BYTES, decode, encode, encode_missing  # noqa: E402 - needs the path above
from landreeve.wire.messages import Want  # noqa: E402
from landreeve.wire.transfers import LANES, Lane  # noqa: E402

REPAIR_S = 2.0
HEAD_BYTES = 40
RANGE_BYTES = 1024 * 1024
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def packet(kind: int, body: bytes) -> bytes:
    length, coded = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        coded.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([kind]) + bytes(coded) + body


def text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


@dataclass
class Order:
    folder: str
    fleet: str
    mqtt: int
    http: int
    way: str
    first: int
    last: int
    digest: str
    path: str
    limit_s: float


@dataclass
class Device:
    """One connection and what it still lacks."""

    name: str
    order: Order
    whole: mmap.mmap
    streams: Streams
    lacks: set[int] = field(default_factory=set)
    received: int = 0
    delivered: int = 0
    reports: int = 0
    moved_at: float = 0.0
    report_s: float = 0.0
    own: bool = False

    def __post_init__(self) -> None:
        base = f"lr/1/{self.order.fleet}"
        self.up = f"{base}/up/{self.name}/want/{self.order.digest}"
        self.down = f"{base}/dn/{self.name}/#"
        self.shared = f"{base}/art/{self.order.digest}/blocks"
        self.lacks = set(range(-(-len(self.whole) // BLOCK_BYTES)))
        self.own = self.order.way == "own stream"

    async def join(self) -> None:
        """CONNECT and SUBSCRIBE."""
        reader, writer = self.streams
        writer.write(packet(0x10, text("MQTT") + b"\x04\x02\x00\x3c" + text(self.name)))
        answer = await reader.readexactly(4)
        assert answer[3] == 0, f"{self.name} was refused: {answer[3]}"
        topics = [self.down] if self.own else [self.down, self.shared]
        writer.write(packet(0x82, b"\x00\x01" + b"".join(text(topic) + b"\x00" for topic in topics)))

    def say(self, *, report: bool = False) -> None:
        want = Want(
            bytes=len(self.whole), missing=encode_missing(self.lacks), speaks=(LANES,), report=report, own=self.own
        )
        self.reports += report
        self.streams[1].write(packet(0x30, text(self.up) + encode(want)))

    async def fetch(self) -> None:
        """Until nothing is missing."""
        self.moved_at = time.monotonic()
        self.say()
        speaking = asyncio.create_task(self._speak())
        try:
            while self.lacks:
                await self._take(*await self._packet())
        finally:
            speaking.cancel()
            self.streams[1].close()

    async def _speak(self) -> None:
        told_at = time.monotonic() - random.random()
        while True:
            await asyncio.sleep(0.25)
            if time.monotonic() - self.moved_at > REPAIR_S:
                self.moved_at = time.monotonic()
                self.say()
            elif self.report_s and time.monotonic() - told_at >= self.report_s:
                told_at = time.monotonic()
                self.say(report=True)

    async def _packet(self) -> tuple[int, bytes]:
        reader = self.streams[0]
        kind = (await reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            digit = (await reader.readexactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                return kind, await reader.readexactly(length)

    async def _take(self, kind: int, body: bytes) -> None:
        if kind & 0xF0 != 0x30:
            return
        at = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:at].decode()
        if kind & 0x06:
            self.streams[1].write(packet(0x40, body[at : at + 2]))
            at += 2
        if topic.endswith("/blocks"):
            self._block(memoryview(body)[at:])
        elif "/lane/" in topic:
            self._lane(decode(body[at:], Lane))

    def _block(self, frame: memoryview) -> None:
        self.received += len(frame) - HEAD_BYTES
        index = int.from_bytes(frame[36:HEAD_BYTES], "big")
        if index in self.lacks:
            start = index * BLOCK_BYTES
            assert frame[HEAD_BYTES:] == memoryview(self.whole)[start : start + BLOCK_BYTES]
            self.lacks.discard(index)
            self.delivered += len(frame) - HEAD_BYTES
            self.moved_at = time.monotonic()

    def _lane(self, lane: Lane) -> None:
        self.report_s = lane.report_s
        if not lane.shared and not self.own:
            self.own = True
            self.streams[1].write(packet(0xA2, b"\x00\x02" + text(self.shared)))


async def download(device: Device) -> None:
    """The artifact by HTTP ranges of 1 MiB over one connection."""
    reader, writer = device.streams
    size = len(device.whole)
    for start in range(0, size, RANGE_BYTES):
        end = min(start + RANGE_BYTES, size)
        wanted = f"GET /blobs/{device.order.digest} HTTP/1.1\r\nhost: bench\r\nrange: bytes={start}-{end - 1}\r\n\r\n"
        writer.write(wanted.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 206"), head[:80]
        data = await reader.readexactly(end - start)
        assert data == device.whole[start:end]
        device.received += len(data)
        device.delivered += len(data)
    device.lacks.clear()
    writer.close()


async def enter(order: Order, number: int, whole: mmap.mmap) -> Device:
    name, keys = f"d-{number}", Path(order.folder, "keys")
    context = ssl.create_default_context(cafile=str(Path(order.folder, "ca.crt")))
    context.load_cert_chain(keys / f"{name}.crt", keys / f"{name}.key")
    port = order.http if order.way == "http" else order.mqtt
    streams = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=4 * BLOCK_BYTES)
    device = Device(name, order, whole, streams)
    if order.way != "http":
        await device.join()
    return device


def opened(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


async def run(order: Order) -> dict[str, Any]:
    whole = opened(order.path)
    devices = [await enter(order, number, whole) for number in range(order.first, order.last)]
    await asyncio.sleep(0.3)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    work = [asyncio.create_task(download(d) if order.way == "http" else d.fetch()) for d in devices]
    done, late = await asyncio.wait(work, timeout=order.limit_s)
    for task in late:
        task.cancel()
    for task in done:
        task.result()
    return {
        "done": sum(1 for device in devices if not device.lacks),
        "delivered_mb": sum(device.delivered for device in devices) / 1e6,
        "received_mb": sum(device.received for device in devices) / 1e6,
        "own": sum(device.own for device in devices),
        "reports": sum(device.reports for device in devices),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Order(**json.loads(sys.argv[1]))))), flush=True)
