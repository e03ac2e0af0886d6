"""What a worker's own figures say of a version on probation."""

import msgspec
import pytest
from landreeve_agent.serving.control import ModelStatus, Plan, WorkerStatus
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.standing import Installed
from landreeve_agent.update.vitals import Vitals

NEW = "b" * 64


def candidate(device: str = "cpu") -> Installed:
    return Installed(NEW, "v2", msgspec.json.encode(Plan(device=device)).decode())


def status(rss_mb: float, pid: int = 7, used: str = "CPU · onnxruntime · fp32 · 1 thread") -> WorkerStatus:
    model = ModelStatus(
        model="demo", version="v2", release=NEW, wanted="auto", used=used, reason="NPU with openvino failed", ready=True
    )
    return WorkerStatus(pid=pid, rss_mb=rss_mb, restarts=0, models=(model,), last_exit="")


class Looks:
    """The worker's figures, one after another."""

    def __init__(self, *found: WorkerStatus | None) -> None:
        self.found = list(found)

    async def __call__(self) -> WorkerStatus | None:
        return self.found.pop(0)


async def grown(*found: WorkerStatus | None) -> list[float | None]:
    vitals = Vitals(Looks(*found))
    return [(await vitals.added(ProbationStats(), "demo", candidate())).memory_growth_mb for _ in found]


async def test_growth_is_counted_from_the_first_look() -> None:
    assert await grown(status(100), status(130), status(180)) == [0, 30, 80]


async def test_worker_that_was_started_again_begins_anew() -> None:
    assert await grown(status(900), status(100, pid=8), status(110, pid=8)) == [0, 0, 10]


async def test_two_models_on_probation_at_once_are_both_watched() -> None:
    other = Installed("c" * 64, "v9", candidate().plan)
    vitals = Vitals(Looks(status(100), status(100), status(400), status(500)))
    grown_mb = [
        (await vitals.added(ProbationStats(), model, version)).memory_growth_mb
        for model, version in (("demo", candidate()), ("other", other), ("demo", candidate()), ("other", other))
    ]
    assert grown_mb == [0, 0, 300, 400]


async def test_worker_that_cannot_be_asked_tells_nothing() -> None:
    assert await grown(None, status(0, pid=0), status(50)) == [None, None, 0]


async def test_version_that_follows_in_the_same_process_begins_at_its_own_first_look() -> None:
    later = Installed("c" * 64, "v9", candidate().plan)
    vitals = Vitals(Looks(status(100), status(400), status(400), status(450)))
    grown_mb = [
        (await vitals.added(ProbationStats(), "demo", version)).memory_growth_mb
        for version in (candidate(), candidate(), later, later)
    ]
    assert grown_mb == [0, 300, 0, 50]


async def test_doubt_about_the_device_is_told_of_this_version_alone() -> None:
    def doubting(**changes: object) -> WorkerStatus:
        told = status(10)
        return msgspec.structs.replace(told, models=(msgspec.structs.replace(told.models[0], doubted=True, **changes),))

    looks = Looks(doubting(), doubting(model="other"), doubting(release="c" * 64), status(10))
    vitals = Vitals(looks)
    found = [(await vitals.added(ProbationStats(), "demo", candidate("npu"))).device_doubted for _ in range(4)]
    assert found == [True, False, False, False]


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"release": "c" * 64}, {"ready": False}, {"used": ""}],
    ids=["another model", "another release", "not loaded", "asleep since the start"],
)
async def test_device_is_lost_only_by_this_version_and_where_it_runs(changes: dict[str, object]) -> None:
    told = status(10)
    told = msgspec.structs.replace(told, models=(msgspec.structs.replace(told.models[0], **changes),))
    assert not (await Vitals(Looks(told)).added(ProbationStats(), "demo", candidate("npu"))).device_lost


@pytest.mark.parametrize(
    ("device", "used", "lost"),
    [
        ("npu", "CPU · onnxruntime · fp32 · 1 thread", True),
        ("npu", "NPU · openvino · fp16 · 1 thread", False),
        ("cpu", "CPU · openvino · int8 · 2 threads", False),
        ("cpu", "GPU · openvino · fp16 · 1 thread", False),
    ],
)
async def test_version_that_left_its_device_is_told_of_with_the_reason(device: str, used: str, lost: bool) -> None:
    seen = await Vitals(Looks(status(10, used=used))).added(ProbationStats(), "demo", candidate(device))
    assert bool(seen.device_lost) is lost
    if lost:
        assert "proven on the NPU" in seen.device_lost
        assert "NPU with openvino failed" in seen.device_lost
