"""Rollouts of one model that follow each other: an older one never undoes a newer one."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.rollout import book
from landreeve_hub.rollout.state import State
from landreeve_hub.store import tables
from sqlalchemy import insert, select, update

from tests.hub.hub_without_broker import SITES, Hub, push, release

EVERYONE: dict[str, Any] = {"waves": [{"rest": True}], "watch": {"for_s": 86_400, "max_drifted": 0}}
People = tuple[httpx2.AsyncClient, httpx2.AsyncClient]


@pytest.fixture
async def people(hub: Hub) -> AsyncIterator[People]:
    await hub.enrol()
    ann, bob = await hub.person("ann", Role.ML_ENGINEER), await hub.person("bob", Role.APPROVER)
    async with ann, bob:
        yield ann, bob


async def proposed(people: People, note: str, plan: dict[str, Any]) -> dict[str, Any]:
    """A rollout of another release, waiting for approval."""
    ann, bob = people
    digest = await push(ann, release(note))
    assert (await bob.post(f"/api/v1/releases/{digest}/approve")).status_code == 200
    made = await ann.post("/api/v1/rollouts", json={"model": "delay", "release": digest, "plan": plan})
    assert made.status_code == 201, made.text
    return dict(made.json())


async def begun(people: People, note: str, plan: dict[str, Any]) -> dict[str, Any]:
    row = await proposed(people, note, plan)
    answer = await people[1].post(f"/api/v1/rollouts/{row['id']}/approve")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def finished(hub: Hub, people: People, note: str, plan: dict[str, Any]) -> dict[str, Any]:
    row = await begun(people, note, plan)
    for device in SITES:
        await hub.report(device, "COMMITTED", row["release"], row["id"])
    assert await state_of(hub, row["id"]) is State.FINISHED
    return row


async def state_of(hub: Hub, rollout: str) -> State:
    return (await hub.store.read(lambda c: book.load(c, rollout))).rollout.state


async def assigned(hub: Hub) -> dict[str, str]:
    held = tables.assignments
    rows = await hub.store.read(lambda c: c.execute(select(held.c.device, held.c.digest)).all())
    return {row.device: row.digest for row in rows}


async def fleet_release(hub: Hub) -> str | None:
    query = select(tables.aliases.c.digest).where(tables.aliases.c.alias == "fleet")
    return await hub.store.read(lambda c: c.execute(query).scalar())


async def drifts(hub: Hub, device: str, digest: str, verdict: str = "drifted") -> None:
    window = {"device": device, "model": "delay", "window": 1, "release": digest, "report": {"verdict": verdict}}
    await hub.store.write(lambda c: c.execute(insert(tables.windows).values(window)) and None)
    await hub.runner.tick(hub.now)


async def test_news_of_a_watched_rollout_does_not_give_joiners_its_older_release(hub: Hub, people: People) -> None:
    old = await finished(hub, people, "first", EVERYONE)
    new = await finished(hub, people, "second", EVERYONE)
    assert await fleet_release(hub) == new["release"]
    await drifts(hub, "d-1", old["release"], "stable")
    assert await fleet_release(hub) == new["release"]


async def test_drift_under_a_replaced_release_takes_nobody_back(hub: Hub, people: People) -> None:
    await finished(hub, people, "zeroth", {"waves": [{"rest": True}]})
    plan = {**EVERYONE, "actions": {"drift": "rollback"}}
    old = await finished(hub, people, "first", plan)
    new = await begun(people, "second", {"waves": [{"devices": ["EWR"]}, {"rest": True}]})
    await hub.report("d-1", "COMMITTED", new["release"], new["id"])
    await drifts(hub, "d-3", old["release"])
    assert await state_of(hub, old["id"]) is State.FINISHED
    assert set((await assigned(hub)).values()) == {new["release"]}


async def test_proposal_that_never_began_keeps_nobody_from_rolling_back(hub: Hub, people: People) -> None:
    ann, bob = people
    row = await finished(hub, people, "first", {"waves": [{"rest": True}]})
    draft = await proposed(people, "second", {"waves": [{"rest": True}]})
    assert (await ann.post(f"/api/v1/rollouts/{draft['id']}/abort")).status_code == 200
    answer = await bob.post(f"/api/v1/rollouts/{row['id']}/rollback")
    assert answer.status_code == 200, answer.text


async def test_queued_rollout_keeps_nobody_from_rolling_back_the_one_before(hub: Hub, people: People) -> None:
    ann, bob = people
    row = await begun(people, "first", {"waves": [{"rest": True}]})
    digest = await push(ann, release("second"))
    await bob.post(f"/api/v1/releases/{digest}/approve")
    body = {"model": "delay", "release": digest, "queue": True}
    queued = (await ann.post("/api/v1/rollouts", json=body)).json()
    assert (await bob.post(f"/api/v1/rollouts/{queued['id']}/approve")).status_code == 200
    answer = await bob.post(f"/api/v1/rollouts/{row['id']}/rollback")
    assert answer.status_code == 200, answer.text


async def test_way_back_of_a_stopped_rollout_spares_who_was_ordered_anew(hub: Hub, people: People) -> None:
    ann, _ = people
    await finished(hub, people, "first", {"waves": [{"rest": True}]})
    back = {"waves": [{"devices": ["EWR"]}, {"rest": True}]}
    stopped = await begun(people, "second", {"waves": [{"rest": True}], "back": back, "gate": {"max_in_flight": 3}})
    assert (await ann.post(f"/api/v1/rollouts/{stopped['id']}/abort")).status_code == 200
    new = await begun(people, "third", {"waves": [{"rest": True}]})
    for device in ("d-2", "d-3"):
        await hub.report(device, "COMMITTED", new["release"], new["id"])
    hub.now += timedelta(days=2)  # the first on the way back never answers: the others' turn comes
    await hub.runner.tick(hub.now)
    await hub.runner.tick(hub.now)
    held = await assigned(hub)
    assert {held["d-2"], held["d-3"]} == {new["release"]}


async def test_rollback_ends_when_its_return_has_though_nothing_else_happens(hub: Hub, people: People) -> None:
    _, bob = people
    first = await finished(hub, people, "first", {"waves": [{"rest": True}]})
    row = await finished(hub, people, "second", {"waves": [{"rest": True}]})
    assert (await bob.post(f"/api/v1/rollouts/{row['id']}/rollback")).status_code == 200
    await hub.runner.tick(hub.now)
    served = {"models": [{"model": "delay", "version": "v1", "release": first["release"]}]}

    def arrive(connection: Any) -> None:
        for desired in connection.execute(select(tables.desired.c.device, tables.desired.c.generation)).all():
            own = tables.devices.c.id == desired.device
            doc = {**served, "generation": desired.generation}
            connection.execute(update(tables.devices).where(own).values(doc=doc, generation=desired.generation))

    await hub.store.write(arrive)
    for _ in range(3):
        await hub.runner.tick(hub.now)
    assert await state_of(hub, f"{row['id']}-back") is State.FINISHED
    assert await state_of(hub, row["id"]) is State.ROLLED_BACK


async def test_joiners_after_an_automatic_rollback_get_the_release_before(hub: Hub, people: People) -> None:
    first = await finished(hub, people, "first", {"waves": [{"rest": True}]})
    plan = {**EVERYONE, "actions": {"drift": "rollback"}}
    second = await finished(hub, people, "second", plan)
    await drifts(hub, "d-1", second["release"])
    assert await state_of(hub, second["id"]) is not State.FINISHED
    assert await fleet_release(hub) == first["release"]


@pytest.mark.parametrize("forced", [False, True])
async def test_rollout_that_waited_while_its_release_failed_another_asks_a_person_first(
    hub: Hub, people: People, forced: bool
) -> None:
    """Found by the simulated fleet: a release was ordered again right after it had failed the fleet."""
    ann, bob = people
    first = await begun(people, "bad", {"waves": [{"devices": ["EWR"]}]})
    second = {"model": "delay", "release": first["release"], "plan": {"waves": [{"devices": ["JFK"]}]}, "queue": True}
    made = await ann.post("/api/v1/rollouts", json=second | ({"force": "it was the cable"} if forced else {}))
    name = made.json()["id"]
    assert (await bob.post(f"/api/v1/rollouts/{name}/approve")).status_code == 200
    await hub.report("d-1", "ROLLED_BACK", first["release"], first["id"])
    await hub.runner.tick(hub.now)
    assert await state_of(hub, first["id"]) is State.ROLLED_BACK
    assert await state_of(hub, name) is (State.RUNNING if forced else State.PAUSED)
    assert ("d-2" in await assigned(hub)) == forced
    if not forced:
        kept = (await hub.store.read(lambda c: book.load(c, name))).rollout
        assert (kept.cause, kept.sentence) == (
            "quarantined",
            f"{kept.version} of delay is quarantined since this rollout was proposed.",
        )
        async with await hub.person("root", Role.ADMIN) as root:
            assert (await root.post(f"/api/v1/rollouts/{name}/resume")).status_code == 200
        assert "d-2" in await assigned(hub)
