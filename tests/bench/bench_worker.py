"""The worker's HTTP against a bare onnxruntime call and a plain FastAPI application, in one run of under 20 s.

All answer the same rows of flight-delay (13 columns) with the same graph on one thread. The worker also puts every
row on file before it answers; the others capture nothing. Clients run on the same cores: compare CPU per request
first. ``calm`` is that figure in the moments when other programs leave the caches to it: where they use the machine
too, compare those. Writes build/bench/worker.json.
"""

import argparse
import asyncio
import json
import os
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Plan, Route, Version  # noqa: E402 - needs the path above
from landreeve_agent.serving.session import open_session  # noqa: E402
from landreeve_agent.serving.supervise import WorkerProcess  # noqa: E402
from landreeve_models.definition import load_definition  # noqa: E402
from landreeve_models.features.pipeline import Pipeline  # noqa: E402

from tests.agent.onnx_models import graph  # noqa: E402
from tests.bench.bench_worker_load import Figures, echo, figures, load  # noqa: E402

SECONDS = 1.5
CLIENTS = (1, 16)
VARIANTS = 64
MODEL = "flight-delay"
INFER = f"/v2/models/{MODEL}/infer"
ROW: dict[str, object] = {
    "carrier": "B6", "dest": "SFO", "distance": 2586.0, "weekday": 3, "hour": 17, "temp": 81.0, "dewp": 66.0,
    "humid": 60.1, "wind_speed": 12.7, "precip": 0.0, "pressure": 1009.5, "visib": 10.0, "recent_late": 0.31,
}  # fmt: skip
CPU_BAR = 6.0
P50_BAR = 1.0
JSON_BAR_US, BINARY_BAR_US = 50.0, 30.0
ALONE_BAR = 5.0


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
    return figures("onnxruntime, called in process", times, time.perf_counter() - began, time.process_time() - cpu)


# --- requests


def _post(path: str, body: bytes, extra: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _datatype(value: object) -> str:
    return "BYTES" if isinstance(value, str) else "FP64"


def varied() -> list[dict[str, object]]:
    """Rows that differ from one another, as those of a real caller do."""
    rng = np.random.default_rng(5)
    made = []
    for _ in range(VARIANTS):
        changes = {"temp": rng.uniform(10, 100), "humid": rng.uniform(10, 100), "recent_late": rng.uniform(0, 1)}
        made.append(ROW | {name: round(value, 2) for name, value in changes.items()} | {"hour": int(rng.integers(24))})
    return made


def _asked(number: int, inputs: list[dict[str, object]], **parameters: object) -> bytes:
    at = {"at": f"2026-01-31T09:{number % 60:02d}:{number // 60 % 60:02d}Z"}
    return json.dumps({"id": f"bench-{number:04d}", "parameters": at | parameters, "inputs": inputs}).encode()


def oip_json() -> list[bytes]:
    """One row each, each column a JSON tensor."""
    return [
        _post(
            INFER,
            _asked(
                number,
                [{"name": n, "datatype": _datatype(v), "shape": [1], "data": [v]} for n, v in row.items()],
            ),
        )
        for number, row in enumerate(varied())
    ]


def oip_binary() -> list[bytes]:
    """One row each, each column a binary tensor, the answer too."""
    made = []
    for number, row in enumerate(varied()):
        raws = {
            n: struct.pack("<I", len(v)) + v.encode() if isinstance(v, str) else struct.pack("<d", v)
            for n, v in row.items()
        }
        inputs: list[dict[str, object]] = [
            {"name": n, "datatype": _datatype(row[n]), "shape": [1], "parameters": {"binary_data_size": len(raw)}}
            for n, raw in raws.items()
        ]
        made.append(_binary(_asked(number, inputs, binary_data_output=True), b"".join(raws.values())))
    return made


def oip_matrix(folder: Path) -> list[bytes]:
    """One row each, all columns as one binary tensor, the answer in binary too: the shortest request."""
    pipeline = Pipeline.from_bytes((folder / "features.json").read_bytes())
    made = []
    for number, row in enumerate(varied()):
        raw = pipeline.encode([row]).tobytes()
        tensor: dict[str, object] = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, len(ROW)],
            "parameters": {"binary_data_size": len(raw)},
        }
        made.append(_binary(_asked(number, [tensor], binary_data_output=True), raw))
    return made


def _binary(head: bytes, tail: bytes) -> bytes:
    return _post(INFER, head + tail, f"inference-header-content-length: {len(head)}\r\n")


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
        asked = [_post("/predict", json.dumps(row).encode()) for row in varied()]
        what, address = "FastAPI + onnxruntime, JSON", ("127.0.0.1", port)
        return [await asyncio.to_thread(load, what, address, asked, n, process.pid) for n in CLIENTS]
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
        version = Version(MODEL, "1.0.0", "0" * 64, str(folder), Plan(batch=32))
        await process.apply((Route(MODEL, version),))
        pid = (await process.status()).pid
        cases = [
            ("worker, JSON", oip_json()),
            ("worker, binary columns", oip_binary()),
            ("worker, binary", oip_matrix(folder)),
        ]
        return [
            await asyncio.to_thread(load, what, process.address, asked, n, pid, model=MODEL)
            for what, asked in cases
            for n in CLIENTS
        ]
    finally:
        await process.stop()


