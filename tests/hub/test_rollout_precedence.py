"""Order among components: a rollout that says ``after`` waits, device by device, for what comes first."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature
from landreeve.trust.document import parse_document
from landreeve.wire.codec import decode
from landreeve.wire.messages import DesiredModel, SignedDesired
from landreeve.wire.ordering import FEATURE
from landreeve_hub.access.roles import Role
from landreeve_hub.rollout import book
from landreeve_hub.rollout.roster import Outcome
from landreeve_hub.rollout.state import State
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from sqlalchemy import delete, insert, update

from tests.hub.hub_without_broker import SITES, Hub, push

AGENT, DELAY, PRICE = "landreeve-agent", "delay", "price"
ALL: dict[str, Any] = {"waves": [{"rest": True}], "gate": {"max_failures": 1, "max_silent": 3}}
NOBODY_FAILS = {**ALL, "gate": {"max_silent": 3}}
Digests = dict[str, str]


def release(model: str, note: str) -> Packed:
    config = ReleaseConfig(
        model=model,
        family="mlp",
        component="agent" if model == AGENT else "model",
        created="2026-05-01T00:00:00Z",
        signature=Signature(inputs=(), output="late"),
        gates=Gates(metrics={}),
        lineage=Lineage(code=note),
    )
    return pack({"card.md": f"{model} {note}".encode()}, config)


class Fleet:
    """Three sites, two people, and a hub whose documents can be read."""

    def __init__(self, hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient) -> None:
        self.hub, self.ann, self.bob = hub, ann, bob

    async def push(self, model: str, note: str = "one") -> str:
        digest = await push(self.ann, release(model, note))
        assert (await self.bob.post(f"/api/v1/releases/{digest}/approve")).status_code == 200
        return digest

    async def propose(self, model: str, digest: str, plan: dict[str, Any]) -> httpx2.Response:
        return await self.ann.post("/api/v1/rollouts", json={"model": model, "release": digest, "plan": plan})

    async def begin(self, model: str, plan: dict[str, Any], note: str = "one") -> dict[str, Any]:
        made = await self.propose(model, await self.push(model, note), plan)
        assert made.status_code == 201, made.text
        row = await self.bob.post(f"/api/v1/rollouts/{made.json()['id']}/approve")
        assert row.status_code == 200, row.text
        return dict(row.json())

    async def row(self, rollout: str) -> dict[str, Any]:
        return dict((await self.ann.get(f"/api/v1/rollouts/{rollout}")).json())

    async def outcomes(self, rollout: str) -> dict[str, Outcome]:
        kept = await self.hub.store.read(lambda c: book.load(c, rollout))
        return {device: member.outcome for device, member in kept.rollout.members.items()}

    async def report(self, device: str, row: dict[str, Any], state: str, order: str = "") -> None:
        """What ingest does with the report of a device on any component."""
        table, model = tables.updates, row["model"]
        found = {"device": device, "model": model, "release": row["release"], "rollout": order or row["id"]}

        def apply(connection: Any) -> None:
            connection.execute(delete(table).where(table.c.device == device, table.c.model == model))
            connection.execute(insert(table).values({**found, "state": state, "cause": "told", "sentence": state}))
            if model != AGENT and state == "COMMITTED":
                served = {"model": model, "version": "v1", "release": row["release"]}
                own = tables.devices.c.id == device
                connection.execute(update(tables.devices).where(own).values(doc={"models": [served]}))

        await self.hub.store.write(apply)
        await self.tick()

    async def tick(self) -> None:
        for _ in range(3):
            await self.hub.runner.tick(self.hub.now)

    async def knows_order(self, *devices: str) -> None:
        own = tables.devices.c.id.in_(devices)
        await self.hub.store.write(
            lambda c: c.execute(update(tables.devices).where(own).values(features=FEATURE)) and None
        )

    async def connected(self, device: str, *, online: bool) -> None:
        own = tables.devices.c.id == device
        await self.hub.store.write(
            lambda c: c.execute(update(tables.devices).where(own).values(online=online)) and None
        )
        await self.tick()

    async def joins(self, device: str, site: str) -> None:
        new = {"id": device, "fleet": "demo", "site": site, "online": True, "agent": "0.1.0"}
        new["enrolled"] = rfc3339(self.hub.now + timedelta(minutes=1))
        await self.hub.store.write(lambda c: c.execute(insert(tables.devices).values(new)) and None)
        self.hub.now += timedelta(minutes=5)
        await self.tick()

    def document(self, device: str) -> dict[str, DesiredModel]:
        """The newest document of the device, by component."""
        mine = [body for topic, body, _ in self.hub.published if f"/dn/{device}/desired" in topic]
        found = parse_document(decode(mine[-1], SignedDesired).document).models if mine else ()
        return {order.model: order for order in found}


@pytest.fixture
async def fleet(hub: Hub) -> AsyncIterator[Fleet]:
    await hub.enrol()
    ann, bob = await hub.person("ann", Role.ML_ENGINEER), await hub.person("bob", Role.APPROVER)
    async with ann, bob:
        yield Fleet(hub, ann, bob)


async def test_each_device_gets_the_second_only_when_the_first_has_ended_there(fleet: Fleet) -> None:
    first = await fleet.begin(AGENT, ALL)
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT]})
    await fleet.tick()
    assert all(set(fleet.document(device)) == {AGENT} for device in SITES)
    assert (await fleet.row(second["id"]))["after"] == [AGENT]
    assert (await fleet.row(second["id"]))["waiting"] == [
        f"EWR, JFK and LGA: {AGENT} (rollout {first['id']}) comes first"
    ]
    await fleet.report("d-2", first, "COMMITTED")
    assert set(fleet.document("d-2")) == {AGENT, DELAY}
    assert fleet.document("d-2")[DELAY].after == (AGENT,)
    assert set(fleet.document("d-1")) == {AGENT}


async def test_device_on_which_the_first_failed_is_left_out(fleet: Fleet) -> None:
    first = await fleet.begin(AGENT, ALL)
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT]})
    await fleet.report("d-1", first, "ROLLED_BACK")
    for device in ("d-2", "d-3"):
        await fleet.report(device, first, "COMMITTED")
    assert (await fleet.row(first["id"]))["state"] == "FINISHED"
    for device in ("d-2", "d-3"):
        await fleet.report(device, second, "COMMITTED")
    row = await fleet.row(second["id"])
    assert row["state"] == "FINISHED"
    assert await fleet.outcomes(second["id"]) == {
        "d-1": Outcome.EXCLUDED, "d-2": Outcome.COMMITTED, "d-3": Outcome.COMMITTED,
    }  # fmt: skip
    assert DELAY not in fleet.document("d-1")
    assert f"{AGENT} had to come first and did not" in str(row["waves"])


async def test_first_that_finished_long_ago_still_counts_where_it_failed(fleet: Fleet) -> None:
    first = await fleet.begin(AGENT, ALL)
    await fleet.report("d-1", first, "REJECTED")
    for device in ("d-2", "d-3"):
        await fleet.report(device, first, "COMMITTED")
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT], "offline": {"policy": "wait"}})
    await fleet.tick()
    assert (await fleet.outcomes(second["id"]))["d-1"] is Outcome.EXCLUDED
    await fleet.connected("d-1", online=False)
    assert (await fleet.ann.post(f"/api/v1/rollouts/{first['id']}/retry")).status_code == 200
    assert (await fleet.ann.post(f"/api/v1/rollouts/{second['id']}/retry")).status_code == 200
    assert (await fleet.outcomes(second["id"]))["d-1"] is Outcome.WAITING
    await fleet.report("d-1", first, "COMMITTED", f"{first['id']}.1")
    await fleet.connected("d-1", online=True)
    assert set(fleet.document("d-1")) == {AGENT, DELAY}


async def test_silent_device_gets_both_if_its_agent_keeps_to_the_order_and_else_none(fleet: Fleet) -> None:
    await fleet.knows_order("d-1")
    first = await fleet.begin(AGENT, {**ALL, "gate": {"max_silent": 3, "deadline_s": 60, "min_committed": 0}})
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT]})
    fleet.hub.now = fleet.hub.now.replace(hour=13)
    await fleet.tick()
    assert set((await fleet.outcomes(first["id"])).values()) == {Outcome.SILENT}
    assert set(fleet.document("d-1")) == {AGENT, DELAY}
    assert set(fleet.document("d-2")) == {AGENT}
    assert await fleet.outcomes(second["id"]) == {
        "d-1": Outcome.ORDERED, "d-2": Outcome.EXCLUDED, "d-3": Outcome.EXCLUDED,
    }  # fmt: skip


async def test_first_that_went_back_stops_the_second_until_a_person_says_so(fleet: Fleet) -> None:
    first = await fleet.begin(AGENT, NOBODY_FAILS)
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT]})
    await fleet.report("d-1", first, "ROLLED_BACK")
    row = await fleet.row(second["id"])
    assert (row["state"], row["cause"]) == ("PAUSED", "not_in_order")
    assert f"{AGENT} had to come first" in row["sentence"]
    assert all(DELAY not in fleet.document(device) for device in SITES)
    assert (await fleet.ann.post(f"/api/v1/rollouts/{second['id']}/resume")).status_code == 200
    await fleet.tick()
    row = await fleet.row(second["id"])
    assert row["state"] == "RUNNING"
    assert all(DELAY in fleet.document(device) for device in SITES)


async def test_first_that_is_never_approved_is_waited_for_and_its_end_is_noticed(fleet: Fleet) -> None:
    first = (await fleet.propose(AGENT, await fleet.push(AGENT), ALL)).json()
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT]})
    await fleet.tick()
    assert set((await fleet.outcomes(second["id"])).values()) == {Outcome.WAITING}
    assert (await fleet.ann.post(f"/api/v1/rollouts/{first['id']}/abort")).status_code == 200
    await fleet.tick()
    assert (await fleet.row(second["id"]))["state"] == "PAUSED"


async def test_way_back_waits_for_nobody_and_of_an_agent_it_comes_to_its_end(fleet: Fleet) -> None:
    """A device's state names models only: that an agent has returned is known by its report."""
    old = await fleet.begin(AGENT, ALL)
    for device in SITES:
        await fleet.report(device, old, "COMMITTED")
    price = await fleet.begin(PRICE, ALL)
    new = await fleet.begin(AGENT, {**ALL, "after": [PRICE]}, "two")
    for device in SITES:
        await fleet.report(device, price, "COMMITTED")
        await fleet.report(device, new, "COMMITTED")
    assert (await fleet.row(new["id"]))["state"] == "FINISHED"
    assert (await fleet.bob.post(f"/api/v1/rollouts/{new['id']}/rollback")).status_code == 200
    await fleet.tick()
    assert all(fleet.document(device)[AGENT].release == old["release"] for device in SITES)
    assert all(fleet.document(device)[AGENT].after is None for device in SITES)
    for device in SITES:
        doc = {"models": [], "generation": (await generations(fleet))[device]}
        own = tables.devices.c.id == device
        await fleet.hub.store.write(
            lambda c, own=own, doc=doc: c.execute(update(tables.devices).where(own).values(doc=doc)) and None
        )
        back = {**old, "id": f"{new['id']}-back"}
        await fleet.report(device, back, "COMMITTED")
    assert (await fleet.row(new["id"]))["state"] == "ROLLED_BACK"


