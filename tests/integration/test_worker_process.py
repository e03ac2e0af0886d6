"""The worker as a real process: swaps under load, deaths, crash loops, and the orphan it must not become."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
from landreeve.sealed.files import SealedFiles
from landreeve_agent.serving.control import Plan, Route, Secrets, Share, Version
from landreeve_agent.serving.ending import CRASH_LOOP
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.options import Limits, Options
from landreeve_agent.serving.replacing import Pace
from landreeve_agent.serving.supervise import WorkerProcess

from tests.agent.onnx_models import body, version, write_release
from tests.agent.serving_worker import captured

Restarts = list[tuple[str, int]]


@asynccontextmanager
async def running(folder: Path, limits: Limits | None = None) -> AsyncIterator[tuple[WorkerProcess, Restarts]]:
    restarts: Restarts = []
    worker = WorkerProcess(
        folder / "spool", on_restart=lambda end: restarts.append((end.cause, end.count)), limits=limits
    )
    await worker.start()
    try:
        yield worker, restarts
    finally:
        await worker.stop()


async def post(
    worker: WorkerProcess, document: object, path: str = "/v2/models/delay/infer"
) -> tuple[int, dict[str, object]]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*worker.address)
    try:
        sent = json.dumps(document).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(sent)}\r\n\r\n"
        writer.write(head.encode() + sent)
        async with asyncio.timeout(20):
            answer = await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    if not answer:
        raise ConnectionResetError("closed without an answer")
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def get(worker: WorkerProcess, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(*worker.address)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[2]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something another process does."""
    while not holds():  # noqa: ASYNC110 - nothing in this process tells when
        await asyncio.sleep(0.01)


def reached(restarts: Restarts, count: int) -> bool:
    return len(restarts) >= count


def route(folder: Path, name: str, bias: float = 0.0, shadow: Version | None = None, plan: Plan | None = None) -> Route:
    return Route("delay", version(write_release(folder / name, bias), name, plan), shadow)


async def test_it_serves_what_is_applied_and_tells_about_it(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, _):
        assert (await post(worker, body()))[0] == 404
        await worker.apply((route(tmp_path, "1.0.0"),))
        status, answer = await post(worker, body())
        assert (status, answer["model_version"]) == (200, "1.0.0")
        told = await worker.status()
        assert told.models[0].used == "CPU · onnxruntime · fp32 · 1 thread"
        assert (told.models[0].wanted, told.models[0].ready, told.counts.rows) == ("auto", True, 1)
        assert (await get(worker, "/v2/models/delay/versions/1.0.0/ready"))[0] == 200
        assert (await get(worker, "/v2/models/delay/versions/9/ready"))[0] == 404
        assert b'landreeve_requests_total{model="delay"} 1' in (await get(worker, "/metrics"))[1]


@pytest.mark.parametrize(
    ("path", "document", "status", "words"),
    [
        ("/v2/models/delay/infer", body(inputs=[]), 400, "inputs: empty"),
        ("/v2/models/price/infer", body(), 404, "there are: delay"),
        ("/v2/models/delay/ready", body(), 405, "only /v2/models/{model}/infer takes POST"),
        ("/nothing", body(), 404, "the API begins at /v2"),
        ("/v2/models/delay/infer", body(pad="x" * 20_000_000), 413, "body: larger than 16777216 bytes"),
    ],
)
async def test_every_refusal_is_json_that_names_what_is_wrong(
    tmp_path: Path, path: str, document: object, status: int, words: str
) -> None:
    async with running(tmp_path) as (worker, _):
        await worker.apply((route(tmp_path, "1.0.0"),))
        got, answer = await post(worker, document, path)
        assert got == status
        assert words in str(answer["error"])


async def test_a_version_that_does_not_load_leaves_the_old_one_serving(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, restarts):
        good = route(tmp_path, "1.0.0")
        await worker.apply((good,))
        bad = route(tmp_path, "2.0.0")
        (tmp_path / "2.0.0/model.onnx").write_bytes(b"damaged")
        with pytest.raises(LoadFailedError) as refusal:
            await worker.apply((bad,))
        assert refusal.value.cause == "bad_graph"
        assert "delay 2.0.0" in refusal.value.sentence
        assert (await post(worker, body()))[1]["model_version"] == "1.0.0"
        assert worker.routes == (good,)
        assert restarts == []


