"""A run that never comes back, in a real worker: who waits is told, and the process is replaced while it serves."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from landreeve_agent.serving import supervise
from landreeve_agent.serving.control import Route, WorkerStatus
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.options import Limits, Options
from landreeve_agent.serving.replacing import Pace
from landreeve_agent.serving.supervise import WorkerProcess

from tests.agent.onnx_models import body, endless, version, write_release
from tests.agent.serving_worker import captured

LIMITS = Limits(ask_every_s=0.1, leave_s=1.0)
BAD = {"name": "wind", "datatype": "FP64", "shape": [1], "data": [5000.0]}


def hanging(document: dict[str, object]) -> dict[str, object]:
    inputs = [BAD if tensor["name"] == "wind" else tensor for tensor in document["inputs"]]  # type: ignore[attr-defined]
    return {**document, "inputs": inputs}


class Caller:
    """One application: keeps its connection until the server ends it with its answer; never repeats a request."""

    def __init__(self, worker: WorkerProcess, model: str) -> None:
        self.worker, self.model = worker, model
        self.answers: list[tuple[str, int]] = []
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, document: dict[str, object]) -> tuple[int, dict[str, object]]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self.worker.address)
        reader, writer = self._streams
        sent = json.dumps(document).encode()
        writer.write(
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(sent)}\r\n\r\n".encode()
            + sent
        )
        async with asyncio.timeout(30):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r")[0])
        answer = json.loads(await reader.readexactly(length))
        if b"connection: close" in head:
            await self.close()
        return int(head.split(b" ")[1]), answer

    async def go_on(self, name: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = f"{name}-{len(self.answers)}"
            self.answers.append((number, (await self.ask(body(id=number)))[0]))
        await self.close()

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(ConnectionError):
                await self._streams[1].wait_closed()
            self._streams = None


async def once(worker: WorkerProcess, document: dict[str, object], model: str = "stuck") -> tuple[int, str]:
    caller = Caller(worker, model)
    try:
        code, answer = await caller.ask(document)
    finally:
        await caller.close()
    return code, str(answer.get("error", ""))


def routes(folder: Path) -> tuple[Route, Route]:
    """A healthy model, and one that a certain row sends into a run without end."""
    bad = write_release(folder / "bad")
    (bad / "model.onnx").write_bytes(endless())
    return (
        Route("delay", version(write_release(folder / "good"))),
        Route("stuck", version(bad, "2.0.0", model="stuck")),
    )


async def replaced(worker: WorkerProcess, pid: int) -> WorkerStatus:
    async with asyncio.timeout(30):
        while (status := await worker.status()).pid in (0, pid):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)
    return status


def readers(path: Path) -> list[int]:
    """Processes that were started for this file."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [process.info["pid"] for process in found if str(path) in (process.info["cmdline"] or [])]


@asynccontextmanager
async def serving(
    folder: Path, limits: Limits = LIMITS, stuck_s: float = 0.5
) -> AsyncIterator[tuple[WorkerProcess, Route, list[str]]]:
    """A worker that serves both models, the route of the healthy one, and what is told of the worker."""
    told: list[str] = []
    worker = WorkerProcess(
        folder / "spool", limits=limits, options=Options(stuck_s=stuck_s), on_replaced=told.append,
        on_restart=lambda end: told.append(f"restarted {end.cause} {end.count}"),
    )  # fmt: skip
    await worker.start()
    good, bad = routes(folder)
    try:
        await worker.apply((good, bad))
        yield worker, good, told
    finally:
        await worker.stop()


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        pytest.param(True, True, id="beside, still wanted"),
        pytest.param(False, False, id="in turns, no longer wanted"),
        pytest.param(True, False, id="beside, no longer wanted", marks=pytest.mark.slow),
        pytest.param(False, True, id="in turns, still wanted", marks=pytest.mark.slow),
    ],
)
async def test_worker_with_a_run_that_never_ends_is_replaced_without_a_failed_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool, wanted: bool
) -> None:
    monkeypatch.setattr(supervise, "available_bytes", lambda: 10**12 if room else 0)
    async with serving(tmp_path) as (worker, good, told):
        pid = (await worker.status()).pid
        stop, callers = asyncio.Event(), [Caller(worker, "delay") for _ in range(4)]
        tasks = [asyncio.create_task(caller.go_on(str(n), stop)) for n, caller in enumerate(callers)]
        lost = asyncio.create_task(once(worker, hanging(body(id="lost"))))
        await asyncio.sleep(0.2)
        if not wanted:
            await worker.apply((good,))
        status = await replaced(worker, pid)
        assert (await lost)[0] == 500, "whoever sent the row is told too"
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*tasks)
        if wanted:
            assert (await once(worker, body(id="after")))[0] == 200
        async with asyncio.timeout(20):
            while psutil.pid_exists(pid):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
        assert told == ["stuck 2.0.0 did not come back from a run"]
        assert status.restarts == 0
    asked = [answer for caller in callers for answer in caller.answers]
    assert {code for _, code in asked} == {200}
    assert len(asked) > 100
    on_file = sorted(line.id for line in captured(tmp_path) if line.model == "delay")
    assert on_file == sorted(number for number, _ in asked), "each row once"


