"""What callers notice of changes and deaths: real processes under continuous load. Writes build/bench/swap.json.

100 swaps between two versions whose answers differ, a worker killed again and again, and the memory of a worker after
ten thousand requests.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Route  # noqa: E402 - needs the path above
from landreeve_agent.serving.supervise import WorkerProcess  # noqa: E402

from tests.agent.onnx_models import answers, body, graph, pipeline, version, write_release  # noqa: E402

SWAPS, KILLS, REQUESTS, CLIENTS = 100, 5, 10_000, 8
BIASES = {"1.0.0": 0.0, "2.0.0": 1.5}
KILL_BAR_S, RSS_BAR_MB = 1.0, 80.0


def request() -> bytes:
    sent = json.dumps(body()).encode()
    head = f"POST /v2/models/delay/infer HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(sent)}\r\n\r\n"
    return head.encode() + sent


def expected() -> dict[str, float]:
    """What each version must answer, by ONNX's reference evaluator."""
    x = np.nan_to_num(pipeline().encode([{"hour": 9.5, "wind": 4.0, "carrier": "UA"}]))
    return {name: float(answers(graph(bias), x)[0]) for name, bias in BIASES.items()}


@dataclass
class Callers:
    """Clients that ask without a pause on connections they keep, and what became of every request."""

    address: tuple[str, int]
    right: dict[str, float]
    answered: int = 0
    failed: int = 0
    wrong: int = 0
    last_answer: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)
    stop: bool = False

    async def one(self) -> None:
        sent = request()
        reader = writer = None
        while not self.stop:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(*self.address)
                assert reader is not None
                writer.write(sent)
                self._judge(await self._read(reader))
            except (OSError, asyncio.IncompleteReadError):
                self.failed += 1
                if writer is not None:
                    writer.close()
                writer = None
        if writer is not None:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        return head, await reader.readexactly(length)

    def _judge(self, answer: tuple[bytes, bytes]) -> None:
        head, content = answer
        if not head.startswith(b"HTTP/1.1 200"):
            self.failed += 1
            return
        document = json.loads(content)
        name, p = document["model_version"], document["outputs"][0]["data"][0]
        self.wrong += abs(self.right[name] - p) > 1e-5
        self.seen[name] = self.seen.get(name, 0) + 1
        self.answered += 1
        self.last_answer = time.perf_counter()


async def swaps(worker: WorkerProcess, routes: list[Route], right: dict[str, float]) -> list[dict[str, object]]:
    callers, waits = Callers(worker.address, right), []
    tasks = [asyncio.create_task(callers.one()) for _ in range(CLIENTS)]
    stale = 0
    for turn in range(SWAPS):
        target = routes[(turn + 1) % 2]
        began = time.perf_counter()
        await worker.apply((target,))
        waits.append((time.perf_counter() - began) * 1000)
        before = dict(callers.seen)
        await asyncio.sleep(0.03)
        other = routes[turn % 2].active.version
        # What was on its way when the swap was told may still arrive; nothing that is asked afterwards.
        stale += max(0, callers.seen.get(other, 0) - before.get(other, 0) - CLIENTS)
    callers.stop = True
    await asyncio.gather(*tasks)
    return [
        row(f"failed requests in {SWAPS} swaps, of {callers.answered}", callers.failed, "", 0),
        row("answers of another version than they name", callers.wrong, "", 0),
        row("answers of the old version after the swap was told", stale, "", 0),
        row("a swap, load and warm-up included (median)", statistics.median(waits), "ms"),
    ]


async def kills(worker: WorkerProcess, right: dict[str, float]) -> list[dict[str, object]]:
    callers, gaps, lost = Callers(worker.address, right), [], []
    tasks = [asyncio.create_task(callers.one()) for _ in range(CLIENTS)]
    for _ in range(KILLS):
        await asyncio.sleep(0.5)
        failed, pid = callers.failed, (await worker.status()).pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter()
        while callers.last_answer < killed + 0.02:  # noqa: ASYNC110 - what the dead worker sent may still arrive
            await asyncio.sleep(0.002)
        gaps.append(callers.last_answer - killed)
        lost.append(callers.failed - failed)
        worker._crashes.clear()  # the pause after many crashes in a minute is wanted, and not what is measured
    callers.stop = True
    await asyncio.gather(*tasks)
    return [
        row("worker killed: serving again after (median)", statistics.median(gaps), "s", KILL_BAR_S),
        row("worker killed: serving again after (worst)", max(gaps), "s", KILL_BAR_S),
        row(f"requests failed by a kill under {CLIENTS} clients (most)", max(lost), "", CLIENTS),
    ]


async def memory(worker: WorkerProcess, route: Route, right: dict[str, float]) -> list[dict[str, object]]:
    await worker.apply((route,))
    callers = Callers(worker.address, right)
    tasks = [asyncio.create_task(callers.one()) for _ in range(CLIENTS)]
    while callers.answered < REQUESTS:  # noqa: ASYNC110 - the callers run without a pause
        await asyncio.sleep(0.02)
    callers.stop = True
    await asyncio.gather(*tasks)
    info = psutil.Process((await worker.status()).pid).memory_full_info()
    return [
        row(f"worker with one tabular model, RSS after {REQUESTS} requests", info.rss / 1e6, "MB", RSS_BAR_MB),
        row("the same, memory of its own (USS)", info.uss / 1e6, "MB"),
    ]


def row(what: str, value: float, unit: str, bar: float | None = None) -> dict[str, object]:
    shown, holds = (None, None) if bar is None else (f"≤ {bar:g}", value <= bar)
    return {"what": what, "value": round(value, 3), "unit": unit, "bar": shown, "holds": holds}


async def measure(folder: Path) -> list[dict[str, object]]:
    right = expected()
    routes = [Route("delay", version(write_release(folder / name, bias), name)) for name, bias in BIASES.items()]
    worker = WorkerProcess(folder / "spool")
    await worker.start()
    try:
        return [
            *await memory(worker, routes[0], right),
            *await swaps(worker, routes, right),
            *await kills(worker, right),
        ]
    finally:
        await worker.stop()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        found = asyncio.run(measure(Path(temporary)))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for each in found:
        verdict = "" if each["bar"] is None else f"bar {each['bar']}: {'holds' if each['holds'] else 'missed'}"
        print(f"{each['what']:60}{each['value']:>10} {each['unit']:3} {verdict}")
    target = ROOT / "build/bench/swap.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
