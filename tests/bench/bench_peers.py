"""The worker beside MLServer, Triton (through PyTriton), a plain FastAPI application and the bare runtime.

All serve the same two graphs with the same onnxruntime options (`tests/bench/peers/bare/onnx_session.py`). Every peer
is installed once into an environment of its own under build/peers (a few hundred MB from the package index). Servers
are all up and take turns: each short round loads one of them, the others rest; figures are medians of the rounds and
ratios medians of the rounds' ratios. Clients share the cores: compare CPU a request first. MLServer and Triton get
the ready tensor and keep nothing; the worker encodes a row of 13 columns and puts it on file before it answers.

    make bench-peers                       all of it, about five minutes
    tests/bench/bench_peers.py --smoke     one round of moments, to see that everything runs

Writes build/bench/peers.json.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.serving.control import Plan, Route, Version  # noqa: E402 - needs the path above
from landreeve_agent.serving.errors import LoadFailedError  # noqa: E402
from landreeve_agent.serving.supervise import WorkerProcess  # noqa: E402

from tests.bench.peers import cases, graphs, processes, report  # noqa: E402
from tests.bench.peers.cases import Case  # noqa: E402
from tests.bench.peers.environment import PeerUnavailableError  # noqa: E402
from tests.bench.peers.processes import Options, Server  # noqa: E402
from tests.bench.peers.results import Figures, Key, Results  # noqa: E402

HERE = Path(__file__).resolve().parent
READY = {"mlserver": "/v2/models/{}/ready", "pytriton": "/v2/models/{}/ready", "fastapi": "/openapi.json"}
CLIENTS = (1, 16)
TOLERANCE = 1e-3
LOAD_S = 120.0
Row = dict[str, object]


# --- the servers


@contextlib.asynccontextmanager
async def worker(folder: Path, options: Options, models: Sequence[str], results: Results) -> AsyncIterator[Server]:
    """Our worker with the releases in ``folder``; its plans are the peers' session options."""
    plans = {
        "tabular": ("flight-delay", Plan(threads=1, batch=32)),
        "image": ("page-rotation", Plan(threads=options.threads, streams=options.streams)),
    }
    before = {one.pid for one in processes.descendants(os.getpid())}
    process = WorkerProcess(folder / "spool")
    await process.start()
    try:
        routes: list[Route] = []
        for name in models:
            model, plan = plans[name]
            routes.append(Route(model, Version(model, "1.0.0", "0" * 64, str(folder / name), plan)))
            try:
                await process.apply(tuple(routes))
            except LoadFailedError as error:
                routes.pop()
                results.missing[f"worker, {name}"] = error.sentence
        pids = {one.pid for one in processes.descendants(os.getpid())} - before
        yield Server("worker", process.address[1], 0, tuple(pids))
    finally:
        await process.stop()


def start_peers(
    stack: contextlib.ExitStack, options: Options, models: Sequence[str], results: Results
) -> dict[str, Server]:
    """The peers that can be had; the others are noted."""
    servers = {}
    for name, ready in READY.items():
        try:
            servers[name] = stack.enter_context(processes.peer(name, ready.format(models[-1]), options))
        except PeerUnavailableError as error:
            results.missing[name] = str(error)
            print(f"not measured: {error}", file=sys.stderr, flush=True)
    return servers


# --- one round


async def child(command: Sequence[str], job: object = None, environ: dict[str, str] | None = None) -> Row:
    """Run a program of ours that takes a job and prints figures; they, or ``{"error": …}``."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # An unbuffered child loses the rest of a long line when its write to the pipe is cut by a signal.
        env=os.environ | {"PYTHONUNBUFFERED": ""} | (environ or {}),
    )
    try:
        async with asyncio.timeout(LOAD_S):
            out, err = await process.communicate(json.dumps(job).encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        return {"error": f"{Path(command[1]).name}: took more than {LOAD_S:g} s"}
    lines = out.decode().strip().splitlines()
    try:
        found: Row = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        name = Path(command[1]).name
        return {"error": f"{name}: {len(out)} bytes, exit {process.returncode}, {error}: {err.decode()[-300:]}"}
    return found


async def load(case: Case, server: Server, requests: Path, clients: int, seconds: float) -> Row:
    """Load the server by that case."""
    job = {
        "host": "127.0.0.1",
        "port": server.grpc_port if case.transport == "grpc" else server.port,
        "transport": case.transport,
        "requests": str(requests),
        "lengths": [len(request) for request in case.requests],
        "clients": clients,
        "seconds": seconds,
        "warm_s": min(0.3, seconds),
        "pids": server.pids,
    }
    return await child([sys.executable, str(HERE / "peers" / "load.py")], job)


async def call_bare(options: Options, model: str, seconds: float) -> Row:
    """The graph called in a process of its own, in our Python: the same runtime that the worker uses."""
    streams = 1 if model == "tabular" else options.streams
    command = [sys.executable, str(HERE / "peers/bare/call.py"), "--models", str(options.models), "--model", model]
    command += ["--threads", str(options.threads), "--streams", str(streams), "--seconds", str(seconds)]
    return await child(command)


def take(results: Results, key: Key, found: Row, case: Case | None, expected: np.ndarray) -> None:
    """Keep a round's figures when the first answer to each request was right; else note why there are none."""
    firsts = found.pop("firsts", {})
    if "error" in found:
        results.missing[report.title(key)] = " ".join(str(found["error"]).split())[:300]
        return
    if case is not None:
        for number, answer in firsts.items():  # type: ignore[attr-defined]
            got, right = case.read(base64.b64decode(answer)), np.ravel(expected[int(number)])
            if len(got) != len(right) or not np.allclose(got, right, atol=TOLERANCE):
                results.missing[report.title(key)] = f"request {number}: answered {got[:4]}, right is {right[:4]}"
                return
    results.rounds.setdefault(key, []).append(Figures(**found))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Todo:
    """A run: what is asked of whom, how long, how often, and the right answers."""

    options: Options
    models: tuple[str, ...]
    cases: list[Case]
    servers: dict[str, Server]
    expected: dict[str, np.ndarray]
    seconds: float
    rounds: int

    def plays(self) -> list[tuple[str, Case | None, int]]:
        """Model, case (None: the bare call) and clients; ours come right after the bare call they are held against."""
        found: list[tuple[str, Case | None, int]] = []
        for model in self.models:
            found.append((model, None, 1))
            made = [case for case in self.cases if case.model == model and case.server in self.servers]
            found += [(model, case, clients) for case in made for clients in CLIENTS]
        return found