@pytest.mark.parametrize("room", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_worker_with_a_load_that_never_ends_is_replaced_without_a_failed_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    monkeypatch.setattr(supervise, "available_bytes", lambda: 10**12 if room else 0)
    hung = write_release(tmp_path / "hung")
    (hung / "model.onnx").unlink()
    os.mkfifo(hung / "model.onnx")  # opening it waits for somebody who writes
    async with serving(tmp_path, Limits(ask_every_s=0.1, leave_s=1.0, apply_s=4.0, stop_s=0.5)) as (worker, good, told):
        pid = (await worker.status()).pid
        stop, callers = asyncio.Event(), [Caller(worker, "delay") for _ in range(4)]
        tasks = [asyncio.create_task(caller.go_on(str(n), stop)) for n, caller in enumerate(callers)]
        with pytest.raises(LoadFailedError) as failed:
            await worker.apply((Route("delay", version(hung, "3.0.0")),))
        assert failed.value.cause == "load_hung"
        await worker.apply((good,))  # as an update does that goes back
        status = await replaced(worker, pid)
        stop.set()
        await asyncio.gather(*tasks)
        async with asyncio.timeout(20):
            while psutil.pid_exists(pid) or readers(hung / "model.onnx"):  # noqa: ASYNC110 - they are other processes
                await asyncio.sleep(0.05)
        assert told == ["a model did not come back from its loading"]
        assert (status.restarts, [model.version for model in status.models]) == (0, ["1.0.0"])
    asked = [answer for caller in callers for answer in caller.answers]
    assert {code for _, code in asked} == {200}
    on_file = sorted(line.id for line in captured(tmp_path) if line.model == "delay")
    assert on_file == sorted(number for number, _ in asked), "each row once"


@pytest.mark.slow
async def test_model_that_hangs_again_and_again_is_not_replaced_in_a_loop(tmp_path: Path) -> None:
    limits = Limits(ask_every_s=0.1, leave_s=0.2, pace=Pace(first_s=3600.0))
    async with serving(tmp_path, limits, stuck_s=0.3) as (worker, _, told):
        for _ in range(2):
            pid = (await worker.status()).pid
            assert (await once(worker, hanging(body())))[0] == 500
            if not told:
                await replaced(worker, pid)
        await asyncio.sleep(1.0)
        assert len(told) == 1
        code, answer = await once(worker, body())
        assert (code, "does not come back" in answer) == (500, True), "told at once what is wrong"
        assert (await once(worker, body(), "delay"))[0] == 200


@pytest.mark.slow
async def test_new_worker_that_cannot_serve_everything_does_not_take_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as (worker, _, told):
        pid = (await worker.status()).pid
        (tmp_path / "good/model.onnx").write_bytes(b"rotten")
        assert (await once(worker, hanging(body())))[0] == 500
        await asyncio.sleep(2.0)
        assert (await worker.status()).pid == pid
        assert (await once(worker, body(), "delay"))[0] == 200
        assert told == []
