"""A session in a process of its own: the same answers, and deaths that cost only what was in flight."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from landreeve_agent.serving.arena import Arena, ChannelClosedError
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.remote import HostLimits, RemoteSession

from tests.agent.onnx_models import answers, graph, rows

QUICK = HostLimits(run_s=1.0, first_backoff_s=0.05)


@pytest.fixture
def ends() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def session(tmp_path: Path, ends: list[tuple[str, int]]) -> Iterator[RemoteSession]:
    (tmp_path / "model.onnx").write_bytes(graph())
    remote = RemoteSession.open(
        Plan(streams=2), tmp_path / "model.onnx", limits=QUICK, on_end=lambda cause, count: ends.append((cause, count))
    )
    yield remote
    remote.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_answers_as_the_graph_does_whatever_the_size(session: RemoteSession) -> None:
    assert (session.inputs, session.outputs) == (("x",), ("p",))
    for count in (1, 7, 20_000, 1):
        x = rows(count)
        (p,) = session.run([x])
        assert np.allclose(p, answers(graph(), x), atol=1e-6)


def test_answers_outlive_the_next_call(session: RemoteSession) -> None:
    (first,) = session.run([rows(3, seed=1)])
    before = first.copy()
    session.run([rows(3, seed=2)])
    assert np.array_equal(first, before)


def test_as_many_calls_as_the_plan_has_streams_never_mix(session: RemoteSession) -> None:
    wrong: list[int] = []

    def call(seed: int) -> None:
        x = rows(50, seed=seed)
        expected = answers(graph(), x)
        wrong.extend(seed for _ in range(40) if not np.allclose(session.run([x])[0], expected, atol=1e-6))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_the_graph_refuses_fail_alone(session: RemoteSession) -> None:
    pid = session.pid
    with pytest.raises(RunFailedError):
        session.run([np.zeros((1, 99), np.float32)])
    assert len(session.run([rows(2)])[0]) == 2
    assert session.pid == pid


def test_after_a_crash_the_next_call_meets_the_next_process(
    session: RemoteSession, ends: list[tuple[str, int]]
) -> None:
    pid = session.pid
    os.kill(pid, signal.SIGSEGV)
    until(lambda: session.pid not in (0, pid))
    assert len(session.run([rows(2)])[0]) == 2
    assert (session.restarts, session.last_exit) == (1, "signal SIGSEGV")
    assert ends == [("signal SIGSEGV", 1)]


def test_a_hang_fails_the_call_in_flight_and_no_other(session: RemoteSession) -> None:
    os.kill(session.pid, signal.SIGSTOP)
    with pytest.raises(RunFailedError, match="the model's process hung"):
        session.run([rows(2)])
    assert len(session.run([rows(2)])[0]) == 2
    assert session.last_exit == "hung"


def test_a_process_that_keeps_dying_is_given_the_plainest_plan(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(graph())
    remote = RemoteSession.open(Plan(threads=2), tmp_path / "model.onnx", limits=QUICK)
    for count in (1, 2, 3):
        pid = remote.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: remote.pid not in (0, pid))  # type: ignore[misc]
        assert remote.restarts == count
    assert remote.opened.used == "CPU · onnxruntime · fp32 · 1 thread"
    assert "its process died 3 times" in remote.opened.reason
    remote.close()


def test_a_graph_that_does_not_load_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(LoadFailedError) as refusal:
        RemoteSession.open(Plan(), tmp_path / "model.onnx", limits=QUICK)
    assert refusal.value.cause == "bad_graph"


def test_closing_lets_the_call_in_flight_end_and_takes_no_more(session: RemoteSession) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(len(session.run([rows(20_000)])[0])))
    thread.start()
    thread.join()
    pid = session.pid
    session.close()
    assert done == [20_000]
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RunFailedError, match="unloaded"):
        session.run([rows(1)])


@pytest.mark.parametrize(
    "arrays",
    [
        [np.zeros((0, 4), np.float32)],
        [np.array([["a", "bé"], ["", "ü"]], dtype=object), np.arange(3)],
        [np.ones((700, 700)), np.array([True, False])],
        [np.zeros((2, 3), np.float16), np.arange(6).reshape(2, 3).T],
    ],
    ids=["empty", "texts", "large", "strided"],
)
def test_arrays_cross_the_shared_memory_unchanged(arrays: list[np.ndarray]) -> None:  # type: ignore[type-arg]
    ours = Arena.create()
    theirs = Arena(os.dup(ours.descriptor))
    head = ours.write(arrays)
    theirs.follow(ours.size)
    for sent, got in zip(arrays, theirs.read(head), strict=True):
        assert (sent.dtype, sent.shape, sent.tolist()) == (got.dtype, got.shape, got.tolist())
    theirs.close()
    ours.close()


def test_a_description_that_leads_beyond_the_memory_is_refused() -> None:
    ours, large = Arena.create(), Arena.create()
    head = large.write([np.zeros(200_000)])
    ours.write_text(large.read_text(head))
    with pytest.raises(ChannelClosedError, match="are told of"):
        ours.read(head)
    ours.close()
    large.close()
