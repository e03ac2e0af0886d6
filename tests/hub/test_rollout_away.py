"""A hub that was away, or could write nothing: its devices are heard before anything is held against them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Role
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.rollout import book
from landreeve_hub.rollout.observing import CATCH_UP
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.propose import Proposal, RolloutRefusedError
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.rollout.state import State
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import OperationalError

from tests.hub.hub_without_broker import SITES, Hub
from tests.hub.test_rollout_drift import BASELINE
from tests.hub.test_rollout_succession import begun, finished, state_of

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
RELEASE = "1" * 64


@contextmanager
def opened(state: Path, after: Hub | None = None) -> Iterator[Hub]:
    """The hub over its state; with ``after`` begun anew where that one ended."""
    hub = Hub(state, baselines=lambda _: BASELINE)
    hub.now = after.now if after is not None else hub.now
    yield hub
    hub.store.close()


@asynccontextmanager
async def people(hub: Hub) -> AsyncIterator[Any]:
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        yield ann, bob


async def asked(hub: Hub) -> list[str]:
    table = tables.incidents
    query = select(table.c.cause).where(table.c.kind == "rollout_watch")
    return list(await hub.store.read(lambda c: c.execute(query).scalars().all()))


async def verdict(hub: Hub, device: str, release: str, said: str) -> None:
    row = {
        "device": device,
        "model": "delay",
        "window": 1,
        "release": release,
        "rows": 500,
        "report": {"verdict": said},
    }
    await hub.store.write(lambda c: c.execute(insert(tables.windows).values(row)) and None)


async def watch_until(hub: Hub, rollout: str) -> str:
    table = tables.rollouts
    query = select(table.c.watch_until).where(table.c.id == rollout)
    return str(await hub.store.read(lambda c: c.execute(query).scalar_one()))


async def test_question_at_the_end_of_a_watch_is_asked_when_the_hub_comes_back(tmp_path: Path) -> None:
    plan = {"watch": {"for_s": DAY.total_seconds(), "max_psi": 0.1}}
    with opened(tmp_path) as hub:
        await hub.enrol()
        async with people(hub) as both:
            row = await finished(hub, both, "first", plan)
        hub.now += 5 * DAY  # the hub is down at the end, and for days
    with opened(tmp_path, hub) as back:
        await back.runner.tick(back.now)
        assert await asked(back) == []  # devices may still tell what waited for the hub
        back.now += CATCH_UP
        await back.runner.tick(back.now)
        assert await asked(back) == ["unproven"]
        assert await watch_until(back, row["id"]) == ""
    with opened(tmp_path, back) as again:
        again.now += DAY
        await again.runner.tick(again.now)
        assert await asked(again) == ["unproven"]


@pytest.mark.parametrize(
    ("away", "ends"), [(timedelta(hours=26), State.ROLLING_BACK), (60 * DAY, State.FINISHED)], ids=["hours", "months"]
)
async def test_accuracy_lost_while_the_hub_was_away_still_leads_back_but_not_long_after(
    tmp_path: Path, away: timedelta, ends: State
) -> None:
    plan = {"watch": {"for_s": DAY.total_seconds(), "max_quality_lost": 0}}
    with opened(tmp_path) as hub:
        await hub.enrol()
        async with people(hub) as both:
            await finished(hub, both, "before", {})
            row = await finished(hub, both, "first", plan)
        hub.now += away
    with opened(tmp_path, hub) as back:
        await back.runner.tick(back.now)
        back.now += 5 * MINUTE
        await verdict(back, "d-2", row["release"], "quality_lost")  # had waited on the site
        await back.runner.tick(back.now)
        assert await state_of(back, row["id"]) is ends
        assert await asked(back) == ([] if ends is State.ROLLING_BACK else ["accuracy"])


async def test_last_look_that_could_not_be_kept_is_taken_again(tmp_path: Path) -> None:
    with opened(tmp_path) as hub:
        await hub.enrol()
        async with people(hub) as both:
            row = await finished(hub, both, "first", {"watch": {"for_s": DAY.total_seconds(), "max_psi": 0.1}})
        hub.now += DAY
        with full_disk(hub):
            for _ in range(3):
                with pytest.raises(OperationalError):
                    await hub.runner.tick(hub.now)
                hub.now += MINUTE
        await hub.runner.tick(hub.now)
        hub.now += CATCH_UP
        await hub.runner.tick(hub.now)
        assert await asked(hub) == ["unproven"]
        assert (await hub.store.read(lambda c: book.load(c, row["id"]))).rollout.concluded


@contextmanager
def full_disk(hub: Hub) -> Iterator[None]:
    """Every write of the store fails at its end, as SQLite's do on a full disk."""
    write = hub.store.write

    async def fails(work: Any) -> Any:
        def never(connection: Any) -> Any:
            work(connection)
            raise OperationalError("INSERT", {}, Exception("database or disk is full"))

        return await write(never)

    hub.store.write = fails  # type: ignore[method-assign]
    yield
    hub.store.write = write  # type: ignore[method-assign]


