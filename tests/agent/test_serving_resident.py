"""A version's session that sleeps, wakes, and leaves a lost device for the CPU."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.errors import LoadFailedError, NotReadyError, RunFailedError
from landreeve_agent.serving.memory import Memory
from landreeve_agent.serving.resident import Resident, StillAsleepError
from landreeve_agent.serving.session import Array, Opened

SAMPLE = [np.zeros((1, 4), np.float32)]


class Device:
    """Something a graph runs on; it may be pulled out."""

    inputs, outputs = ("x",), ("p",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.there = True

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        if not self.there:
            raise RunFailedError(f"{self.name} does not answer")
        if not np.isfinite(feeds[0]).all():
            raise RunFailedError("the graph does not take that")
        return [np.full(len(feeds[0]), 0.5, np.float32)]


class Box:
    """Opens graphs on its devices and remembers by which plans."""

    def __init__(self, plan: Plan, limit_bytes: int = 1 << 40) -> None:
        self.devices = {name: Device(name) for name in ("gpu", "cpu")}
        self.plans: list[Plan] = []
        self.moves: list[bool] = []
        self.missing = False
        self.resident = Resident("delay 1.0.0", plan, self.open, SAMPLE, graph_bytes=1000, memory=Memory(limit_bytes))
        self.resident.on_move = self.moves.append

    def open(self, plan: Plan) -> Opened:
        if self.missing:
            raise LoadFailedError("bad_release", "model.onnx is gone")
        self.plans.append(plan)
        return Opened(self.devices[plan.device], plan, plan.reason)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_sleeping_version_is_opened_by_the_first_run() -> None:
    box = Box(Plan())
    assert not box.resident.awake
    assert box.resident.run(SAMPLE)[0].tolist() == [0.5]
    assert (box.resident.awake, box.resident.loads, box.resident.quick) == (True, 1, True)


def test_before_a_quick_version_sleeps_nobody_runs_it_on_the_event_loop_any_more() -> None:
    box = Box(Plan())
    box.resident.wake()
    box.moves.clear()
    quick_when_told: list[bool] = []
    box.resident.on_move = lambda wait: quick_when_told.append(box.resident.quick or not wait)
    box.resident.sleep("its memory is needed")
    assert quick_when_told == [False]
    assert (box.resident.awake, box.resident.reason) == (False, "its memory is needed")
    box.resident.run(SAMPLE)
    assert (box.resident.awake, box.resident.reason, box.resident.loads) == (True, "", 2)


def test_a_version_that_cannot_be_woken_is_not_ready_and_says_why() -> None:
    box = Box(Plan())
    box.missing = True
    with pytest.raises(StillAsleepError, match=r"model\.onnx is gone") as refusal:
        box.resident.run(SAMPLE)
    assert isinstance(refusal.value, NotReadyError)
    box.missing = False
    assert len(box.resident.run(SAMPLE)) == 1


def test_a_version_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(LoadFailedError, match=r"raise serving\.memory_mb"):
        Box(Plan(), limit_bytes=10).resident.wake()


def test_a_lost_device_gives_way_to_the_cpu_with_the_reason() -> None:
    box = Box(Plan("openvino", "gpu", "fp16", wanted="gpu"))
    box.resident.wake()
    assert not box.resident.quick
    box.devices["gpu"].there = False
    with pytest.raises(RunFailedError, match="gpu does not answer"):
        box.resident.run(SAMPLE)
    until(lambda: box.resident.opened.plan.device == "cpu")
    assert box.resident.run(SAMPLE)[0].tolist() == [0.5]
    plan = box.resident.opened.plan
    assert (plan.backend, plan.precision, plan.wanted) == ("onnxruntime", "fp32", "gpu")
    assert box.resident.opened.reason == "GPU was lost while serving (gpu does not answer)"


def test_rows_that_a_device_refuses_do_not_make_it_lost() -> None:
    box = Box(Plan("openvino", "gpu", "fp16"))
    box.resident.wake()
    with pytest.raises(RunFailedError):
        box.resident.run([np.full((1, 4), np.nan, np.float32)])
    until(lambda: box.resident._doubted.acquire(blocking=False))
    assert [plan.device for plan in box.plans] == ["gpu"]


def test_a_closed_version_takes_no_memory_and_wakes_no_more() -> None:
    memory = Memory(1 << 40)
    resident = Resident("delay 1.0.0", Plan(), Box(Plan()).open, SAMPLE, graph_bytes=1000, memory=memory)
    resident.wake()
    assert memory.held_bytes >= 1000
    resident.close()
    assert memory.held_bytes == 0
    with pytest.raises(RunFailedError, match="has been unloaded"):
        resident.run(SAMPLE)
