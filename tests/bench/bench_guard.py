"""What a preflight beside it costs those who ask: the worker's latency alone and while a release is proven, in turns.

Requests come at a steady pace, as tills send them, one row each; the worker answers about a third of what it could. The
preflight searches plans for a picture model with all threads, without end. The turns alternate, so that what else goes
on in the machine hits all alike: compare the ratios. Writes build/bench/guard.json. Bar: the median of answers given
beside a preflight is at most twice that of answers given alone, the 99th percentile at most five times.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Route  # noqa: E402 - needs the path above
from landreeve_agent.serving.supervise import WorkerProcess  # noqa: E402
from landreeve_agent.tuning.preflight import Preflight  # noqa: E402

from tests.agent.onnx_models import body, version, write_release  # noqa: E402
from tests.models.tensor_releases import image_release  # noqa: E402

CHILD = (sys.executable, "-m", "landreeve_agent.tuning.child")
PACE_S = 0.004
TURN_S, LEAD_S = 4.0, 2.5
P50_BAR, P99_BAR = 2.0, 5.0


async def asked(worker: WorkerProcess, seconds: float) -> list[float]:
    """Milliseconds each request took; one connection, a request every ``PACE_S``."""
    reader, writer = await asyncio.open_connection(*worker.address)
    payload = json.dumps(body()).encode()
    head = f"POST /v2/models/delay/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(payload)}\r\n\r\n"
    times, end = list[float](), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        writer.write(head.encode() + payload)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        took = time.perf_counter() - began
        assert answer.startswith(b"HTTP/1.1 200"), answer
        times.append(took * 1000)
        await asyncio.sleep(max(0.0, PACE_S - took))
    writer.close()
    return times


async def beside(worker: WorkerProcess, folder: Path, command: tuple[str, ...], seconds: float) -> list[float]:
    """The same while a preflight is at work."""

    async def prove() -> None:
        while True:
            preflight = Preflight(600.0, command, exhaustive=True, fresh=True)
            await preflight.run(folder, threads=os.cpu_count() or 1, deadline_s=1800)

    task = asyncio.create_task(prove())
    await asyncio.sleep(LEAD_S)  # it has read its release and begun to search
    try:
        return await asked(worker, seconds)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def spent_s() -> float:
    """CPU of children that have ended: those of preflights, since the worker lives on."""
    times = os.times()
    return times.children_user + times.children_system


async def measure(folder: Path, rounds: int, commands: dict[str, tuple[str, ...]]) -> dict[str, list[float]]:
    cores = list[float]()
    heavy = image_release(folder / "heavy")
    worker = WorkerProcess(folder / "spool")
    await worker.start()
    found: dict[str, list[float]] = {"alone": [], **{name: [] for name in commands}}
    try:
        await worker.apply((Route("delay", version(write_release(folder / "light"), "1.0.0"), None),))
        await asked(worker, 1.0)
        for _ in range(rounds):
            found["alone"] += await asked(worker, TURN_S)
            for name, command in commands.items():
                before = spent_s()
                found[name] += await beside(worker, heavy, command, TURN_S)
                cores.append((spent_s() - before) / (TURN_S + LEAD_S))
    finally:
        await worker.stop()
    print(f"the preflights used {np.mean(cores):.2f} of {os.cpu_count()} cores")
    return found


def rows(found: dict[str, list[float]]) -> list[dict[str, object]]:
    made = []
    alone = np.percentile(found["alone"], [50, 95, 99])
    for name, times in found.items():
        for at, value, base in zip((50, 95, 99), np.percentile(times, [50, 95, 99]), alone, strict=True):
            made.append(
                {"what": f"{name}, p{at}", "value": round(float(value), 3), "unit": "ms", "bar": None, "holds": None}
            )
            bar = {50: P50_BAR, 99: P99_BAR}.get(at)
            if name != "alone":
                ratio = float(value / base)
                held = {"bar": None if bar is None else f"≤ {bar:g}", "holds": None if bar is None else ratio <= bar}
                made.append({"what": f"{name}, p{at} by that alone", "value": round(ratio, 2), "unit": "times", **held})
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--idle", action="store_true", help="also with the child in the kernel's idle class")
    given = parser.parse_args()
    commands = {"beside a preflight": CHILD}
    if given.idle:
        commands["beside one in the idle class"] = ("chrt", "-i", "0", *CHILD)
    with tempfile.TemporaryDirectory() as temporary:
        found = rows(asyncio.run(measure(Path(temporary), given.rounds, commands)))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for row in found:
        verdict = "" if row["bar"] is None else f"bar {row['bar']}: {'holds' if row['holds'] else 'missed'}"
        print(f"{row['what']:48}{row['value']:>9} {row['unit']:5} {verdict}")
    target = ROOT / "build/bench/guard.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
