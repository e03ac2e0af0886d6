"""The batcher: neighbours share a run, the lonely never wait, one's fault is not another's."""

import asyncio
import threading

import numpy as np
import pytest
from landreeve_agent.serving.batcher import Batcher
from landreeve_agent.serving.errors import BusyError, RunFailedError
from landreeve_agent.serving.session import Tensor


class Doubling:
    """Answers twice the first column; fails on rows holding a negative; waits at the gate when told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, x: Tensor) -> Tensor:
        self.gate.wait(5)
        self.sizes.append(len(x))
        if (x < 0).any():
            raise RunFailedError("negative row")
        return np.asarray(x[:, 0] * 2, np.float32)


def row(*values: float) -> Tensor:
    return np.array([[v] for v in values], np.float32)


async def ask(batcher: Batcher, x: Tensor) -> Tensor | RunFailedError:
    future: asyncio.Future[Tensor | RunFailedError] = asyncio.get_running_loop().create_future()
    batcher.submit(x, future.set_result)
    return await future


async def values(*asked: "asyncio.Task[Tensor | RunFailedError]") -> list[object]:
    return [a if isinstance(a, RunFailedError) else a.tolist() for a in await asyncio.gather(*asked)]


async def test_quick_graph_without_joining_answers_within_the_call() -> None:
    answers: list[Tensor | RunFailedError] = []
    Batcher(Doubling(), batch_rows=1, quick=True).submit(row(3), answers.append)
    assert np.asarray(answers[0]).tolist() == [6.0]


@pytest.mark.parametrize("quick", [True, False])
async def test_neighbours_of_one_moment_share_a_run_and_each_gets_its_own_rows(quick: bool) -> None:
    run = Doubling()
    batcher = Batcher(run, batch_rows=8, quick=quick)
    asked = [asyncio.create_task(ask(batcher, x)) for x in (row(1), row(2, 3), row(4))]
    assert await values(*asked) == [[2.0], [4.0, 6.0], [8.0]]
    assert run.sizes == [4]
    batcher.retire()


async def test_a_batch_never_exceeds_its_rows() -> None:
    run = Doubling()
    batcher = Batcher(run, batch_rows=3, quick=True)
    asked = [asyncio.create_task(ask(batcher, row(i))) for i in range(7)]
    assert await values(*asked) == [[2.0 * i] for i in range(7)]
    assert run.sizes == [3, 3, 1]


async def test_rows_that_arrive_during_a_slow_run_are_joined_into_the_next() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = Batcher(run, batch_rows=8, quick=False)
    first = asyncio.create_task(ask(batcher, row(1)))
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(ask(batcher, row(i))) for i in (2, 3)]
    await asyncio.sleep(0)
    run.gate.set()
    assert await values(first, *later) == [[2.0], [4.0], [6.0]]
    assert run.sizes == [1, 2]
    batcher.retire()


async def test_a_failing_row_does_not_fail_its_neighbours() -> None:
    batcher = Batcher(Doubling(), batch_rows=8, quick=True)
    asked = [asyncio.create_task(ask(batcher, x)) for x in (row(1), row(-1), row(2))]
    good, bad, also_good = await values(*asked)
    assert (good, also_good) == ([2.0], [4.0])
    assert isinstance(bad, RunFailedError)


async def test_a_full_queue_is_refused_at_once() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = Batcher(run, batch_rows=1, quick=False, max_waiting=2)
    asked = [asyncio.create_task(ask(batcher, row(1)))]
    await asyncio.sleep(0.01)
    asked += [asyncio.create_task(ask(batcher, row(i))) for i in (2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError, match="2 requests wait already"):
        batcher.submit(row(9), lambda _: None)
    run.gate.set()
    assert await values(*asked) == [[2.0], [4.0], [6.0]]
    batcher.retire()


async def test_a_retired_lane_answers_what_waits_and_takes_no_more() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = Batcher(run, batch_rows=1, quick=False)
    asked = [asyncio.create_task(ask(batcher, row(i))) for i in (1, 2)]
    await asyncio.sleep(0.01)
    batcher.retire()
    run.gate.set()
    assert await values(*asked) == [[2.0], [4.0]]
    await asyncio.sleep(0.01)
    with pytest.raises(BusyError, match="replaced"):
        batcher.submit(row(1), lambda _: None)
