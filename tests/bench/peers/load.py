"""The load generator: a process of its own, for every server the same. Reads a job as JSON from stdin, prints figures.

N connections, each sends its next request as soon as the answer to the last is complete (closed loop), in turn from a
list that was made beforehand, so that on a small machine the clients take little of what they measure. An answer equal
to the first one to that request counts at once; any other is read: it must be a complete 200 or it is a failure.
Whether the first answers are *right* is judged by who gave the job.
"""

import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

PATIENCE_S = 30.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class Asked:
    """The requests, in turn, and the first answer to each; shared by all clients of a burst."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = requests
        self.firsts: dict[int, bytes] = {}
        self._next = 0

    def turn(self) -> int:
        """The number of the request that is sent next."""
        number, self._next = self._next, (self._next + 1) % len(self.requests)
        return number


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, asked: Asked, until: int) -> None:
        self.until = until
        self.times: list[int] = []
        self.failures = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._number = 0
        self._buffer = b""
        self._began = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def _send(self) -> None:
        self._number = self._asked.turn()
        self._began = time.perf_counter_ns()
        self._transport.write(self._asked.requests[self._number])

    def data_received(self, data: bytes) -> None:
        if data == self._asked.firsts.get(self._number) or self._complete(data):
            now = time.perf_counter_ns()
            self.times.append(now - self._began)
            if now < self.until:
                self._send()
            else:
                self._transport.close()

    def _complete(self, data: bytes) -> bool:
        """Whether the answer ends here; counts it as a failure when it is no 200."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return False
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if not length:
            self._fail(f"an answer without a length: {head[:300]!r}")
            return False
        if len(body) < int(length):
            return False
        if b" 200 " in head[:16]:
            self._asked.firsts[self._number] = self._buffer
        elif not self._asked.firsts:
            self._fail(self._buffer[:1000].decode(errors="replace"))
            return False
        else:
            self.failures += 1
        self._buffer = b""
        return True

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done.done():
            return
        if time.perf_counter_ns() < self.until:
            self.done.set_exception(exc or ConnectionResetError("the server closed the connection"))
        else:
            self.done.set_result(None)


@dataclass
class Caller:
    """One gRPC client: what `Client` is for HTTP."""

    times: list[int] = field(default_factory=list)
    failures: int = 0


async def call(caller: Caller, job: dict[str, Any], asked: Asked, until: int) -> None:
    """Call over a connection of its own; the bytes are made beforehand, so nothing is serialised here."""
    import grpc.aio

    limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
    channel = grpc.aio.insecure_channel(
        f"{job['host']}:{job['port']}", options=[("grpc.use_local_subchannel_pool", 1), *limits]
    )
    async with channel:
        infer = channel.unary_unary(INFER, request_serializer=bytes, response_deserializer=bytes)
        now = time.perf_counter_ns()
        while now < until:
            number, began = asked.turn(), now
            try:
                asked.firsts.setdefault(number, await infer(asked.requests[number]))
            except grpc.aio.AioRpcError as error:
                if not asked.firsts:
                    raise RuntimeError(f"{error.code().name}: {error.details()}") from error
                caller.failures += 1
            now = time.perf_counter_ns()
            caller.times.append(now - began)


async def burst_grpc(job: dict[str, Any], asked: Asked, seconds: float) -> list[Caller]:
    """The same load over gRPC."""
    until = time.perf_counter_ns() + int(seconds * 1e9)
    callers = [Caller() for _ in range(job["clients"])]
    async with asyncio.timeout(seconds + PATIENCE_S):
        await asyncio.gather(*(call(caller, job, asked, until) for caller in callers))
    return callers


async def burst(job: dict[str, Any], asked: Asked, seconds: float) -> Sequence[Client | Caller]:
    """Load for that long."""
    if job["transport"] == "grpc":
        return await burst_grpc(job, asked, seconds)
    loop = asyncio.get_running_loop()
    until = time.perf_counter_ns() + int(seconds * 1e9)
    made = [
        (await loop.create_connection(lambda: Client(asked, until), job["host"], job["port"]))[1]
        for _ in range(job["clients"])
    ]
    async with asyncio.timeout(seconds + PATIENCE_S):
        await asyncio.gather(*(client.done for client in made))
    return made


def tree(pids: Sequence[int]) -> list[psutil.Process]:
    """The server's processes and all their children."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found |= {one.pid: one for one in [process, *process.children(recursive=True)]}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """User and system seconds of them all."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def memory_mb(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """RSS and PSS of them all, in MB (10^6 bytes)."""
    rss = pss = 0.0
    for process in processes:
        try:
            info = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        rss, pss = rss + info.rss / 1e6, pss + info.pss / 1e6
    return rss, pss


async def run(job: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Warm up, load, and say what it took of the server."""
    await burst(job, asked, job["warm_s"])
    processes = tree(job["pids"])
    cpu, began = cpu_s(processes), time.perf_counter()
    clients = await burst(job, asked, job["seconds"])
    seconds, cpu = time.perf_counter() - began, cpu_s(processes) - cpu
    times = sorted(t for client in clients for t in client.times)
    rss_mb, pss_mb = memory_mb(processes)
    return {
        "requests": len(times),
        "failures": sum(client.failures for client in clients),
        "seconds": seconds,
        "cpu_s": cpu,
        "p50_us": times[len(times) // 2] / 1000,
        "p99_us": times[len(times) * 99 // 100] / 1000,
        "rss_mb": rss_mb,
        "pss_mb": pss_mb,
        "firsts": {number: base64.b64encode(answer).decode() for number, answer in asked.firsts.items()},
    }


def read_requests(path: Path, lengths: Sequence[int]) -> list[bytes]:
    """The requests that stand one after another in a file."""
    data, ends = path.read_bytes(), list(itertools.accumulate(lengths))
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def main() -> None:
    job = json.load(sys.stdin)
    asked = Asked(read_requests(Path(job["requests"]), job["lengths"]))
    start = asyncio.run if job["transport"] == "grpc" else uvloop.run  # gRPC brings an event loop of its own
    try:
        print(json.dumps(start(run(job, asked))))
    except (RuntimeError, OSError, TimeoutError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))


if __name__ == "__main__":
    main()
