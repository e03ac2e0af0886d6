"""Joining, its limits, priorities and time limits, and that every caller gets exactly its own rows, once."""

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from landreeve_agent.serving.batcher import Arrays, Batcher, Job, Ran
from landreeve_agent.serving.errors import BusyError, LateError, RunFailedError, ServingError
from landreeve_agent.serving.session import Array


class Ask(Job):
    """A job with its rows and somebody who waits for it."""

    __slots__ = ("answer", "x")

    def __init__(self, *values: float, priority: int = 2, timeout_us: int = 0) -> None:
        super().__init__(len(values), priority, timeout_us)
        self.x = np.array([[v] for v in values], np.float32)
        self.answer: asyncio.Future[list[float] | ServingError] = asyncio.get_running_loop().create_future()


class Doubling:
    """Answers twice the first column; fails on rows holding a negative; waits at the gate when told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.order: list[float] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, feeds: Arrays) -> Arrays:
        (x,) = feeds
        self.gate.wait(5)
        self.sizes.append(len(x))
        self.order += x[:, 0].tolist()
        if (x < 0).any():
            raise RunFailedError("negative row")
        return [np.asarray(x[:, 0] * 2, np.float32)]


def features(jobs: Sequence[Job]) -> list[Array]:
    return [np.concatenate([job.x for job in jobs])]  # type: ignore[attr-defined]


def finish(done: Sequence[Ran]) -> None:
    for ran in done:
        offset = 0
        for job in ran.jobs:
            assert isinstance(job, Ask)
            if isinstance(ran.outputs, ServingError):
                job.answer.set_result(ran.outputs)
            else:
                job.answer.set_result(ran.outputs[0][offset : offset + job.rows].tolist())
            offset += job.rows


def made(
    run: Doubling, *, rows: int = 8, quick: bool = False, most: int = 1024, streams: int = 1, stuck_s: float = 20.0
) -> Batcher:
    return Batcher(
        features, run, finish, batch_rows=rows, quick=quick, max_waiting=most, streams=streams, stuck_s=stuck_s
    )


async def answers(batcher: Batcher, *asks: Ask) -> list[object]:
    for ask in asks:
        batcher.submit(ask)
    return [await ask.answer for ask in asks]


async def test_the_only_caller_of_a_moment_is_answered_within_its_call() -> None:
    ask = Ask(3)
    Batcher(features, Doubling(), finish, batch_rows=1, quick=True, alone=lambda: True).submit(ask)
    assert ask.answer.result() == [6.0]


@pytest.mark.parametrize("quick", [True, False])
async def test_neighbours_of_one_moment_share_a_run_and_each_gets_its_own_rows(quick: bool) -> None:
    run = Doubling()
    batcher = made(run, quick=quick)
    assert await answers(batcher, Ask(1), Ask(2, 3), Ask(4)) == [[2.0], [4.0, 6.0], [8.0]]
    assert run.sizes == [4]
    batcher.retire()


async def test_a_batch_never_exceeds_its_rows() -> None:
    run = Doubling()
    asks = [Ask(i) for i in range(7)]
    assert await answers(made(run, rows=3, quick=True), *asks) == [[2.0 * i] for i in range(7)]
    assert run.sizes == [3, 3, 1]


async def test_rows_that_arrive_during_a_slow_run_are_joined_into_the_next() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run)
    first, later = Ask(1), [Ask(2), Ask(3)]
    batcher.submit(first)
    await asyncio.sleep(0.01)
    for ask in later:
        batcher.submit(ask)
    run.gate.set()
    assert [await ask.answer for ask in (first, *later)] == [[2.0], [4.0], [6.0]]
    assert run.sizes == [1, 2]
    batcher.retire()


async def test_as_many_runs_go_on_at_once_as_the_plan_has_streams() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1, streams=2)
    asks = [Ask(1), Ask(2), Ask(3)]
    for ask in asks:
        batcher.submit(ask)
    await asyncio.sleep(0.01)
    assert batcher.waiting == 1
    run.gate.set()
    assert [await ask.answer for ask in asks] == [[2.0], [4.0], [6.0]]
    batcher.retire()


async def test_a_failing_row_does_not_fail_its_neighbours() -> None:
    good, bad, also_good = await answers(made(Doubling(), quick=True), Ask(1), Ask(-1), Ask(2))
    assert (good, also_good) == ([2.0], [4.0])
    assert isinstance(bad, RunFailedError)


async def test_the_first_priority_runs_first_and_the_last_last() -> None:
    run = Doubling()
    await answers(made(run, rows=1, quick=True), Ask(30, priority=3), Ask(20), Ask(10, priority=1), Ask(11, priority=1))
    assert run.order == [10, 11, 20, 30]


async def test_a_request_that_waited_beyond_its_own_limit_is_refused_and_never_run() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1)
    first, hasty, patient = Ask(1), Ask(2, timeout_us=1000), Ask(3)
    for ask in (first, hasty, patient):
        batcher.submit(ask)
    async with asyncio.timeout(5):
        assert isinstance(await hasty.answer, LateError)  # while the first run still goes on
    run.gate.set()
    assert [await first.answer, await patient.answer] == [[2.0], [6.0]]
    assert run.order == [1, 3]
    batcher.retire()


async def test_a_request_whose_caller_has_left_is_not_run() -> None:
    run = Doubling()
    batcher = made(run, rows=1, quick=True)
    left, stays = Ask(1), Ask(2)
    batcher.submit(left)
    batcher.submit(stays)
    left.gone = True
    assert await stays.answer == [4.0]
    assert run.order == [2]


async def test_a_full_queue_is_refused_at_once_with_the_time_to_try_again() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1, most=2)
    asks = [Ask(1), Ask(2), Ask(3)]
    batcher.submit(asks[0])
    await asyncio.sleep(0.01)
    for ask in asks[1:]:
        batcher.submit(ask)
    with pytest.raises(BusyError, match="2 requests wait already") as refusal:
        batcher.submit(Ask(9))
    assert refusal.value.retry_s >= 1
    run.gate.set()
    assert [await ask.answer for ask in asks] == [[2.0], [4.0], [6.0]]
    batcher.retire()


async def test_a_retired_lane_answers_what_waits_and_takes_no_more() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1)
    asks = [Ask(1), Ask(2)]
    for ask in asks:
        batcher.submit(ask)
    await asyncio.sleep(0.01)
    batcher.retire()
    run.gate.set()
    assert [await ask.answer for ask in asks] == [[2.0], [4.0]]
    await asyncio.sleep(0.01)
    with pytest.raises(BusyError, match="replaced"):
        batcher.submit(Ask(1))


async def test_a_thread_takes_its_next_run_without_the_event_loop() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1)
    asks = [Ask(i) for i in range(3)]
    for ask in asks:
        batcher.submit(ask)
    await asyncio.sleep(0)  # the thread is started, and waits at the gate
    all_ran = threading.Event()
    threading.Thread(target=lambda: (run.gate.set(), _await_runs(run, 3, all_ran))).start()
    assert all_ran.wait(5)
    assert not any(ask.answer.done() for ask in asks)
    assert [await ask.answer for ask in asks] == [[0.0], [2.0], [4.0]]


def _await_runs(run: Doubling, count: int, reached: threading.Event) -> None:
    while len(run.sizes) < count:
        time.sleep(0.001)
    reached.set()


@pytest.mark.parametrize("streams", [1, 3])
async def test_no_request_is_forgotten_when_they_come_as_threads_end(streams: int) -> None:
    batcher = made(Doubling(), rows=2, streams=streams)
    for burst in range(300):
        asks = [Ask(burst, i) for i in range(burst % 4 + 1)]
        for ask in asks:
            batcher.submit(ask)
            if burst % 3 == 0:
                await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert [await ask.answer for ask in asks] == [[2.0 * burst, 2.0 * i] for i in range(len(asks))]
    assert batcher.waiting == 0


@pytest.mark.parametrize("streams", [1, 2])
async def test_who_waits_behind_a_run_that_never_ends_is_told_so(streams: int) -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1, streams=streams, stuck_s=0.6)
    stuck = [Ask(float(n)) for n in range(streams)]
    for ask in stuck:
        batcher.submit(ask)
        await asyncio.sleep(0.05)  # each has a thread of its own
    behind = [Ask(8), Ask(9)]
    for ask in behind:
        batcher.submit(ask)
    for ask in behind:
        async with asyncio.timeout(5):
            answer = await ask.answer
        assert isinstance(answer, RunFailedError)
        assert "does not come back" in str(answer)
    assert batcher.waiting == 0
    run.gate.set()  # it came back after all: it goes on as if nothing had been
    assert [await ask.answer for ask in stuck] == [[2.0 * n] for n in range(streams)]
    assert await answers(batcher, Ask(5)) == [[10.0]]


async def test_callers_of_a_run_that_is_given_up_are_told_once_and_it_counts_as_lost_until_it_comes_back() -> None:
    run = Doubling()
    run.gate.clear()
    batcher = made(run, rows=1, stuck_s=0.1)
    ask = Ask(1)
    batcher.submit(ask)
    async with asyncio.timeout(5):
        assert isinstance(await ask.answer, RunFailedError)
    assert batcher.lost == 1
    run.gate.set()  # a second answer would raise in `finish`
    async with asyncio.timeout(5):
        while batcher.lost:  # noqa: ASYNC110 - the thread tells nobody
            await asyncio.sleep(0.01)
    assert await answers(batcher, Ask(5)) == [[10.0]]
    batcher.retire()