async def one_round(todo: Todo, results: Results, turn: int) -> None:
    """Every play once, beginning at another one each time."""
    results.loads.append(os.getloadavg()[0])
    plays = todo.plays()
    start = turn * len(plays) // todo.rounds
    for model, case, clients in plays[start:] + plays[:start]:
        seconds = todo.seconds * (2 if model == "image" else 1)
        if case is None:
            key: Key = ("bare", model, "in process", 1)
            take(results, key, await call_bare(todo.options, model, seconds), None, np.empty(0))
            continue
        key = (case.server, model, case.form, clients)
        if report.title(key) in results.missing:
            continue
        requests = todo.options.work / f"{case.server}-{model}-{case.form.replace(' ', '-')}.requests"
        requests.write_bytes(b"".join(case.requests))
        found = await load(case, todo.servers[case.server], requests, clients, seconds)
        take(results, key, found, case, todo.expected[model])


def expected_answers(options: Options, models: Sequence[str]) -> dict[str, np.ndarray]:
    """What the bare runtime says to each request, along the first axis."""
    import onnxruntime as ort

    answers = {}
    for name in models:
        session = ort.InferenceSession(str(options.models / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: np.load(options.models / f"{name}.npy")}
        answers[name] = session.run(None, inputs)[0]
    return answers


async def measure(arguments: argparse.Namespace, folder: Path, results: Results) -> None:
    options = Options(folder / "models", folder / "work", arguments.threads, arguments.streams)
    options.models.mkdir()
    options.work.mkdir()
    models = write_models(folder, options, arguments.models, results)
    if not models:
        return
    encoded = {name: np.load(options.models / f"{name}.npy") for name in models}
    made = [case for name in models for case in getattr(cases, name)(encoded[name])]
    with contextlib.ExitStack() as stack:
        servers = await asyncio.to_thread(start_peers, stack, options, models, results)
        async with contextlib.AsyncExitStack() as ours:
            servers["worker"] = await ours.enter_async_context(worker(folder, options, models, results))
            expected = expected_answers(options, models)
            todo = Todo(options, models, made, servers, expected, arguments.seconds, arguments.rounds)
            for turn in range(arguments.rounds):
                await one_round(todo, results, turn)
                print(f"round {turn + 1} of {arguments.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


def write_models(folder: Path, options: Options, wanted: Sequence[str], results: Results) -> tuple[str, ...]:
    """Write the graphs and our releases; the models that can be had."""
    makers = {"tabular": graphs.write_tabular, "image": graphs.write_image}
    written = []
    for name in wanted:
        try:
            makers[name](options.models, folder / name)
        except PeerUnavailableError as error:
            results.missing[name] = str(error)
        else:
            written.append(name)
    return tuple(written)


def main() -> int:
    """Measure, print, write; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a burst; the image model takes twice it")
    parser.add_argument("--models", nargs="+", choices=("tabular", "image"), default=["tabular", "image"])
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of a run, for every server")
    parser.add_argument("--streams", type=int, default=1, help="runs of the image model at once, for every server")
    parser.add_argument("--smoke", action="store_true", help="one round of moments; its figures mean nothing")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.seconds = 1, 0.3
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit that ends the servers first
    results = Results()
    began = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            asyncio.run(measure(arguments, Path(temporary), results))
    finally:
        for name in processes.end_orphans():
            print(f"ended a process that its server left behind: {name}", file=sys.stderr)
    rows = report.rows(results)
    most = max(results.loads, default=0.0)
    print(f"{os.cpu_count()} cores, load {began:.1f} before, {most:.1f} at most between rounds (ours in it)")
    report.show(results, rows)
    target = ROOT / "build/bench/peers.json"
    if not arguments.smoke:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return 1 if results.missing else 0


if __name__ == "__main__":
    sys.exit(main())