async def test_swapping_routes_under_load_fails_no_request_and_loses_no_row(tmp_path: Path) -> None:
    """Direct, blue-green (loaded and warm beside, then all traffic at once, the old one listening) and back."""
    async with running(tmp_path) as (worker, _):
        plan = Plan(batch=16)
        first, second = route(tmp_path, "1.0.0", plan=plan), route(tmp_path, "2.0.0", 1.0, plan=plan)
        await worker.apply((first,))
        answered: list[tuple[str, str]] = []
        stop = asyncio.Event()

        async def client(name: int) -> None:
            for n in range(100_000):
                if stop.is_set():
                    return
                status, answer = await post(worker, body(id=f"{name}-{n}"))
                assert status == 200, answer
                answered.append((f"{name}-{n}", str(answer["model_version"])))

        clients = [asyncio.create_task(client(name)) for name in range(8)]
        blue, green = first.active, second.active
        stages: list[tuple[Version, Version | None, tuple[Share, ...]]] = [
            (green, None, ()), (blue, None, ()),
            (blue, None, (Share(green, 0.0),)), (green, blue, ()), (green, None, ()),
            (blue, None, ()), (green, None, ()),
        ]  # fmt: skip
        for active, shadow, shares in stages:
            await worker.apply((Route("delay", active, shadow, shares),))
            seen = len(answered)
            while len(answered) < seen + 16:  # noqa: ASYNC110 - each stage answers, so each swap is under load
                await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*clients)
        lines = captured(tmp_path)
        assert sorted((line.id, line.version) for line in lines) == sorted(answered)
        assert {v for _, v in answered} == {"1.0.0", "2.0.0"}
        assert any(line.shadow is not None for line in lines)


