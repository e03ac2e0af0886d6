"""Rooms are never silently dead, commands are carried out once, scheduled work shows its failures."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import time_machine
from landreeve.wire.codec import decode
from landreeve.wire.messages import Command, Event, Fact, Metrics
from landreeve_agent import lock, rooms
from landreeve_agent.errors import AlreadyRunningError
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.orders import Carried, Declined, Orders
from landreeve_agent.rooms import Rooms, Trouble
from landreeve_agent.schedule.jobs import BadScheduleError, Schedule
from landreeve_agent.store.database import Database
from landreeve_agent.telemetry.machine import MachineProbe
from landreeve_agent.telemetry.recent import Recent
from landreeve_agent.telemetry.reporter import METRIC_NAMES, Reporter, WorkerFigures

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Told:
    """Remembers the troubles that were reported."""

    def __init__(self) -> None:
        self.troubles: list[Trouble] = []
        self.heard = asyncio.Event()

    async def __call__(self, trouble: Trouble) -> None:
        self.troubles.append(trouble)
        self.heard.set()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is awaited has no event
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "FIRST_PAUSE_S", 0.01)


async def test_a_room_that_raises_is_told_and_started_again() -> None:
    told, started = Told(), asyncio.Queue[int]()

    async def fails_twice() -> None:
        started.put_nowait(1)
        if started.qsize() < 3:
            raise OSError("no such device")
        await asyncio.Event().wait()

    kept = Rooms(told)
    kept.keep("camera", fails_twice)
    await until(lambda: started.qsize() >= 3)
    assert [(t.room, t.failures) for t in told.troubles] == [("camera", 1), ("camera", 2)]
    assert kept.troubles[0].sentence == "no such device"
    await kept.close()


async def test_a_room_that_returns_is_a_failure_too() -> None:
    told = Told()
    kept = Rooms(told)

    async def returns() -> None:
        return None

    kept.keep("short", returns)
    await told.heard.wait()
    assert "ended by itself" in told.troubles[0].sentence
    await kept.close()


async def test_periodic_work_that_recovers_is_no_trouble_any_more() -> None:
    told, runs = Told(), []
    kept = Rooms(told)

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("once")

    kept.every("work", 0.01, work)
    await until(lambda: len(runs) >= 3)
    assert len(told.troubles) == 1
    assert kept.troubles == ()
    await kept.close()


async def test_a_report_that_fails_stops_nothing() -> None:
    runs = []

    async def cannot_report(_: Trouble) -> None:
        raise RuntimeError("the store is gone")

    async def fails() -> None:
        runs.append(1)
        raise OSError("again")

    kept = Rooms(cannot_report)
    kept.keep("r", fails)
    await until(lambda: len(runs) >= 2)
    await kept.close()


async def test_a_failing_job_is_shown_until_it_works() -> None:
    told = Told()
    kept = Rooms(told)
    schedule = Schedule(kept.failed, kept.recovered)
    runs = []

    async def job() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise OSError("disk full")

    schedule.every("retention", 0.05, job)
    schedule.start()
    await told.heard.wait()
    assert told.troubles[0].sentence == "disk full"
    await until(lambda: not kept.troubles)
    schedule.stop()


async def test_jobs_go_on_when_the_clock_falls_back_from_2090() -> None:
    runs: list[int] = []
    kept = Rooms(Told())
    schedule = Schedule(kept.failed, kept.recovered)

    async def job() -> None:
        runs.append(1)

    with time_machine.travel(datetime(2090, 1, 1, tzinfo=UTC), tick=True) as clock:
        schedule.every("metrics", 0.05, job)
        schedule.cron("training.cron", "* * * * *", lambda: asyncio.sleep(0))
        schedule.start()
        await until(lambda: len(runs) > 1)
        clock.move_to(datetime(2026, 1, 1, tzinfo=UTC))
        await asyncio.sleep(0.2)
        stuck = len(runs)
        await asyncio.sleep(0.2)
        assert len(runs) == stuck  # the scheduler counts by dates
        schedule.again()
        await until(lambda: len(runs) > stuck + 1)
        schedule.stop()


def test_a_schedule_that_is_none_names_its_setting() -> None:
    schedule = Schedule(Told(), lambda _: None)
    with pytest.raises(BadScheduleError, match=r"training.cron = 'at night'.*five cron fields"):
        schedule.cron("training.cron", "at night", lambda: asyncio.sleep(0))


def test_one_supervisor_for_each_state_folder(tmp_path: Path) -> None:
    held = lock.take(tmp_path / "lock")
    assert lock.is_held(tmp_path / "lock")
    with pytest.raises(AlreadyRunningError, match="process"):
        lock.take(tmp_path / "lock")
    held.release()
    assert not lock.is_held(tmp_path / "lock")
    lock.take(tmp_path / "lock").release()


class Desk:
    """Orders over a real store; counts what was carried out."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "agent.db")
        self.outbox = Outbox(self.database)
        self.carried: list[str] = []
        self.reporter = Reporter(self.database, self.outbox, Recent(), MachineProbe(folder), self._worker, 60.0)
        self.orders = Orders(self.database, self.reporter, {"train": self._train}, lambda: NOW)

    async def _worker(self) -> WorkerFigures:
        return WorkerFigures(120.5, 2)

    async def _train(self, command: Command) -> Carried | Declined:
        self.carried.append(command.id)
        if not command.args:
            return Declined("bad_arguments", "train: a model is needed")
        return Carried("Training m is queued as r1.", {"run": "r1"})

    async def facts(self) -> list[Any]:
        return [decode(fact.body, Fact).body for fact in await self.outbox.pending(0, 100)]


@pytest.fixture
def desk(tmp_path: Path):
    desk = Desk(tmp_path)
    yield desk
    desk.database.close()


def command(name: str = "train", expires: str = "2026-03-02T00:00:00Z", **args: Any) -> Command:
    return Command(id="c1", name=name, args=args, expires=expires)


async def test_a_repeated_command_is_carried_out_and_answered_once(desk: Desk) -> None:
    for _ in range(3):
        await desk.orders.on_command(command(model="m"))
    assert desk.carried == ["c1"]
    (answer,) = await desk.facts()
    assert isinstance(answer, Event)
    assert (answer.name, answer.subject, answer.data["run"]) == ("command.done", "c1", "r1")


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        (command(), "bad_arguments"),
        (command(expires="2026-02-01T00:00:00Z", model="m"), "expired"),
        (command(expires="soon", model="m"), "bad_expiry"),
        (command("reboot"), "unknown_command"),
    ],
)
async def test_a_refused_command_says_why(desk: Desk, order: Command, cause: str) -> None:
    await desk.orders.on_command(order)
    (answer,) = await desk.facts()
    assert (answer.name, answer.cause) == ("command.refused", cause)


async def test_metrics_hold_a_value_for_each_announced_name(desk: Desk) -> None:
    await desk.reporter.birth(NOW, agent="1", site="s", hardware={}, certificate_expires="", labels={})
    await desk.reporter.metrics(NOW)
    birth, metrics = await desk.facts()
    assert isinstance(metrics, Metrics)
    assert birth.metric_names == METRIC_NAMES
    assert birth.metric_set == metrics.metric_set
    (row,) = metrics.rows
    named = dict(zip(birth.metric_names, row[1:], strict=True))
    assert row[0] == NOW.timestamp()
    assert (named["predictions"], named["worker_rss_mb"], named["worker_restarts"], named["outbox"]) == (0, 120.5, 2, 1)
    assert msgspec.json.decode(msgspec.json.encode(metrics), type=Metrics) == metrics
