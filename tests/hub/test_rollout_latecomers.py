"""Devices that come to a rollout late: windows, sites and limits hold for them, and they go back with it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.rollout import book
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.resolve import Newcomer, covers
from landreeve_hub.rollout.roster import Back, Member, Outcome
from landreeve_hub.rollout.state import State
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from sqlalchemy import insert, select, update

from tests.hub.hub_without_broker import Hub
from tests.hub.test_rollout_succession import People, assigned, begun, finished, state_of

REST: dict[str, Any] = {"waves": [{"rest": True}]}
NORTH: dict[str, Any] = {"waves": [{"query": "tag:north"}]}
NIGHT: dict[str, Any] = {**REST, "windows": {"activate": [{"start": "22:00", "end": "04:00"}], "zone": "UTC"}}


@pytest.fixture
async def people(hub: Hub) -> AsyncIterator[People]:
    await hub.enrol()
    ann, bob = await hub.person("ann", Role.ML_ENGINEER), await hub.person("bob", Role.APPROVER)
    async with ann, bob:
        yield ann, bob


async def joins(hub: Hub, *devices: str, **labels: str) -> None:
    """Devices enrol now and say what box they are."""
    hub.now += timedelta(minutes=1)
    enrolled = rfc3339(hub.now)
    row = {"fleet": "demo", "online": True, "agent": "0.1", "enrolled": enrolled, "labels": labels}
    rows = [{**row, "id": device, "site": f"S{device}"} for device in devices]
    await hub.store.write(lambda c: c.execute(insert(tables.devices), rows) and None)
    await hub.runner.tick(hub.now)


async def labelled(hub: Hub, device: str, **labels: str) -> None:
    own = tables.devices.c.id == device
    await hub.store.write(lambda c: c.execute(update(tables.devices).where(own).values(labels=labels)) and None)
    await hub.runner.tick(hub.now)


async def member(hub: Hub, rollout: str, device: str) -> Member:
    return (await hub.store.read(lambda c: book.load(c, rollout))).rollout.members[device]


async def schedule_of(hub: Hub, device: str) -> Any:
    held = tables.assignments
    return await hub.store.read(lambda c: c.execute(select(held.c.schedule).where(held.c.device == device)).scalar())


async def test_who_comes_after_the_end_waits_for_the_window_and_carries_it(hub: Hub, people: People) -> None:
    night = timedelta(hours=11)  # the hub's clock of these tests stands at noon
    row = await begun(people, "first", NIGHT)
    hub.now += night
    await hub.runner.tick(hub.now)
    for device in ("d-1", "d-2", "d-3"):
        await hub.report(device, "COMMITTED", row["release"], row["id"])
    hub.now += night
    await joins(hub, "d-9")
    assert "d-9" not in await assigned(hub)
    hub.now += night + timedelta(hours=1)
    await hub.runner.tick(hub.now)
    assert (await assigned(hub))["d-9"] == row["release"]
    assert (await schedule_of(hub, "d-9"))["activate"][0]["start"] == "22:00"


async def test_who_enrolled_by_a_clock_that_was_ahead_is_not_waited_for(hub: Hub, people: People) -> None:
    row = await finished(hub, people, "first", REST)
    moments = {"d-8": hub.now + timedelta(hours=20), "d-9": hub.now}
    mute = {"fleet": "demo", "online": True, "agent": ""}
    rows = [{**mute, "id": device, "site": f"S{device}", "enrolled": rfc3339(at)} for device, at in moments.items()]
    await hub.store.write(lambda c: c.execute(insert(tables.devices), rows) and None)
    for minutes, ordered in ((1, {"d-8"}), (2, {"d-8", "d-9"})):
        hub.now += timedelta(minutes=minutes)
        await hub.runner.tick(hub.now)
        assert {d for d, digest in (await assigned(hub)).items() if digest == row["release"]} & {*moments} == ordered


async def test_two_latecomers_of_one_site_are_ordered_one_after_the_other(hub: Hub, people: People) -> None:
    row = await finished(hub, people, "first", REST)
    await joins(hub, "d-8", "d-9", site="corner")
    held = await assigned(hub)
    assert ("d-8" in held, "d-9" in held) == (True, False)
    await hub.report("d-8", "COMMITTED", row["release"], f"{row['id']}-late")
    assert (await assigned(hub))["d-9"] == row["release"]


async def test_latecomers_failure_says_nothing_against_the_fleet(hub: Hub, people: People) -> None:
    row = await finished(hub, people, "first", REST)
    await joins(hub, "d-9")
    await hub.report("d-9", "REJECTED", row["release"], f"{row['id']}-late", "It has no memory for it.")
    assert await state_of(hub, row["id"]) is State.FINISHED
    assert await state_of(hub, f"{row['id']}-late") is State.FINISHED
    incidents = await hub.store.read(lambda c: list(c.execute(select(tables.incidents.c.sentence)).scalars()))
    assert any("Sd-9" in sentence and "no memory" in sentence for sentence in incidents)
    await joins(hub, "d-10")  # the next one is asked all the same, and the first not again
    assert (await assigned(hub)).get("d-10") == row["release"]
    assert "d-9" not in await assigned(hub)


async def test_latecomers_go_back_with_what_they_came_after(hub: Hub, people: People) -> None:
    _, bob = people
    old = await finished(hub, people, "first", REST)
    row = await begun(people, "second", REST)
    await joins(hub, "d-9")  # waits for the end, and has the older release until then
    assert (await assigned(hub))["d-9"] == old["release"]
    await hub.report("d-9", "COMMITTED", old["release"], f"{old['id']}-late")
    for device in ("d-1", "d-2", "d-3"):
        await hub.report(device, "COMMITTED", row["release"], row["id"])
    late = f"{row['id']}-late"
    assert (await assigned(hub))["d-9"] == row["release"]
    await hub.report("d-9", "COMMITTED", row["release"], late)
    assert await state_of(hub, late) is State.FINISHED
    assert (await bob.post(f"/api/v1/rollouts/{row['id']}/rollback")).status_code == 200
    for _ in range(3):
        await hub.runner.tick(hub.now)
    assert (await assigned(hub))["d-9"] == old["release"]
    assert (await member(hub, late, "d-9")).back in {Back.RETURNING, Back.RETURNED}
    await joins(hub, "d-10")
    assert (await assigned(hub))["d-10"] == old["release"]


async def test_hub_that_died_before_the_latecomers_went_back_sends_them_back(hub: Hub, people: People) -> None:
    await finished(hub, people, "first", REST)
    row = await finished(hub, people, "second", REST)
    await joins(hub, "d-9")
    await hub.report("d-9", "COMMITTED", row["release"], f"{row['id']}-late")
    gone = tables.rollouts.c.id == row["id"]

    def die(connection: Any) -> None:  # what it had written when it died, and nothing of what it knew
        kept = book.load(connection, row["id"])
        doc = {**connection.execute(select(tables.rollouts.c.doc).where(gone)).scalar(), "state": "ROLLED_BACK"}
        connection.execute(update(tables.rollouts).where(gone).values(state="ROLLED_BACK", doc=doc))
        assert kept.rollout.state is State.FINISHED

    await hub.store.write(die)
    hub.runner._live.forget()  # a restart
    await hub.runner.tick(hub.now)
    assert await state_of(hub, f"{row['id']}-late") in {State.ROLLING_BACK, State.ROLLED_BACK}


async def test_joiner_gets_the_newest_release_that_is_meant_for_it(hub: Hub, people: People) -> None:
    whole = await finished(hub, people, "first", REST)
    await labelled(hub, "d-1", area="north")
    north = await begun(people, "second", NORTH)
    await hub.report("d-1", "COMMITTED", north["release"], north["id"])
    assert await state_of(hub, north["id"]) is State.FINISHED
    await joins(hub, "d-8", area="south")
    await joins(hub, "d-9", area="north")
    held = await assigned(hub)
    assert (held["d-8"], held["d-9"]) == (whole["release"], north["release"])
    await hub.report("d-8", "COMMITTED", whole["release"], f"{whole['id']}-late")
    await labelled(hub, "d-8", area="north")  # moved there after the rollout had ended
    assert (await assigned(hub))["d-8"] == north["release"]


async def test_who_is_labelled_into_a_running_rollout_joins_it_and_who_is_out_leaves(hub: Hub, people: People) -> None:
    for device in ("d-1", "d-2"):
        await labelled(hub, device, area="north")
    plan = {**NORTH, "late": "last", "leavers": "exclude", "gate": {"max_in_flight": 1}}
    row = await begun(people, "first", plan)
    await labelled(hub, "d-3", area="north")
    assert (await member(hub, row["id"], "d-3")).outcome is Outcome.WAITING
    await labelled(hub, "d-2", area="south")
    left = await member(hub, row["id"], "d-2")
    assert (left.outcome, left.cause) == (Outcome.EXCLUDED, "left")


async def test_latecomer_of_an_older_rollout_is_not_led_behind_a_newer_one(hub: Hub, people: People) -> None:
    plan = {**REST, "offline": {"policy": "wait"}}
    old = await finished(hub, people, "first", plan)
    await joins(hub, "d-9")
    new = await begun(people, "second", REST)
    assert (await assigned(hub))["d-9"] in {old["release"], new["release"]}
    for device in ("d-1", "d-2", "d-3"):
        await hub.report(device, "COMMITTED", new["release"], new["id"])
    await hub.report("d-9", "COMMITTED", old["release"], f"{old['id']}-late")
    for _ in range(3):
        await hub.runner.tick(hub.now)
    assert (await assigned(hub))["d-9"] == new["release"]


async def test_order_withheld_from_two_boxes_of_one_name_goes_out_once_one_is_gone(hub: Hub, people: People) -> None:
    own = update(tables.devices).where(tables.devices.c.id == "d-1")

    async def runs(value: dict[str, Any]) -> int:
        await hub.store.write(lambda c: c.execute(own.values(runs=value)) and None)
        await hub.runner.tick(hub.now)
        return sum(topic.endswith("/d-1/desired") for topic, _, _ in hub.published)

    row = await begun(people, "first", REST)
    before = await runs({"since": rfc3339(hub.now)})
    assert (await people[1].post(f"/api/v1/rollouts/{row['id']}/rollback")).status_code == 200
    await hub.runner.tick(hub.now)
    assert "d-1" not in await assigned(hub)  # it had nothing before: the order is withdrawn
    assert await runs({"since": rfc3339(hub.now), "more": 1}) == before
    assert await runs({}) == before + 1


def test_a_count_of_devices_is_not_meant_for_one_that_comes_later() -> None:
    device = Newcomer("d-9", "PHL", {"id": "d-9", "site": "PHL", "labels": {"area": "north"}})
    plans = ({"count": 3}, {"share": 0.5}, {"devices": ["PHL"]}, {"query": "tag:north"}, {"query": "tag:south"})
    assert [covers(parse_plan({"waves": [wave]}), device) for wave in plans] == [False, False, True, True, False]
    assert covers(parse_plan({"waves": [{"share": 0.5}, {"share": 0.5}]}), device)
