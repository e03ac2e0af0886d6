"""Where devices on probation are in their strategy, as they told it: in words, API and CLI."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest
from landreeve.wire.messages import Fact, UpdateReport
from landreeve.wire.strategy import TrialStage
from landreeve_hub.access.roles import Role
from landreeve_hub.commands.rollouts import progress
from landreeve_hub.ingest.appliers import apply_update

from tests.hub.hub_without_broker import SITES, Hub, push, release

CANARY = {"kind": "canary", "shares": [0.1, 0.5, 1.0]}


@pytest.fixture
async def ann(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    async with await hub.person("ann", Role.ADMIN) as client:
        yield client


class Told:
    """A rollout to every site at once, and what its devices tell."""

    def __init__(self, hub: Hub, ann: httpx2.AsyncClient, made: dict[str, Any]) -> None:
        self.hub, self.ann, self.made = hub, ann, made
        self.seq = 0

    async def say(self, device: str, state: str, stage: TrialStage | msgspec.UnsetType = msgspec.UNSET) -> None:
        self.seq += 1
        body = UpdateReport(
            model="delay", rollout=self.made["id"], generation=1, release=self.made["release"], version="v1",
            state=state, previous="", cause="told", sentence="So it is.", stage=stage,
        )  # fmt: skip
        fact = Fact(epoch=1, seq=self.seq, at="2026-05-01T12:00:00Z", body=body)
        await self.hub.store.write(lambda c: apply_update(c, device, fact))
        await self.hub.runner.tick(self.hub.now)

    async def row(self) -> dict[str, Any]:
        return dict((await self.ann.get(f"/api/v1/rollouts/{self.made['id']}")).json())


async def begun(hub: Hub, ann: httpx2.AsyncClient, strategy: dict[str, Any] | None) -> Told:
    await hub.enrol()
    digest = await push(ann, release())
    assert (await ann.post(f"/api/v1/releases/{digest}/approve", json={"emergency": "one person"})).status_code == 200
    plan = {"waves": [{"rest": True}], "gate": {"max_in_flight": 9}, **({"strategy": strategy} if strategy else {})}
    made = await ann.post("/api/v1/rollouts", json={"model": "delay", "release": digest, "plan": plan})
    assert made.status_code == 201, made.text
    answer = await ann.post(f"/api/v1/rollouts/{made.json()['id']}/approve", json={"emergency": "one person"})
    assert answer.status_code == 200, answer.text
    return Told(hub, ann, dict(made.json()))


async def test_devices_are_counted_by_the_stage_they_told_and_named_in_words(hub: Hub, ann: httpx2.AsyncClient) -> None:
    told = await begun(hub, ann, CANARY)
    await told.say("d-1", "PROBATION", TrialStage(role="shares", share=0.1))
    await told.say("d-2", "PROBATION", TrialStage(role="answers", share=1.0))
    await told.say("d-3", "PREFLIGHT")
    row = await told.row()
    assert row["stages"] == [
        {"stage": "share", "share": 0.1, "devices": 1}, {"stage": "probation", "share": 0.0, "devices": 1},
    ]  # fmt: skip
    assert row["on_trial"] == "1 at 10% of traffic, 1 on probation"
    assert sorted(row["waiting"]) == [
        "EWR is answering 10% of the requests with v1",
        "JFK is proving v1 on real traffic",
        "LGA is checking v1 on its own hardware",
    ]
    assert "1 at 10% of traffic, 1 on probation · waiting: " in progress(row)
    summary = (await ann.get("/api/v1/fleet/summary")).json()
    assert summary["rollouts"][0]["on_trial"] == row["on_trial"]
    await told.say("d-1", "PROBATION", TrialStage(role="shares", share=0.5))
    await told.say("d-2", "COMMITTED")
    assert (await told.row())["on_trial"] == "1 at 50% of traffic"
    await ann.post(f"/api/v1/rollouts/{told.made['id']}/pause")
    assert (await told.row())["on_trial"] == "1 at 50% of traffic"  # a pause ends no trial that is under way


async def test_a_comparison_is_named_by_its_key_and_a_shadow_as_what_it_is(hub: Hub, ann: httpx2.AsyncClient) -> None:
    told = await begun(hub, ann, {"kind": "ab", "shares": [0.335], "key": "customer"})
    await told.say("d-1", "PROBATION", TrialStage(role="shares", share=0.335))
    await told.say("d-2", "PROBATION", TrialStage(role="listens"))
    await told.say("d-3", "PROBATION", TrialStage(role="stands_by"))
    row = await told.row()
    assert row["on_trial"] == "1 in shadow, 1 standing by, 1 at 33.5% of traffic"
    assert sorted(row["waiting"]) == [
        "EWR is answering 33.5% of the requests with v1, split by customer",
        "JFK is comparing v1 in the shadow of the version before",
        "LGA is keeping v1 loaded beside the version before",
    ]


NOTHING = [msgspec.UNSET, TrialStage(role="shares", share=7.0), TrialStage(role="of_a_newer_agent", share=0.2)]


@pytest.mark.parametrize("stage", NOTHING, ids=["an older agent", "nonsense", "a newer agent"])
async def test_who_tells_no_stage_that_is_known_is_on_probation(
    hub: Hub, ann: httpx2.AsyncClient, stage: TrialStage | msgspec.UnsetType
) -> None:
    told = await begun(hub, ann, CANARY)
    for device in SITES:
        await told.say(device, "PROBATION", stage)
    row = await told.row()
    assert row["waiting"] == ["EWR, JFK and LGA are proving v1 on real traffic"]
    assert row["on_trial"] == "3 on probation"


async def test_a_stage_of_an_older_rollout_says_nothing_and_a_direct_one_has_none_to_name(
    hub: Hub, ann: httpx2.AsyncClient
) -> None:
    told = await begun(hub, ann, None)
    await told.say("d-1", "PROBATION", TrialStage(role="answers", share=1.0))
    row = await told.row()
    assert (row["on_trial"], row["stages"]) == ("", [{"stage": "probation", "share": 0.0, "devices": 1}])
    told.made["id"] = "r-000000"
    await told.say("d-1", "PROBATION", TrialStage(role="listens"))
    told.made["id"] = row["id"]
    assert (await told.row())["stages"] == row["stages"]
