"""Many versions in one real worker: some in processes of their own, some asleep, some switched off, all behind TLS."""

import asyncio
import json
import os
import signal
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve_agent.config import Serving, StateFolder
from landreeve_agent.console.access import ensure_tokens
from landreeve_agent.serving.control import Residence, Route
from landreeve_agent.serving.door import door
from landreeve_agent.serving.options import Options
from landreeve_agent.serving.supervise import WorkerProcess

from tests.agent.onnx_models import body, graph, version, write_release


async def call(
    worker: WorkerProcess, method: str, path: str, document: object = None, headers: str = "", **tls: Any
) -> tuple[int, Any]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*worker.address, **tls)
    try:
        sent = b"" if document is None else json.dumps(document).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}content-length: {len(sent)}\r\n\r\n"
        )
        writer.write(head.encode() + sent)
        async with asyncio.timeout(30):
            answer = await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
    if not answer:
        raise ConnectionResetError("closed without an answer")
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def infer(worker: WorkerProcess, model: str = "delay") -> tuple[int, Any]:
    return await call(worker, "POST", f"/v2/models/{model}/infer", body())


async def residence(worker: WorkerProcess, model: str = "delay") -> Residence:
    (status,) = [m for m in (await worker.status()).models if m.model == model]
    return status.residents[0]


def route(folder: Path, model: str, name: str = "1.0.0", *, isolated: bool = False) -> Route:
    made = version(write_release(folder / f"{model}-{name}"), name, model=model)
    return Route(model, msgspec.structs.replace(made, isolated=isolated))


def lives(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_models_own_process_dies_alone(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    worker = WorkerProcess(tmp_path / "spool", on_restart=lambda end: told.append((end.cause, end.count)))
    await worker.start()
    try:
        await worker.apply((route(tmp_path, "delay", isolated=True), route(tmp_path, "price")))
        front, host = (await worker.status()).pid, await residence(worker)
        assert host.pid not in (0, front)
        assert (await infer(worker))[0] == 200
        os.kill(host.pid, signal.SIGSEGV)
        assert (await infer(worker, "price"))[0] == 200
        while (await infer(worker))[0] != 200:  # the call that meets the dying process
            pass
        again = await residence(worker)
        assert again.pid not in (0, host.pid)
        assert (again.restarts, again.last_exit) == (1, "signal SIGSEGV")
        assert (await worker.status()).pid == front
        assert told == [("delay: signal SIGSEGV", 1)]
    finally:
        await worker.stop()
    assert not lives(again.pid)


async def test_a_host_never_outlives_a_killed_worker(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path / "spool")
    await worker.start()
    try:
        await worker.apply((route(tmp_path, "delay", isolated=True),))
        host = await residence(worker)
        os.kill((await worker.status()).pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while lives(host.pid):  # noqa: ASYNC110 - nothing here tells when
                await asyncio.sleep(0.02)
        assert (await infer(worker))[0] == 200
    finally:
        await worker.stop()


async def test_more_models_than_fit_all_answer_and_only_some_are_awake(tmp_path: Path) -> None:
    routes = []
    for name in ("a", "b", "c", "d"):
        folder = write_release(tmp_path / name)
        (folder / "model.onnx").write_bytes(graph(hidden=400_000))  # 8 MB, five times that when it is open
        routes.append(Route(name, version(folder, model=name)))
    worker = WorkerProcess(tmp_path / "spool", options=Options(memory_mb=100))
    await worker.start()
    try:
        await worker.apply(tuple(routes))
        for name in ("a", "b", "c", "d", "a"):
            assert (await infer(worker, name))[0] == 200
        status = await worker.status()
        states = {m.model: m.residents[0].state for m in status.models}
        assert "asleep" in states.values()
        assert states["a"] == "awake"
        assert status.held_mb <= status.limit_mb == 100
        asleep = next(m.residents[0] for m in status.models if m.residents[0].state == "asleep")
        assert asleep.reason.startswith("asleep to make room for ")
    finally:
        await worker.stop()


async def test_a_model_switched_off_by_hand_stays_off_until_it_is_switched_on(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path / "spool")
    await worker.start()
    try:
        routes = (route(tmp_path, "delay"), route(tmp_path, "price"))
        await worker.apply(routes)
        assert (await call(worker, "POST", "/v2/repository/models/delay/unload"))[0] == 200
        status, answer = await infer(worker)
        assert status == 503
        assert "unloaded by hand" in answer["error"]
        assert (await infer(worker, "price"))[0] == 200
        await worker.apply(routes)
        index = (await call(worker, "POST", "/v2/repository/index", {}))[1]
        assert [(e["name"], e["state"]) for e in index] == [("delay", "UNAVAILABLE"), ("price", "READY")]
        ready = (await call(worker, "POST", "/v2/repository/index", {"ready": True}))[1]
        assert [entry["name"] for entry in ready] == ["price"]
        assert (await call(worker, "POST", "/v2/repository/models/delay/load"))[0] == 200
        assert (await infer(worker))[0] == 200
        assert (await call(worker, "POST", "/v2/repository/models/tides/load"))[0] == 404
        assert (await call(worker, "POST", "/v2/repository/models/delay/unload", None, "origin: http://x\r\n"))[
            0
        ] == 403
        stats = (await call(worker, "GET", "/v2/models/delay/stats"))[1]["model_stats"][0]
        assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (1, 1)
        # What the supervisor wants anew is served, whatever was switched off before.
        await call(worker, "POST", "/v2/repository/models/delay/unload")
        await worker.apply((route(tmp_path, "delay", "2.0.0"), routes[1]))
        assert (await infer(worker))[1]["model_version"] == "2.0.0"
    finally:
        await worker.stop()


async def test_beyond_the_box_only_tls_with_a_token_is_answered(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.prepare()
    ensure_tokens(state.tokens)
    made = door(Serving(host="0.0.0.0"), state)
    options = Options(tokens=made.tokens, tls_cert=made.certificate, tls_key=made.key)
    worker = WorkerProcess(tmp_path / "spool", options=options)
    await worker.start()
    try:
        await worker.apply((route(tmp_path, "delay"),))
        with pytest.raises((ConnectionError, IndexError, ValueError)):
            await infer(worker)
        tls = {"ssl": made.trust()}
        token = "".join(f"{name}: {value}\r\n" for name, value in made.headers().items())
        path = "/v2/models/delay/infer"
        status, answer = await call(worker, "POST", path, body(), **tls)
        assert (status, "a token is needed here" in answer["error"]) == (401, True)
        # Refused by its headers: nobody waits for a body that never comes.
        reader, writer = await asyncio.open_connection(*worker.address, **tls)
        writer.write(f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n".encode())
        async with asyncio.timeout(20):
            assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        writer.close()
        assert (await call(worker, "POST", path, body(), token, **tls))[0] == 200
        assert (await call(worker, "GET", "/v2/health/live", **tls))[0] == 200
        assert (await call(worker, "GET", "/v2/models", **tls))[0] == 401
    finally:
        await worker.stop()
