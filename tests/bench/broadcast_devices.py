"""Many devices in one process, for bench_broadcast.py: MQTT 3.1.1 and HTTP spoken by hand over mutual TLS, as cheap as
can be, since whoever receives takes the cores from those who are measured. Every block is compared with the artifact.

``python broadcast_devices.py ORDER``; says ``ready`` once all are connected, begins at a line on its input, and answers
with a line of JSON.
"""

import json
import random
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.codec import BLOCK_BYTES, decode, encode, encode_missing  # noqa: E402 - needs the path above
from landreeve.wire.messages import Want  # noqa: E402
from landreeve.wire.transfers import LANES, Lane  # noqa: E402

REPAIR_S = 2.0
HEAD_BYTES = 40
RANGE_BYTES = 1024 * 1024
ROOM_BYTES = 4 * BLOCK_BYTES
RESUBSCRIBED = b"\x00\x02"


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
    port: int
    way: str
    first: int
    last: int
    digest: str
    path: str
    limit_s: float
    tls: bool = True


class Stream:
    """A connection read without waiting; what came and is not taken yet lies in ``room[start:end]``."""

    def __init__(self, name: str, order: Order) -> None:
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", order.port), timeout=30)
        if order.tls:
            keys = Path(order.folder, "keys")
            context = ssl.create_default_context(cafile=str(Path(order.folder, "ca.crt")))
            context.load_cert_chain(keys / f"{name}.crt", keys / f"{name}.key")
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
        self.room = bytearray(ROOM_BYTES)
        self.view = memoryview(self.room)
        self.start = self.end = 0

    def write(self, data: bytes) -> None:
        """All of it: messages are short, and wait only while the other side reads nothing."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except (ssl.SSLWantWriteError, BlockingIOError):
                select.select([], [self.sock], [], 5.0)

    def read(self) -> bool:
        """Take in what is there, a record at most; False when nothing is. `ConnectionError` at the end."""
        if self.end == len(self.room):
            rest = self.room[self.start : self.end]
            self.room[: len(rest)] = rest
            self.start, self.end = 0, len(rest)
        try:
            got = self.sock.recv_into(self.view[self.end :])
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        if not got:
            raise ConnectionError("the other side hung up")
        self.end += got
        return True

    def taken(self, size: int) -> None:
        self.start += size
        if self.start == self.end:
            self.start = self.end = 0


@dataclass
class Artifact:
    """What is fetched, in blocks."""

    blocks: list[bytes]
    size: int

    @classmethod
    def read(cls, path: str) -> "Artifact":
        data = Path(path).read_bytes()
        return cls([data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)], len(data))


@dataclass
class Device:
    """One device of the broker's and what it still lacks."""

    name: str
    order: Order
    artifact: Artifact
    stream: Stream
    lacks: set[int] = field(default_factory=set)
    received: int = 0
    delivered: int = 0
    reports: int = 0
    wants: int = 0
    moved_at: float = 0.0
    told_at: float = 0.0
    report_s: float = 0.0
    own: bool = False

    def __post_init__(self) -> None:
        base = f"lr/1/{self.order.fleet}"
        self.up = f"{base}/up/{self.name}/want/{self.order.digest}"
        self.down = f"{base}/dn/{self.name}/#"
        self.shared = f"{base}/art/{self.order.digest}/blocks"
        self.lacks = set(range(len(self.artifact.blocks)))
        self.own = self.order.way == "own stream"

    def join(self) -> None:
        """CONNECT and SUBSCRIBE; the connection waits no more afterwards."""
        stream = self.stream
        stream.write(packet(0x10, text("MQTT") + b"\x04\x02\x00\x3c" + text(self.name)))
        while stream.end < 4:
            stream.read()
        assert stream.room[3] == 0, f"{self.name} was refused: {stream.room[3]}"
        stream.taken(4)
        topics = [self.down] if self.own else [self.down, self.shared]
        stream.write(packet(0x82, b"\x00\x01" + b"".join(text(topic) + b"\x00" for topic in topics)))
        stream.sock.setblocking(False)

    def begin(self, now: float) -> None:
        self.moved_at, self.told_at = now, now - random.random()
        self._say()

    def tick(self, now: float) -> None:
        """Ask again after a silence, report when it is time."""
        if now - self.moved_at > REPAIR_S:
            self.moved_at = now
            self._say()
        elif self.report_s and now - self.told_at >= self.report_s:
            self.told_at = now
            self._say(report=True)

    def readable(self, now: float) -> None:
        """Take every packet that is there."""
        while self.lacks and self.stream.read():
            while self.lacks and self._packet(now):
                pass

    def _say(self, *, report: bool = False) -> None:
        missing = encode_missing(self.lacks)
        want = Want(bytes=self.artifact.size, missing=missing, speaks=(LANES,), report=report, own=self.own)
        self.reports += report
        self.wants += not report
        self.stream.write(packet(0x30, text(self.up) + encode(want)))

    def _packet(self, now: float) -> bool:
        """Take one packet if the whole of it is there."""
        stream = self.stream
        at, length, shift = stream.start + 1, 0, 0
        while at < stream.end:
            digit = stream.room[at]
            length |= (digit & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if digit < 0x80:
                break
        else:
            return False
        if at + length > stream.end:
            return False
        self._take(stream.room[stream.start], stream.view[at : at + length], now)
        stream.taken(at + length - stream.start)
        return True

    def _take(self, kind: int, body: memoryview, now: float) -> None:
        if kind & 0xF0 != 0x30:
            return
        at = 2 + int.from_bytes(body[:2], "big")
        topic = bytes(body[2:at])
        if kind & 0x06:
            self.stream.write(packet(0x40, bytes(body[at : at + 2])))
            at += 2
        if topic.endswith(b"/blocks"):
            self._block(body[at:], now)
        elif b"/lane/" in topic:
            self._lane(decode(bytes(body[at:]), Lane))

    def _block(self, frame: memoryview, now: float) -> None:
        self.received += len(frame) - HEAD_BYTES
        index = int.from_bytes(frame[36:HEAD_BYTES], "big")
        if index in self.lacks:
            assert bytes(frame[HEAD_BYTES:]) == self.artifact.blocks[index]
            self.lacks.discard(index)
            self.delivered += len(frame) - HEAD_BYTES
            self.moved_at = now

    def _lane(self, lane: Lane) -> None:
        self.report_s = lane.report_s
        if not lane.shared and not self.own:
            self.own = True
            self.stream.write(packet(0xA2, RESUBSCRIBED + text(self.shared)))


@dataclass
class Downloader(Device):
    """The artifact by HTTP ranges of 1 MiB over one connection, one after another."""

    asked_at: int = 0
    body_left: int = 0

    def join(self) -> None:
        self.stream.sock.setblocking(False)

    def begin(self, now: float) -> None:
        del now
        self._ask()

    def tick(self, now: float) -> None:
        """HTTP says nothing of its own."""

    def readable(self, now: float) -> None:
        del now
        while self.lacks and self.stream.read():
            while self.lacks and self._some():
                pass

    def _ask(self) -> None:
        end = min(self.asked_at + RANGE_BYTES, self.artifact.size)
        wanted = (
            f"GET /blobs/{self.order.digest} HTTP/1.1\r\nhost: bench\r\nrange: bytes={self.asked_at}-{end - 1}\r\n\r\n"
        )
        self.stream.write(wanted.encode())

    def _some(self) -> bool:
        """Take a head, or a block of the body; False when neither is there whole."""
        stream = self.stream
        if not self.body_left:
            end = stream.room.find(b"\r\n\r\n", stream.start, stream.end)
            if end < 0:
                return False
            assert stream.room.startswith(b"HTTP/1.1 206", stream.start), stream.room[stream.start : end]
            stream.taken(end + 4 - stream.start)
            self.body_left = min(RANGE_BYTES, self.artifact.size - self.asked_at)
        size = min(BLOCK_BYTES, self.body_left)
        if stream.end - stream.start < size:
            return False
        index = self.asked_at // BLOCK_BYTES
        assert bytes(stream.view[stream.start : stream.start + size]) == self.artifact.blocks[index]
        stream.taken(size)
        self.received, self.delivered = self.received + size, self.delivered + size
        self.asked_at, self.body_left = self.asked_at + size, self.body_left - size
        self.lacks.discard(index)
        if self.lacks and not self.body_left:
            self._ask()
        return True


class Listener(Downloader):
    """The artifact as it is, from a server that only sends."""

    def _ask(self) -> None:
        if not self.asked_at:
            self.stream.write(b"?")
        self.body_left = self.artifact.size - self.asked_at


WAYS = {"http": Downloader, "floor": Listener}


def enter(order: Order, number: int, artifact: Artifact) -> Device:
    name = f"d-{number}"
    device = WAYS.get(order.way, Device)(name, order, artifact, Stream(name, order))
    device.join()
    return device


def fetch_all(devices: list[Device], limit_s: float) -> None:
    """Until all have everything, or the time is up."""
    poll, by_handle = select.epoll(), {device.stream.sock.fileno(): device for device in devices}
    for handle in by_handle:
        poll.register(handle, select.EPOLLIN)
    began = looked = time.monotonic()
    for device in devices:
        device.begin(began)
    left = len(devices)
    while left and looked - began < limit_s:
        found, now = poll.poll(0.25), time.monotonic()
        for handle, _ in found:
            by_handle[handle].readable(now)
            if not by_handle[handle].lacks:
                poll.unregister(handle)
                by_handle.pop(handle).stream.sock.close()
                left -= 1
        if now - looked >= 0.25:
            looked = now
            for device in by_handle.values():
                device.tick(now)


def run(order: Order) -> dict[str, Any]:
    artifact = Artifact.read(order.path)
    devices = [enter(order, number, artifact) for number in range(order.first, order.last)]
    time.sleep(0.3)
    print("ready", flush=True)
    sys.stdin.readline()
    fetch_all(devices, order.limit_s)
    return {
        "done": sum(1 for device in devices if not device.lacks),
        "delivered_mb": sum(device.delivered for device in devices) / 1e6,
        "received_mb": sum(device.received for device in devices) / 1e6,
        "own": sum(device.own for device in devices),
        "reports": sum(device.reports for device in devices),
        "wants": sum(device.wants for device in devices),
    }


if __name__ == "__main__":
    print(json.dumps(run(Order(**json.loads(sys.argv[1])))), flush=True)