async def test_latecomer_gets_the_first_before_the_second_as_everyone_did(fleet: Fleet) -> None:
    first = await fleet.begin(AGENT, ALL)
    second = await fleet.begin(DELAY, {**ALL, "after": [AGENT]})
    for row in (first, second):
        for device in SITES:
            await fleet.report(device, row, "COMMITTED")
    await fleet.joins("d-4", "SFO")
    assert set(fleet.document("d-4")) == {AGENT}
    late = await fleet.row(f"{second['id']}-late")
    assert late["waiting"] == [f"SFO: {AGENT} (rollout {first['id']}-late) comes first"]
    await fleet.report("d-4", {**first, "id": f"{first['id']}-late"}, "COMMITTED")
    assert set(fleet.document("d-4")) == {AGENT, DELAY}
    assert fleet.document("d-4")[DELAY].after == (AGENT,)
    await fleet.joins("d-5", "BOS")
    await fleet.report("d-5", {**first, "id": f"{first['id']}-late"}, "ROLLED_BACK")
    assert (await fleet.outcomes(f"{second['id']}-late"))["d-5"] is Outcome.EXCLUDED
    assert DELAY not in fleet.document("d-5")


async def generations(fleet: Fleet) -> dict[str, int]:
    held = tables.desired
    rows = await fleet.hub.store.read(lambda c: c.execute(held.select()).all())
    return {row.device: row.generation for row in rows}


