"""A real worker that serves in a thread of its own, for tests of what asks it synchronously."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from landreeve_agent.intake.line import Line, parse_lines
from landreeve_agent.serving.control import Route
from landreeve_agent.serving.options import Options
from landreeve_agent.serving.supervise import WorkerProcess

from tests.agent.onnx_models import version, write_release

ANSWER_S = 30.0


def captured(folder: Path, *, killed: bool = False) -> list[Line]:
    """Every row that a worker with this folder has put on file; none may be damaged. A ``killed`` one may have left a
    file that ends within a row, at the end of a page: the kernel ends the write there."""
    lines: list[Line] = []
    for path in sorted((folder / "spool").glob("*.jsonl")):
        data = path.read_bytes()
        chunk = parse_lines(data, 0, closed=False)
        assert chunk.bad == 0
        assert chunk.end == len(data) or killed
        lines += chunk.lines
    return lines


class ServingWorker:
    """A worker process with its supervisor; calls may come from any thread."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, options: Options | None) -> None:
        self.folder = folder
        self.loop = loop
        self.options = options or Options()
        self.process = WorkerProcess(folder / "spool", options=options)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(ANSWER_S)

    def serve(self, name: str = "1.0.0", bias: float = 0.0, **changes: Any) -> None:
        self.call(self.process.apply((Route("delay", version(write_release(self.folder / name, bias), name)),)))

    @property
    def address(self) -> tuple[str, int]:
        return self.process.address

    def captured(self) -> list[Line]:
        """Every row the worker has put on file."""
        return captured(self.folder)


@contextmanager
def serving_worker(folder: Path, options: Options | None = None) -> Iterator[ServingWorker]:
    """Started and stopped; it serves nothing yet."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="supervisor", daemon=True)
    thread.start()
    worker = ServingWorker(folder, loop, options)
    try:
        worker.call(worker.process.start())
        yield worker
    finally:
        worker.call(worker.process.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(ANSWER_S)
        loop.close()