@pytest.mark.parametrize("trouble", ["down", "full"])
async def test_nobody_is_silent_before_a_hub_that_was_away_has_listened_again(tmp_path: Path, trouble: str) -> None:
    plan = {"gate": {"deadline_s": 7200}, "actions": {"silence": "rollback"}}
    with opened(tmp_path) as hub:
        await hub.enrol()
        async with people(hub) as both:
            row = await begun(both, "first", plan)
        hub.now += 3 * 60 * MINUTE
        if trouble == "full":
            with full_disk(hub), pytest.raises(OperationalError):
                await hub.runner.tick(hub.now)
            await comes_back(hub, row)
    if trouble == "down":
        with opened(tmp_path, hub) as back:
            await comes_back(back, row)


async def comes_back(hub: Hub, row: dict[str, Any]) -> None:
    """What two devices had told meanwhile arrives; the third is silent, as it would have been."""
    await hub.runner.tick(hub.now)
    assert await state_of(hub, row["id"]) is State.RUNNING
    hub.now += MINUTE
    for device in list(SITES)[:2]:
        await hub.report(device, "COMMITTED", row["release"], row["id"])
    hub.now += CATCH_UP - 2 * MINUTE
    await hub.runner.tick(hub.now)
    assert await state_of(hub, row["id"]) is State.RUNNING
    hub.now += 2 * MINUTE
    await hub.runner.tick(hub.now)
    kept = (await hub.store.read(lambda c: book.load(c, row["id"]))).rollout
    assert kept.members["d-3"].outcome.value == "silent"


class Nothing:
    """Publishes to nobody: no device of this test ever answers."""

    async def publish_device(self, device: str) -> None:
        return None


async def test_refused_commands_put_nobodys_silence_off(tmp_path: Path) -> None:
    """Each is refused sooner after the last than what waited for the hub is given to be heard."""
    now, bob = datetime(2026, 5, 1, 12, tzinfo=UTC), Person("bob", Role.APPROVER)
    store = Store(tmp_path / "hub.db")
    await store.write(enrolled)
    publisher = cast("Publisher", Nothing())
    runner = RolloutRunner(store, publisher, Incidents(), AuditLog(store, tmp_path / "keys"))
    plan = parse_plan({"gate": {"deadline_s": (CATCH_UP + 5 * MINUTE).total_seconds()}})
    rollout = (await runner.create(Proposal("delay", RELEASE, plan), "ann", now)).id
    await runner.command(rollout, "approve", bob, now)
    states = []
    for _ in range(2):
        now += CATCH_UP - MINUTE
        await runner.tick(now)
        states.append((await store.read(lambda c: book.load(c, rollout))).rollout.state)
        with pytest.raises(RolloutRefusedError):
            await runner.command(rollout, "next", bob, now)
    store.close()
    assert states == [State.RUNNING, State.PAUSED]


def enrolled(connection: Connection) -> None:
    rows = [{"id": d, "fleet": "demo", "site": s, "online": True} for d, s in SITES.items()]
    connection.execute(insert(tables.devices), rows)
    made = {"digest": RELEASE, "model": "delay", "version": "v1", "state": "approved", "manifest_bytes": 9}
    connection.execute(insert(tables.releases).values(**made, config={}))