async def test_growing_share_keeps_who_it_had_and_drops_no_request(tmp_path: Path) -> None:
    """An A/B test by a column: one value always meets one version, also while its share grows under load."""
    async with running(tmp_path) as (worker, _):
        old, new = route(tmp_path, "1.0.0"), route(tmp_path, "2.0.0", 1.0)
        await worker.apply((old,))
        seen: dict[str, list[str]] = {f"{n}": [] for n in range(40)}
        stop = asyncio.Event()

        async def client(names: list[str]) -> None:
            while not stop.is_set():
                for name in names:
                    wind = {"name": "wind", "datatype": "FP64", "shape": [1], "data": [float(name)]}
                    asked = body(id=f"{name}-{len(seen[name])}")
                    inputs = [wind if tensor["name"] == "wind" else tensor for tensor in asked["inputs"]]
                    status, answer = await post(worker, asked | {"inputs": inputs})
                    assert status == 200, answer
                    seen[name].append(str(answer["model_version"]))

        clients = [asyncio.create_task(client(list(seen)[at::4])) for at in range(4)]
        for share in (0.0, 0.2, 0.6, 1.0):
            await worker.apply((Route("delay", old.active, None, (Share(new.active, share),), key="wind"),))
            await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*clients)
        for versions in seen.values():
            assert versions == sorted(versions), "nobody goes back while the share grows"
            assert versions[-1] == "2.0.0"
        assert len({versions.count("1.0.0") // 4 for versions in seen.values()}) > 1, "not all changed at one moment"
        lines = captured(tmp_path)
        assert sorted(line.id for line in lines) == sorted(f"{n}-{i}" for n, v in seen.items() for i in range(len(v)))


async def test_after_a_segmentation_fault_callers_wait_for_the_next_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, restarts):
        await worker.apply((route(tmp_path, "1.0.0"),))
        pid = (await worker.status()).pid
        os.kill(pid, signal.SIGSEGV)
        await asyncio.sleep(0.05)
        status, answer = await post(worker, body(id="after"))
        assert (status, answer["model_version"]) == (200, "1.0.0")
        told = await worker.status()
        assert told.pid not in (0, pid)
        assert (told.restarts, told.last_exit) == (1, "signal SIGSEGV")
        assert restarts == [("signal SIGSEGV", 1)]
        assert [line.id for line in captured(tmp_path)] == ["after"]


async def test_every_answered_row_is_on_file_when_the_worker_is_killed_under_load(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, _):
        await worker.apply((route(tmp_path, "1.0.0"),))
        answered: set[str] = set()

        async def client(name: int) -> None:
            for n in range(150):
                # A request that the dying worker held is the caller's to repeat.
                with suppress(ConnectionError):
                    await post(worker, body(id=f"{name}-{n}"))
                    answered.add(f"{name}-{n}")

        clients = [asyncio.create_task(client(name)) for name in range(4)]
        for _ in range(3):
            await asyncio.sleep(0.1)
            with suppress(ProcessLookupError):
                os.kill((await worker.status()).pid or 0x7FFFFFFF, signal.SIGKILL)
        await asyncio.gather(*clients)
        assert answered <= {line.id for line in captured(tmp_path, killed=True)}
        assert len(answered) > 300


async def test_a_worker_that_keeps_dying_is_reported_once_and_tries_the_simplest_plan(tmp_path: Path) -> None:
    limits = Limits(first_backoff_s=0.05, loop_crashes=3)
    async with running(tmp_path, limits) as (worker, restarts):
        shadow = version(write_release(tmp_path / "0.9.0"), "0.9.0")
        await worker.apply((route(tmp_path, "1.0.0", shadow=shadow, plan=Plan(threads=2)),))
        for count in (1, 2, 3):
            os.kill((await worker.status()).pid, signal.SIGKILL)
            await until(partial(reached, restarts, count))
            assert (await post(worker, body()))[0] == 200
        told = await worker.status()
        assert restarts == [("signal SIGKILL", 1), ("signal SIGKILL", 2), (CRASH_LOOP, 3)]
        assert "the worker died 3 times" in told.models[0].reason
        assert (told.models[0].used, told.models[0].shadow) == ("CPU · onnxruntime · fp32 · 1 thread", "")


async def test_a_worker_gets_its_own_plans_back_and_at_the_next_death_the_simplest_again(tmp_path: Path) -> None:
    limits = Limits(first_backoff_s=0.05, loop_crashes=2, ask_every_s=0.1, retry=Pace(first_s=1.0))
    async with running(tmp_path, limits) as (worker, restarts):
        shadow = version(write_release(tmp_path / "0.9.0"), "0.9.0")
        await worker.apply((route(tmp_path, "1.0.0", shadow=shadow, plan=Plan(threads=2)),))

        async def has(used: str, listens: str, reason: str) -> int:
            """Wait until the model runs so, and why; the worker's pid."""
            async with asyncio.timeout(30):
                while True:
                    told = await worker.status()
                    if told.models and (told.models[0].used, told.models[0].shadow) == (used, listens):
                        assert reason in told.models[0].reason
                        return told.pid
                    await asyncio.sleep(0.02)

        plain, own = "CPU · onnxruntime · fp32 · 1 thread", "CPU · onnxruntime · fp32 · 2 threads"
        for count in (1, 2):
            os.kill((await worker.status()).pid, signal.SIGKILL)
            await until(partial(reached, restarts, count))
            assert (await post(worker, body()))[0] == 200
        pid = await has(plain, "", "the worker died 2 times")
        assert await has(own, "0.9.0", "") == pid, "without a restart"
        os.kill(pid, signal.SIGKILL)
        pid = await has(plain, "", "default plan")
        assert await has(own, "0.9.0", "") == pid, "tried again, later"
        assert len(restarts) == 3


async def killed_while_it_serves(worker: WorkerProcess, bad: str) -> None:
    """The worker dies as often as it comes up with that version, before anything can be loaded beside it."""
    while True:
        told = await worker.status()
        if any(model.version == bad for model in told.models):
            with suppress(ProcessLookupError):
                os.kill(told.pid, signal.SIGKILL)
        await asyncio.sleep(0.005)


async def test_what_keeps_dying_can_be_left_for_what_does_not(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, restarts):
        good, damaged = route(tmp_path, "1.0.0"), route(tmp_path, "3.0.0")
        (tmp_path / "3.0.0/model.onnx").write_bytes(b"damaged")
        await worker.apply((route(tmp_path, "2.0.0"),))
        killer = asyncio.create_task(killed_while_it_serves(worker, "2.0.0"))
        await until(partial(reached, restarts, 2))
        with pytest.raises(LoadFailedError, match=r"delay 3\.0\.0"):
            await worker.apply((damaged,))
        await until(partial(reached, restarts, 3))
        await worker.apply((good,))
        assert worker.routes == (good,)
        assert (await post(worker, body()))[1]["model_version"] == "1.0.0"
        killer.cancel()


async def test_a_hanging_worker_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, Limits(hang_s=0.4, ask_every_s=0.1)) as (worker, restarts):
        await worker.apply((route(tmp_path, "1.0.0"),))
        os.kill((await worker.status()).pid, signal.SIGSTOP)
        assert (await post(worker, body()))[0] == 200
        assert restarts == [("hung", 1)]


