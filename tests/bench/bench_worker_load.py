"""The load of `bench_worker`: connections that each send their next request as soon as the last is answered.

One thread and an epoll loop, so that on a small machine the clients take little of what they measure: about 10 µs a
request, where a client on asyncio takes more than 25 and becomes the limit itself. The requests differ from one
another in id, time and values. An answer equal to the first one to that request counts at once; any other must be a
complete 200, or the bench ends.
"""

import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

PATIENCE_S = 30.0
MOMENT_NS = 20_000_000
FEW = 10


@dataclass(frozen=True, slots=True)
class Figures:
    """One case: requests a second, latency in µs, the server's CPU in µs a request, rows a run (0: not known).

    ``calm_cpu_us`` is the CPU a request in the best tenth of the moments of 20 ms: when other programs use the machine
    too, those in which they did not evict ours from the caches."""

    what: str
    rps: float
    p50_us: float
    p99_us: float
    cpu_us: float
    rows_a_run: float = 0.0
    calm_cpu_us: float = 0.0


def figures(what: str, times_us: Sequence[float], seconds: float, cpu_s: float) -> Figures:
    """The figures of latencies that were measured in that time at that cost."""
    p50, p99 = np.percentile(times_us, [50, 99])
    count = len(times_us)
    return Figures(what, count / seconds, float(p50), float(p99), cpu_s * 1e6 / count)


class Moments:
    """CPU a request of a process, moment by moment, from the kernel's own count of its nanoseconds."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self.costs_us: list[float] = []
        self._ends = 0
        self._count = 0
        self._spent_ns = 0

    def answered(self, count: int, now_ns: int) -> None:
        """That many requests have been answered."""
        self._count += count
        if now_ns < self._ends:
            return
        spent = self._now()
        if self._ends and self._count >= FEW:
            self.costs_us.append((spent - self._spent_ns) / 1000 / self._count)
        self._ends, self._count, self._spent_ns = now_ns + MOMENT_NS, 0, spent

    def _now(self) -> int:
        try:
            return sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks.iterdir())
        except OSError:  # a thread has just ended
            return 0

    def calm_us(self) -> float:
        """The best tenth's worst; 0 when there were too few."""
        costs = sorted(cost for cost in self.costs_us if cost > 0)
        return costs[len(costs) // 10] if len(costs) >= FEW else 0.0


class _Client:
    """One connection and the request that is under way on it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = 0
        self.began = 0
        self.buffer = b""


def burst(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, seconds: float, moments: Moments | None = None
) -> list[float]:
    """Load for that long; the latencies in µs."""
    loop = select.epoll()
    made = {client.socket.fileno(): client for client in (_Client(address) for _ in range(clients))}
    firsts: dict[int, bytes] = {}
    times: list[float] = []
    turn, clock = 0, time.perf_counter_ns
    until = clock() + int(seconds * 1e9)
    for number, client in made.items():
        loop.register(number, select.EPOLLIN)
        client.number, client.began = turn, clock()
        client.socket.send(requests[turn])
        turn = (turn + 1) % len(requests)
    open_now = clients
    while open_now:
        ready = loop.poll(PATIENCE_S)
        if not ready:
            raise TimeoutError(f"no answer within {PATIENCE_S:g} s")
        if moments is not None:
            moments.answered(len(ready), clock())
        for number, _ in ready:
            client = made[number]
            data = client.buffer + client.socket.recv(65536) if client.buffer else client.socket.recv(65536)
            if data != firsts.get(client.number) and not _complete(client, data, firsts):
                continue
            client.buffer = b""
            now = clock()
            times.append((now - client.began) / 1000)
            if now < until:
                client.number, client.began = turn, now
                client.socket.send(requests[turn])
                turn = (turn + 1) % len(requests)
            else:
                client.socket.close()
                open_now -= 1
    loop.close()
    return times


def _complete(client: _Client, data: bytes, firsts: dict[int, bytes]) -> bool:
    """Whether an answer not seen before is whole."""
    if data == client.buffer:
        raise ConnectionResetError("the server closed the connection")
    client.buffer = data
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
        return False
    if b" 200 " not in head[:16]:
        raise RuntimeError(data[:1000].decode(errors="replace"))
    firsts[client.number] = data
    return True


def load(
    what: str, address: tuple[str, int], requests: Sequence[bytes], clients: int, pid: int, *, model: str = "",
    seconds: float = 1.5,
) -> Figures:  # fmt: skip
    """Load a server after a short warm-up; with a ``model`` the rows of a run are read from its /metrics."""
    process = psutil.Process(pid)
    burst(address, requests, clients, 0.2)
    runs = _runs(address, model) if model else (0, 0)
    before, began = process.cpu_times(), time.perf_counter()
    moments = Moments(pid)
    times = burst(address, requests, clients, seconds, moments)
    spent, after = time.perf_counter() - began, process.cpu_times()
    rows_a_run = 0.0
    if model:
        now = _runs(address, model)
        rows_a_run = (now[0] - runs[0]) / max(now[1] - runs[1], 1)
    cpu_s = after.user + after.system - before.user - before.system
    name = f"{what}, {clients} client{'s' if clients > 1 else ''}"
    return replace(figures(name, times, spent, cpu_s), rows_a_run=rows_a_run, calm_cpu_us=moments.calm_us())


def _runs(address: tuple[str, int], model: str) -> tuple[int, int]:
    """The rows and the runs of a model since the worker started."""
    text = _get(address, "/metrics")
    labels = f'{{model="{model}"}} '
    rows, runs = (
        int(text.partition(f"landreeve_batch_rows_{name}{labels}")[2].split("\n", 1)[0]) for name in ("sum", "count")
    )
    return rows, runs


def _get(address: tuple[str, int], path: str) -> str:
    with socket.create_connection(address) as asked:
        asked.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: asked.recv(65536), b"")).decode()


# --- the floor


def serve_echo(listening: socket.socket) -> None:
    """A server that answers whatever comes with the same bytes, on uvloop: what the kernel, the loop and the wake-up
    of a process cost before anybody has done anything. Runs until it is killed."""
    import asyncio

    import uvloop

    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 150\r\n\r\n" + b"x" * 150

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)  # type: ignore[attr-defined]

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, sock=listening)
        await server.serve_forever()

    uvloop.run(serve())


def echo(requests: Sequence[bytes], clients: Sequence[int]) -> list[Figures]:
    """The echo server under the same load, in a process of its own."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    child = os.fork()
    if child == 0:
        serve_echo(listening)
        os._exit(0)
    try:
        address = listening.getsockname()
        return [load("echo server on uvloop", address, requests, count, child) for count in clients]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        listening.close()
