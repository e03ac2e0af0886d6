"""HTTP/1.1 by our own protocol class, over real sockets: order, limits, and strangers' bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve_agent.serving.heads import Head
from landreeve_agent.serving.http import Connections, Request, Response, Send

Address = tuple[str, int]
LIMIT = 1000


def echo(request: Request, send: Send) -> None:
    """Answers method, path and body; a path /slow answers later, /never not at all."""
    response = Response(200, f"{request.method} {request.path} ".encode() + request.body)
    if request.path == "/slow":
        asyncio.get_running_loop().call_later(0.02, send, response)
    elif request.path != "/never":
        send(response)


@asynccontextmanager
async def serving(handle: Callable[[Request, Send], None] = echo) -> AsyncIterator[tuple[Address, Connections]]:
    connections = Connections(handle, lambda status, text: Response(status, text.encode()), LIMIT, max_open=3)
    server = await asyncio.get_running_loop().create_server(connections.protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname(), connections
    finally:
        server.close()
        for connection in tuple(connections.open):
            connection._abandon()
        await asyncio.sleep(0)


async def talk(address: Address, sent: bytes) -> bytes:
    """Send bytes, half-close nothing, read until the server closes."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def get(path: str, extra: str = "", last: bool = False) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n{'connection: close' if last else 'x: y'}\r\n{extra}\r\n".encode()


async def test_pipelined_requests_are_answered_in_order_even_when_the_first_is_slow() -> None:
    async with serving() as (address, _):
        answer = await talk(address, get("/slow") + get("/b") + get("/c", last=True))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"GET /slow ", b"GET /b ", b"GET /c "]


async def test_hundreds_of_pipelined_requests_are_answered() -> None:
    async with serving() as (address, _):
        answer = await talk(address, get("/a") * 500 + get("/z", last=True))
    assert answer.count(b"HTTP/1.1 200 OK") == 501


async def test_a_body_may_come_in_chunks_and_in_pieces() -> None:
    head = b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving() as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        for piece in (head[:10], head[10:], b"3\r\nabc\r\n", b"2\r\nde\r\n0\r", b"\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.005)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert answer.endswith(b"POST /x abcde")


async def test_expect_continue_is_answered_before_the_body() -> None:
    head = b"POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
    async with serving() as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        assert (await reader.read()).endswith(b"POST /x ab")
        writer.close()


async def test_head_has_no_body_and_http_1_0_closes() -> None:
    async with serving() as (address, _):
        answer = await talk(address, b"HEAD /h HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"content-length: 8" in answer
        assert b"connection: close" in await talk(address, b"GET /old HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n", b"413", b"body: larger than 1000 bytes"),
        (
            b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001 + b"\r\n",
            b"413",
            b"body: larger than 1000 bytes",
        ),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbig: " + b"x" * 40_000 + b"\r\n\r\n", b"431", b"headers: more than"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400", b"no HTTP/1.1 request"),
        (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n", b"400", b"no HTTP/1.1 request"),
        (
            b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"400",
            b"no HTTP/1.1 request",
        ),
    ],
)
async def test_a_limit_answers_what_it_is_and_closes(sent: bytes, status: bytes, words: bytes) -> None:
    async with serving() as (address, connections):
        answer = await talk(address, sent)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert words in answer
        # The server goes on for everybody else.
        assert (await talk(address, get("/ok", last=True))).endswith(b"GET /ok ")
        assert connections.open == set()


async def test_one_connection_too_many_is_told_so() -> None:
    async with serving() as (address, _):
        held = [await asyncio.open_connection(*address) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert (await talk(address, b"")).startswith(b"HTTP/1.1 503")
        for _, writer in held:
            writer.close()


async def test_idle_and_dribbling_connections_are_swept_and_busy_ones_are_not() -> None:
    async with serving() as (address, connections):
        idle, dribbling, busy = [await asyncio.open_connection(*address) for _ in range(3)]
        dribbling[1].write(b"GET / HT")
        busy[1].write(get("/never"))
        await asyncio.sleep(0.02)
        connections.sweep(asyncio.get_running_loop().time() + 80)
        async with asyncio.timeout(5):
            assert await idle[0].read() == b""
            assert (await dribbling[0].read()).startswith(b"HTTP/1.1 408")
        for _, writer in (idle, dribbling):
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.02)
        assert len(connections.open) == 1
        busy[1].close()


async def test_a_caller_that_half_closes_still_gets_every_answer() -> None:
    async with serving() as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/slow") + get("/slow"))
        writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert answer.count(b"GET /slow ") == 2