async def test_order_nobody_can_keep_is_refused_with_its_reason(fleet: Fleet) -> None:
    digests = {model: await fleet.push(model) for model in (AGENT, DELAY, PRICE)}
    cases = (
        (DELAY, ["firmware"], "no component 'firmware' is known; there are: delay, landreeve-agent, price"),
        (DELAY, [DELAY], "delay cannot come after itself"),
        (DELAY, [AGENT, AGENT], "'landreeve-agent' is named twice"),
        (DELAY, ["../x"], "is no identifier"),
    )
    for model, after, words in cases:
        answer = await fleet.propose(model, digests[model], {**ALL, "after": after})
        assert answer.status_code in {400, 409, 422}, answer.text
        assert f"plan.after: {words}" in answer.text or words in answer.text
    assert (await fleet.propose(DELAY, digests[DELAY], {**ALL, "after": [AGENT]})).status_code == 201
    assert (await fleet.propose(PRICE, digests[PRICE], {**ALL, "after": [DELAY]})).status_code == 201
    answer = await fleet.propose(AGENT, digests[AGENT], {**ALL, "after": [PRICE]})
    assert answer.status_code == 409
    assert "landreeve-agent waits for price waits for delay waits for landreeve-agent" in answer.text


async def test_old_agents_are_named_before_the_start(fleet: Fleet) -> None:
    await fleet.knows_order("d-1", "d-3")
    await fleet.push(AGENT)
    seen = await fleet.ann.post("/api/v1/rollouts/preview", json={"plan": {**ALL, "after": [AGENT]}})
    assert any(text.startswith("JFK: the agent there keeps to no order") for text in seen.json()["notes"])


async def test_rollout_that_comes_after_nothing_is_as_before(fleet: Fleet) -> None:
    await fleet.begin(AGENT, ALL)
    second = await fleet.begin(DELAY, ALL)
    assert second["after"] == []
    kept = await fleet.hub.store.read(lambda c: book.load(c, second["id"]))
    assert (kept.rollout.ahead, kept.rollout.state) == ((), State.RUNNING)
