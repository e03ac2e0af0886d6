"""A server that speaks just enough MQTT 3.1.1 to be trusted with a connection, and misbehaves as it is told.

For what no real broker does on request: never acknowledging, never reading, hanging up at a moment of choice.
"""

import asyncio
from dataclasses import dataclass, field

CONNECT, PUBLISH, SUBSCRIBE, PINGREQ = 1, 3, 8, 12


@dataclass
class Heard:
    """One connection: the packets that came, by type."""

    writer: asyncio.StreamWriter
    kinds: list[int] = field(default_factory=list)

    def count(self, kind: int) -> int:
        return self.kinds.count(kind)


class DeafServer:
    """Accepts connections and subscriptions, and acknowledges no PUBLISH. ``reads`` False stops reading after
    CONNECT."""

    def __init__(self, *, reads: bool = True) -> None:
        self.connections: list[Heard] = []
        self.port = 0
        self._reads = reads
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for heard in self.connections:
            heard.writer.close()
        await asyncio.sleep(0)

    def hang_up(self) -> None:
        self.connections[-1].writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = Heard(writer)
        self.connections.append(heard)
        try:
            while True:
                kind, body = await _packet(reader)
                heard.kinds.append(kind)
                if kind == CONNECT:
                    writer.write(b"\x20\x02\x00\x00")
                    if not self._reads:
                        await asyncio.sleep(3600)
                elif kind == SUBSCRIBE:
                    writer.write(b"\x90\x03" + body[:2] + b"\x01")
                elif kind == PINGREQ:
                    writer.write(b"\xd0\x00")
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Type and body (MQTT 3.1.1, 2.2)."""
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return first >> 4, await reader.readexactly(length)
