"""The worker's HTTP against a bare onnxruntime call and a plain FastAPI application, in one run of under 20 s.

All answer the same rows of flight-delay (13 columns) with the same graph on one thread. The worker also puts every
row on file before it answers; the others capture nothing. Clients run on the same cores: compare CPU per request
first. Writes build/bench/worker.json.
"""

import argparse
import asyncio
import json
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Plan, Route, Version  # noqa: E402 - needs the path above
from landreeve_agent.serving.session import open_session  # noqa: E402
from landreeve_agent.serving.supervise import WorkerProcess  # noqa: E402
from landreeve_models.definition import load_definition  # noqa: E402
from landreeve_models.features.pipeline import Pipeline  # noqa: E402

from tests.agent.onnx_models import graph  # noqa: E402

SECONDS = 1.5
ROW: dict[str, object] = {
    "carrier": "B6", "dest": "SFO", "distance": 2586.0, "weekday": 3, "hour": 17, "temp": 81.0, "dewp": 66.0,
    "humid": 60.1, "wind_speed": 12.7, "precip": 0.0, "pressure": 1009.5, "visib": 10.0, "recent_late": 0.31,
}  # fmt: skip
CPU_BAR = 6.0
P50_BAR = 1.0
JSON_BAR_US, BINARY_BAR_US = 50.0, 30.0
ALONE_BAR = 5.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One case: requests a second, latency in µs, the server's CPU in µs a request."""

    what: str
    rps: float
    p50_us: float
    p99_us: float
    cpu_us: float


def write_release(folder: Path) -> Path:
    """flight-delay with a network of plausible size and untrained weights: speed does not ask what they say."""
    source = ROOT / "models/catalog/flight-delay/definition.json"
    definition = load_definition(source)
    ranks = {c.name: {str(ROW[c.name]): 1.0} for c in definition.categories}
    folder.mkdir(parents=True)
    (folder / "definition.json").write_bytes(source.read_bytes())
    (folder / "features.json").write_bytes(Pipeline(definition.columns, ranks).to_bytes())
    (folder / "model.onnx").write_bytes(graph(hidden=64, width=len(definition.columns)))
    return folder


def bare(folder: Path) -> Figures:
    """The graph alone, called in this process: the floor no server can go below."""
    session = open_session(Plan(), (folder / "model.onnx").read_bytes()).session
    x = Pipeline.from_bytes((folder / "features.json").read_bytes()).encode([ROW])
    times: list[float] = []
    cpu, began = time.process_time(), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        start = time.perf_counter_ns()
        session.run([x])
        times.append((time.perf_counter_ns() - start) / 1000)
    return _figures("onnxruntime, called in process", times, time.perf_counter() - began, time.process_time() - cpu)


def _figures(what: str, times: list[float], seconds: float, cpu_s: float) -> Figures:
    p50, p99 = np.percentile(times, [50, 99])
    return Figures(what, len(times) / seconds, float(p50), float(p99), cpu_s * 1e6 / len(times))


# --- requests


