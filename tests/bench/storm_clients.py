"""Some hundred devices of `bench_storm`, in one process: real mutual TLS, and as much MQTT 3.1.1 as a device speaks.

``python storm_clients.py FOLDER FIRST COUNT PORT``. ``round JITTER`` on standard input sets the jitter and makes each
client owe the hub facts; ``wait SECONDS`` answers with how many have come back and had them acknowledged, and when.
"""

import asyncio
import json
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.codec import decode, encode  # noqa: E402 - needs the path above
from landreeve.wire.messages import Ack, DeviceState, Event, Fact  # noqa: E402
from landreeve_agent.link.pause import pause_s  # noqa: E402
from landreeve_agent.link.window import MAX_RESEND_S  # noqa: E402

FLEET = "storm"
FACTS_OWED, RESEND_S, KEEPALIVE_S, AT_ONCE = 3, 3.0, 60, 25
EPOCH = 1_700_000_000_000_000_000
AT = "2026-11-28T12:00:00Z"


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def packet(first: int, body: bytes) -> bytes:
    """Fixed header with its variable length (MQTT 3.1.1, 2.2.3), and the body."""
    length, size = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        size.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([first]) + bytes(size) + body


@dataclass
class Client:
    name: str
    port: int
    context: ssl.SSLContext
    gate: asyncio.Semaphore
    jitter_s: float = 0.0
    session: int = 0
    made: int = 0
    acknowledged: int = 0
    begun: float = 0.0
    connected_after: float = -1.0
    done_after: float = -1.0
    tries: int = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, jitter_s: float) -> None:
        """A round: the broker is about to die, and facts are made meanwhile."""
        self.jitter_s, self.begun = jitter_s, time.monotonic()
        self.connected_after = self.done_after = -1.0
        self.made += FACTS_OWED
        self.tries = 0

    async def run(self) -> None:
        async with self.gate:  # the first time only: how they came in is no part of a storm
            reader, writer = await self._connect()
        while True:
            began = time.monotonic()
            try:
                await self._live(reader, writer)
            except (OSError, EOFError, ssl.SSLError):
                writer.close()
            lasted = time.monotonic() - began
            while True:
                await asyncio.sleep(pause_s(self.jitter_s, lasted))
                began = time.monotonic()
                try:
                    reader, writer = await self._connect()
                    break
                except (OSError, EOFError, ssl.SSLError):
                    lasted = time.monotonic() - began

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.tries += 1
        self.session += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.context)
        topic = f"lr/1/{FLEET}/up/{self.name}/state".encode()
        will = text(topic) + text(encode(DeviceState(session=self.session, online=False, at=AT)))
        head = text(b"MQTT") + b"\x04" + bytes([0x2C]) + KEEPALIVE_S.to_bytes(2, "big")  # will retained at QoS 1
        writer.write(packet(0x10, head + text(self.name.encode()) + will))
        if (await _read(reader))[0] >> 4 != 2:
            raise OSError("no CONNACK")
        writer.write(packet(0x82, b"\x00\x01" + text(f"lr/1/{FLEET}/dn/{self.name}/#".encode()) + b"\x01"))
        online = encode(DeviceState(session=self.session, online=True, at=AT))
        writer.write(packet(0x33, text(topic) + b"\x00\x02" + online))
        if self.connected_after < 0:
            self.connected_after = time.monotonic() - self.begun
        return reader, writer

    async def _live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._send_owed(writer)
        sending = asyncio.create_task(self._repeat(writer))
        try:
            while True:
                first, body = await _read(reader)
                if first >> 4 == 3:
                    self._hear(first, body, writer)
        finally:
            sending.cancel()

    async def _repeat(self, writer: asyncio.StreamWriter) -> None:
        patience_s = RESEND_S
        while True:
            await asyncio.sleep(patience_s)
            patience_s = min(patience_s * 2, MAX_RESEND_S)  # as the agent's window does
            if self.acknowledged < self.made:
                self._send_owed(writer)
            else:
                writer.write(b"\xc0\x00")

    def _send_owed(self, writer: asyncio.StreamWriter) -> None:
        topic = text(f"lr/1/{FLEET}/up/{self.name}/event".encode())
        for seq in range(self.acknowledged + 1, self.made + 1):
            body = Event(name="storm.fact", subject=self.name, cause="c", sentence="It happened while nobody heard it.")
            fact = encode(Fact(epoch=EPOCH, seq=seq, at=AT, body=body))
            writer.write(packet(0x32, topic + (seq % 60_000 + 10).to_bytes(2, "big") + fact))

    def _hear(self, first: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic, payload = body[2:end], body[end:]
        if first >> 1 & 3:
            writer.write(packet(0x40, payload[:2]))
            payload = payload[2:]
        if topic.endswith(b"/ack"):
            self.acknowledged = max(self.acknowledged, decode(payload, Ack).seq)
            if self.acknowledged >= self.made and self.done_after < 0:
                self.done_after = time.monotonic() - self.begun


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return first, await reader.readexactly(length)


def context(folder: Path, name: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    made.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return made


async def main(folder: Path, first: int, count: int, port: int) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    names = [f"d-{number:04}" for number in range(first, first + count)]
    clients = [Client(name, port, context(folder, name), gate, begun=time.monotonic()) for name in names]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case ["round", jitter]:
                for client in clients:
                    client.begin(float(jitter))
                answer: dict[str, object] = {"begun": True}
            case ["wait", seconds]:
                deadline = time.monotonic() + float(seconds)
                while any(c.acknowledged < c.made for c in clients) and time.monotonic() < deadline:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                answer = _report(clients)
            case _:
                answer = {"connected": sum(client.connected_after >= 0 for client in clients)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for task in tasks:
        task.cancel()


def _report(clients: list[Client]) -> dict[str, object]:
    return {
        "connected": [round(c.connected_after, 3) for c in clients if c.connected_after >= 0],
        "done": [round(c.done_after, 3) for c in clients if c.done_after >= 0],
        "tries": sum(client.tries for client in clients),
        "behind": sum(client.made - client.acknowledged for client in clients),
    }


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