async def test_a_caller_that_leaves_before_its_answer_harms_nobody() -> None:
    async with serving() as (address, connections):
        _, writer = await asyncio.open_connection(*address)
        writer.write(get("/slow") + get("/b"))
        await asyncio.sleep(0.005)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        assert connections.open == set()
        assert (await talk(address, get("/ok", last=True))).endswith(b"GET /ok ")


async def test_the_same_head_is_parsed_once_and_its_note_kept() -> None:
    seen: list[Head] = []

    def note(request: Request, send: Send) -> None:
        seen.append(request.head)
        send(Response(200, bytes(request.body)))

    async with serving(note) as (address, _):
        post = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
        answer = await talk(address, post + b"ab" + post + b"cd" + get("/end", last=True))
    assert seen[0] is seen[1]
    assert [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [b"ab", b"cd", b""]


async def test_a_body_that_comes_in_many_pieces_is_whole_and_the_next_request_is_not_lost() -> None:
    body = bytes(range(256)) * 3
    head = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serving(lambda request, send: send(Response(200, bytes(request.body)))) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        for at in range(0, len(head + body), 97):
            writer.write((head + body)[at : at + 97])
            await asyncio.sleep(0.001)
        writer.write(get("/end", last=True))
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert body in answer
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_a_handler_is_told_when_its_caller_has_left() -> None:
    left = asyncio.Event()

    def forget(request: Request, send: Send) -> None:
        request.on_gone = left.set

    async with serving(forget) as (address, _):
        _, writer = await asyncio.open_connection(*address)
        writer.write(get("/never"))
        await asyncio.sleep(0.01)
        writer.transport.abort()
        async with asyncio.timeout(5):
            await left.wait()
    assert left.is_set()


@given(
    st.lists(st.binary(max_size=300) | st.just(b"large" * 40_000), min_size=1, max_size=5),
    st.integers(97, 400) | st.integers(20_000, 200_000),
)
@settings(deadline=None, max_examples=40)
def test_requests_cut_anywhere_are_the_same_requests(bodies: list[bytes], piece: int) -> None:
    """Framing never depends on where the network cuts."""
    sent = b"".join(b"POST /p HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(b), b) for b in bodies)
    got: list[bytes] = []

    def keep(request: Request, send: Send) -> None:
        got.append(bytes(request.body))
        send(Response(200, b""))

    async def feed() -> None:
        connections = Connections(keep, lambda status, text: Response(status, text.encode()), 300_000)
        transport = Deaf()
        transport.protocol = connections.protocol()
        transport.protocol.connection_made(transport)
        for at in range(0, len(sent), piece):
            transport.receive(sent[at : at + piece])
        await asyncio.sleep(0)

    asyncio.run(feed())
    assert got == bodies


class Deaf(asyncio.Transport):
    """Takes every answer and says nothing; hands bytes to its protocol as both loops do."""

    protocol: asyncio.BaseProtocol

    def receive(self, data: bytes) -> None:
        while data:
            protocol = self.protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                buffer = protocol.get_buffer(-1)
                count = min(len(buffer), len(data))
                buffer[:count] = data[:count]
                protocol.buffer_updated(count)
                data = data[count:]
            else:
                assert isinstance(protocol, asyncio.Protocol)
                protocol.data_received(data)
                data = b""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: object) -> None: ...
    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


@pytest.mark.parametrize("json_bytes", [1, 7, 63, 120])
async def test_the_binary_part_of_a_large_body_is_received_on_a_cache_line(json_bytes: int) -> None:
    numbers = np.arange(100_000, dtype="<f4")
    body = b"j" * json_bytes + numbers.tobytes()
    found: list[bool] = []

    def look(request: Request, send: Send) -> None:
        array = np.frombuffer(request.body, "<f4", offset=json_bytes)
        found.extend([array.ctypes.data % 64 == 0, bool((array == numbers).all()), request.body == body])
        send(Response(200, b"seen"))

    connections = Connections(look, lambda status, text: Response(status, text.encode()), len(body))
    server = await asyncio.get_running_loop().create_server(connections.protocol, "127.0.0.1", 0)
    head = f"inference-header-content-length: {json_bytes}\r\ncontent-length: {len(body)}\r\n"
    sent = b"POST /x HTTP/1.1\r\nconnection: close\r\n" + head.encode() + b"\r\n" + body
    assert b"200 OK" in await talk(server.sockets[0].getsockname(), sent)
    server.close()
    assert found == [True, True, True]