def _post(path: str, body: bytes, extra: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _datatype(value: object) -> str:
    return "BYTES" if isinstance(value, str) else "FP64"


def oip_json() -> bytes:
    """One row, each column a JSON tensor."""
    inputs = [{"name": n, "datatype": _datatype(v), "shape": [1], "data": [v]} for n, v in ROW.items()]
    document = {"id": "bench", "parameters": {"at": "2026-01-31T09:30:00Z"}, "inputs": inputs}
    return _post("/v2/models/flight-delay/infer", json.dumps(document).encode())


def oip_binary() -> bytes:
    """One row, each column a binary tensor, the answer too."""
    raws = [
        struct.pack("<I", len(v)) + v.encode() if isinstance(v, str) else struct.pack("<d", v) for v in ROW.values()
    ]
    inputs = [
        {"name": n, "datatype": _datatype(v), "shape": [1], "parameters": {"binary_data_size": len(raw)}}
        for (n, v), raw in zip(ROW.items(), raws, strict=True)
    ]
    parameters = {"at": "2026-01-31T09:30:00Z", "binary_data_output": True}
    head = json.dumps({"id": "bench", "parameters": parameters, "inputs": inputs}).encode()
    extra = f"inference-header-content-length: {len(head)}\r\n"
    return _post("/v2/models/flight-delay/infer", head + b"".join(raws), extra)


def oip_matrix(folder: Path) -> bytes:
    """One row, all columns as one binary tensor, the answer in binary too: the shortest request."""
    raw = Pipeline.from_bytes((folder / "features.json").read_bytes()).encode([ROW]).tobytes()
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, len(ROW)],
        "parameters": {"binary_data_size": len(raw)},
    }
    parameters = {"at": "2026-01-31T09:30:00Z", "binary_data_output": True}
    head = json.dumps({"id": "bench", "parameters": parameters, "inputs": [tensor]}).encode()
    extra = f"inference-header-content-length: {len(head)}\r\n"
    return _post("/v2/models/flight-delay/infer", head + raw, extra)


class Client(asyncio.Protocol):
    """Sends the same request over and over on one connection; counts only complete answers of status 200."""

    def __init__(self, request: bytes, until: float) -> None:
        self.request = request
        self.until = until
        self.times: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.start = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.start = time.perf_counter_ns()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        if b" 200 " not in head[:16]:
            self.done.set_exception(RuntimeError(self.buffer.decode(errors="replace")))
            return
        self.buffer = b""
        self.times.append((time.perf_counter_ns() - self.start) / 1000)
        if time.perf_counter() < self.until:
            self._send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the server closed"))


async def load(what: str, address: tuple[str, int], request: bytes, clients: int, pid: int) -> Figures:
    """Load a server for `SECONDS` after a short warm-up."""
    loop, process = asyncio.get_running_loop(), psutil.Process(pid)

    async def burst(seconds: float) -> list[float]:
        until = time.perf_counter() + seconds
        made = [(await loop.create_connection(lambda: Client(request, until), *address))[1] for _ in range(clients)]
        await asyncio.gather(*(client.done for client in made))
        return [t for client in made for t in client.times]

    await burst(0.2)
    before, began = process.cpu_times(), time.perf_counter()
    times = await burst(SECONDS)
    seconds, after = time.perf_counter() - began, process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return _figures(f"{what}, {clients} client{'s' if clients > 1 else ''}", times, seconds, cpu_s)


# --- the peer: what an application developer writes in an afternoon