# --- the report


def rows(measured: list[Figures]) -> list[dict[str, object]]:
    """The figures as ``{what, value, unit, bar, holds}``, those with a bar or a reason last."""
    found: list[dict[str, object]] = []
    for f in measured:
        for name, value, unit in (
            ("requests a second", f.rps, "1/s"),
            ("p50", f.p50_us, "µs"),
            ("p99", f.p99_us, "µs"),
            ("CPU a request", f.cpu_us, "µs"),
            ("CPU a request, calm moments", f.calm_cpu_us, "µs"),
            ("rows a run", f.rows_a_run, ""),
        ):
            if value:
                found.append(_plain(f"{f.what}: {name}", value, unit))
    return found + _bars({f.what: f for f in measured})


def _bars(by_name: dict[str, Figures]) -> list[dict[str, object]]:
    found = []
    for case, bar in (("JSON", JSON_BAR_US), ("binary columns", BINARY_BAR_US), ("binary", BINARY_BAR_US)):
        found.append(
            _limit(f"worker, {case}, 16 clients: CPU", by_name[f"worker, {case}, 16 clients"].cpu_us, bar, "µs")
        )
    alone, bare_call = by_name["worker, binary, 1 client"], by_name["onnxruntime, called in process"]
    floor = by_name["echo server on uvloop, 1 client"]
    found += [
        _limit("p50 of one client by the bare call's", alone.p50_us / bare_call.p50_us, ALONE_BAR, "times"),
        _plain("the same of a server that only echoes: the floor here", floor.p50_us / bare_call.p50_us, "times"),
        _plain("p50 of one client beyond the echo, by the bare call's",
               (alone.p50_us - floor.p50_us) / bare_call.p50_us, "times"),
        _plain("CPU of one client's request beyond the echo", alone.cpu_us - floor.cpu_us, "µs"),
    ]  # fmt: skip
    for clients, bar in (("1 client", 1.5), ("16 clients", CPU_BAR)):
        ours, theirs = by_name[f"worker, JSON, {clients}"], by_name[f"FastAPI + onnxruntime, JSON, {clients}"]
        found.append(_ratio(f"CPU a request, FastAPI by worker, JSON, {clients}", theirs.cpu_us / ours.cpu_us, bar))
        found.append(_ratio(f"p50, FastAPI by worker, JSON, {clients}", theirs.p50_us / ours.p50_us, P50_BAR))
    return found


def _plain(what: str, value: float, unit: str) -> dict[str, object]:
    return {"what": what, "value": round(value, 2), "unit": unit, "bar": None, "holds": None}


def _limit(what: str, value: float, bar: float, unit: str) -> dict[str, object]:
    return {"what": what, "value": round(value, 2), "unit": unit, "bar": f"≤ {bar:g}", "holds": value <= bar}


def _ratio(what: str, value: float, bar: float) -> dict[str, object]:
    return {"what": what, "value": round(value, 2), "unit": "times", "bar": f"≥ {bar:g}", "holds": value >= bar}


async def bench() -> list[Figures]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_release(Path(temporary) / "release")
        found = [bare(folder), *echo(oip_json(), CLIENTS)]
        found += await worker(folder, Path(temporary) / "spool")
        found += await peer(folder)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", nargs=2, metavar=("PORT", "FOLDER"), help="serve the FastAPI peer (internal)")
    options = parser.parse_args()
    if options.peer:
        serve_peer(int(options.peer[0]), Path(options.peer[1]))
        return
    import uvloop

    measured = uvloop.run(bench())
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':48}{'req/s':>9}{'p50 µs':>10}{'p99 µs':>10}{'CPU µs/req':>12}{'calm':>8}{'rows/run':>10}")
    for f in measured:
        calm = f"{f.calm_cpu_us:8.1f}" if f.calm_cpu_us else " " * 8
        runs = f"{f.rows_a_run:10.1f}" if f.rows_a_run else ""
        print(f"{f.what:48}{f.rps:9.0f}{f.p50_us:10.1f}{f.p99_us:10.1f}{f.cpu_us:12.1f}{calm}{runs}")
    for row in _bars({f.what: f for f in measured}):
        verdict = "" if row["bar"] is None else f" (bar {row['bar']}: {'holds' if row['holds'] else 'missed'})"
        print(f"{row['what']}: {row['value']} {row['unit']}{verdict}")
    found = rows(measured)
    target = ROOT / "build/bench/worker.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