async def test_a_folder_that_vanished_is_reported_after_a_restart_and_the_rest_serves(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, _):
        gone = Route("price", version(write_release(tmp_path / "price"), "1.0.0", model="price"))
        await worker.apply((route(tmp_path, "1.0.0"), gone))
        (tmp_path / "price/model.onnx").unlink()
        os.kill((await worker.status()).pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
        assert (await post(worker, body()))[0] == 200
        status, answer = await post(worker, body(), "/v2/models/price/infer")
        assert status == 503
        assert "model.onnx" in str(answer["error"])
        ready = {m.model: m.ready for m in (await worker.status()).models}
        assert ready == {"delay": True, "price": False}
        assert (await get(worker, "/v2/health/ready"))[0] == 503


_SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from landreeve_agent.serving.supervise import WorkerProcess
async def main():
    worker = WorkerProcess(Path(sys.argv[1]))
    await worker.start()
    runtimes = {"onnxruntime", "openvino", "onnx", "torch", "numpy"}
    print((await worker.status()).pid, *(runtimes & set(sys.modules)))
    sys.stdout.flush()
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_worker_ends_when_its_supervisor_is_killed_and_the_supervisor_imports_no_runtime(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        words = parent.stdout.readline().split()
        assert words[1:] == []
        parent.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until and Path(f"/proc/{words[0]}").exists():
        time.sleep(0.02)
    assert not Path(f"/proc/{words[0]}").exists()


async def test_a_taken_port_is_an_error_of_the_start(tmp_path: Path) -> None:
    async with running(tmp_path) as (worker, _):
        other = WorkerProcess(tmp_path / "other", port=worker.address[1])
        with pytest.raises(OSError, match="in use"):
            await other.start()


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def test_a_sealed_version_and_its_tuned_graph_are_served_here_and_in_a_process_of_their_own(
    tmp_path: Path,
) -> None:
    folder = write_release(tmp_path / "models" / "delay" / "abc")
    (folder / "model.qdq.onnx").write_bytes((folder / "model.onnx").read_bytes())
    files = SealedFiles(tmp_path, {"00" * 8: b"k" * 32})
    for path in list(folder.iterdir()):
        files.seal(path)
    assert b"ir_version" not in (folder / "model.onnx").read_bytes()
    tuned = version(folder, plan=Plan(graph="model.qdq.onnx", recipe="qdq", precision="int8"))
    worker = WorkerProcess(tmp_path / "spool", options=Options(secrets=Secrets(files=files.opening)))
    await worker.start()
    try:
        for asked in (version(folder), tuned, msgspec.structs.replace(tuned, isolated=True)):
            await worker.apply((Route(model="delay", active=asked),))
            assert (await post(worker, body()))[0] == 200
            assert "int8" in (await worker.status()).models[0].used or asked == version(folder)
        (folder / "model.onnx").write_bytes((folder / "model.qdq.onnx").read_bytes())  # put in its place by somebody
        with pytest.raises(LoadFailedError, match="sealed elsewhere, or altered"):
            await worker.apply((Route(model="delay", active=version(folder, "2.0.0")),))
    finally:
        await worker.stop()


async def test_a_worker_that_cannot_be_started_leaves_no_open_pipe_with_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    worker = WorkerProcess(
        tmp_path / "spool", limits=Limits(start_s=0.3), options=Options(secrets=Secrets(spool={"now": "6b" * 32}))
    )
    before = open_files()
    with pytest.raises(LoadFailedError, match="did not start"):
        await worker.start()
    assert open_files() - before == set()


async def test_a_worker_that_hangs_does_not_keep_who_stops_it(tmp_path: Path) -> None:
    async with running(tmp_path, Limits(stop_s=0.2, ask_every_s=60.0)) as (worker, _):
        await worker.apply((route(tmp_path, "1.0.0"),))
        pid = (await worker.status()).pid
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(8):
            await worker.stop(leave_s=0.3)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