def serve_peer(port: int, folder: Path) -> None:
    """FastAPI, pydantic and onnxruntime on uvicorn with uvloop and httptools; runs until it is killed."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import create_model

    pipeline = Pipeline.from_bytes((folder / "features.json").read_bytes())
    session = open_session(Plan(), (folder / "model.onnx").read_bytes()).session
    fields: dict[str, tuple[type, object]] = {n: (str if isinstance(v, str) else float, ...) for n, v in ROW.items()}
    row_model = create_model("Row", **fields)  # type: ignore[call-overload]
    app = FastAPI()

    async def predict(row) -> dict[str, float]:  # type: ignore[no-untyped-def]  # the annotation is made above
        return {"probability": float(session.run([pipeline.encode([row.model_dump()])])[0][0])}

    predict.__annotations__["row"] = row_model
    app.post("/predict")(predict)
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="error", access_log=False)


async def peer(folder: Path) -> list[Figures]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--peer", str(port), str(folder))
    try:
        await _answers(port)
        request = _post("/predict", json.dumps(ROW).encode())
        address = ("127.0.0.1", port)
        return [await load("FastAPI + onnxruntime, JSON", address, request, n, process.pid) for n in (1, 16)]
    finally:
        process.kill()
        await process.wait()


async def _answers(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("the FastAPI peer did not start within 10 s")


async def worker(folder: Path, spool: Path) -> list[Figures]:
    process = WorkerProcess(spool)
    await process.start()
    try:
        version = Version("flight-delay", "1.0.0", "0" * 64, str(folder), Plan(batch=32))
        await process.apply((Route("flight-delay", version),))
        pid = (await process.status()).pid
        cases: list[tuple[str, Callable[[], bytes]]] = [
            ("worker, JSON", oip_json),
            ("worker, binary columns", oip_binary),
            ("worker, binary", lambda: oip_matrix(folder)),
        ]
        return [await load(what, process.address, make(), n, pid) for what, make in cases for n in (1, 16)]
    finally:
        await process.stop()


# --- the report


def rows(figures: list[Figures]) -> list[dict[str, object]]:
    """The figures as ``{what, value, unit, bar, holds}``."""
    found: list[dict[str, object]] = []
    for f in figures:
        for name, value, unit in (
            ("requests a second", f.rps, "1/s"),
            ("p50", f.p50_us, "µs"),
            ("p99", f.p99_us, "µs"),
            ("CPU a request", f.cpu_us, "µs"),
        ):
            found.append(
                {"what": f"{f.what}: {name}", "value": round(value, 1), "unit": unit, "bar": None, "holds": None}
            )
    by_name = {f.what: f for f in figures}
    for case, bar in (("JSON", JSON_BAR_US), ("binary", BINARY_BAR_US)):
        found.append(
            _limit(f"worker, {case}, 16 clients: CPU", by_name[f"worker, {case}, 16 clients"].cpu_us, bar, "µs")
        )
    alone, bare_call = by_name["worker, binary, 1 client"], by_name["onnxruntime, called in process"]
    found.append(_limit("p50 of one client by the bare call's", alone.p50_us / bare_call.p50_us, ALONE_BAR, "times"))
    for clients, bar in (("1 client", 1.5), ("16 clients", CPU_BAR)):
        ours, theirs = by_name[f"worker, JSON, {clients}"], by_name[f"FastAPI + onnxruntime, JSON, {clients}"]
        found.append(_ratio(f"CPU a request, FastAPI by worker, JSON, {clients}", theirs.cpu_us / ours.cpu_us, bar))
        found.append(_ratio(f"p50, FastAPI by worker, JSON, {clients}", theirs.p50_us / ours.p50_us, P50_BAR))
    return found


def _limit(what: str, value: float, bar: float, unit: str) -> dict[str, object]:
    return {"what": what, "value": round(value, 2), "unit": unit, "bar": f"≤ {bar:g}", "holds": value <= bar}


def _ratio(what: str, value: float, bar: float) -> dict[str, object]:
    return {"what": what, "value": round(value, 2), "unit": "times", "bar": f"≥ {bar:g}", "holds": value >= bar}


async def bench() -> list[Figures]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_release(Path(temporary) / "release")
        figures = [bare(folder)]
        figures += await worker(folder, Path(temporary) / "spool")
        figures += await peer(folder)
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", nargs=2, metavar=("PORT", "FOLDER"), help="serve the FastAPI peer (internal)")
    options = parser.parse_args()
    if options.peer:
        serve_peer(int(options.peer[0]), Path(options.peer[1]))
        return
    import uvloop

    figures = uvloop.run(bench())
    print(f"{'':48}{'req/s':>9}{'p50 µs':>10}{'p99 µs':>10}{'CPU µs/req':>12}")
    for f in figures:
        print(f"{f.what:48}{f.rps:9.0f}{f.p50_us:10.1f}{f.p99_us:10.1f}{f.cpu_us:12.1f}")
    found = rows(figures)
    for row in found[-7:]:
        print(
            f"{row['what']}: {row['value']} {row['unit']} (bar {row['bar']}: {'holds' if row['holds'] else 'missed'})"
        )
    target = ROOT / "build/bench/worker.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
