"""The supervisor's side of a worker, without one: what must hold at moments that real processes seldom meet."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from landreeve_agent.serving.control import Counts, Told
from landreeve_agent.serving.options import Limits
from landreeve_agent.serving.replacing import Falls, Pace
from landreeve_agent.serving.supervise import WorkerProcess


class Link:
    """A worker that is asked how it is, and answers when the test says so."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def ask(self, _make: Callable[[int], Any]) -> Any:
        self.asked.set()
        return await self.answer


async def test_death_right_after_its_own_plans_came_back_is_theirs(tmp_path: Path) -> None:
    worker, now = WorkerProcess(tmp_path, limits=Limits(loop_window_s=60.0)), asyncio.get_running_loop().time()
    assert not worker._falls_back()
    fallen = Falls().fallen(Pace(), now - 700.0)
    for tried_s_ago, simple in ((61.0, False), (59.0, True)):
        worker._falls = fallen.again(now - tried_s_ago)
        assert worker._falls_back() is simple
    assert len(worker._falls.past) == 2, "the pause before the next try is longer"


async def test_stop_that_comes_together_with_an_answer_is_not_lost(tmp_path: Path) -> None:
    worker, link = WorkerProcess(tmp_path, limits=Limits(ask_every_s=0.001)), Link()
    worker._link = link  # type: ignore[assignment]
    watching = asyncio.create_task(worker._watch(link))  # type: ignore[arg-type]
    await link.asked.wait()
    link.answer.set_result(Told(seq=1, rss_mb=1.0, models=(), counts=Counts()))
    watching.cancel()
    done, _ = await asyncio.wait({watching}, timeout=2.0)
    link.ended.set()
    assert done, "it watches on, and whoever stops the worker waits for ever"
    with pytest.raises(asyncio.CancelledError):
        watching.result()
