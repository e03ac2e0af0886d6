"""What the line of a site may carry: its own rules at the hub before the fleet's, for every box that stands there."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from landreeve.wire.schedule import LineRules
from landreeve_hub.access.roles import Role
from landreeve_hub.desired.lines import rules_of
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.store import tables
from sqlalchemy import select, update

from tests.hub.hub_without_broker import Hub
from tests.hub.test_rates import Desk

FLEET = rules_of(20, ["22:00-06:00"])


class LineDesk(Desk):
    async def say(self, **body: Any) -> Any:
        answer = await self.client.post("/api/v1/lines", json=body)
        await self.hub.runner.tick(self.hub.now)
        return answer

    def lines(self) -> dict[str, LineRules | None]:
        return {device: document.line for device, document in self.orders().items()}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[LineDesk]:
    hub = Hub(tmp_path)
    await hub.enrol()
    pair = update(tables.devices).where(tables.devices.c.id.in_(["d-1", "d-2"]))
    await hub.store.write(lambda c: c.execute(pair.values(labels={"site": "corner"})).rowcount)
    old: Publisher = hub.runner._publisher  # type: ignore[assignment]
    publisher = Publisher(hub.store, old._director, old._targets, hub.send, hub.clock, line=FLEET)
    hub.runner = RolloutRunner(hub.store, publisher, hub.services.incidents, hub.audit)
    object.__setattr__(hub.services, "runner", hub.runner)
    await hub.runner.tick(hub.now)
    async with await hub.person("olga", Role.OPERATOR) as client:
        yield LineDesk(hub, client)
    hub.store.close()


async def test_site_rules_hold_for_all_its_boxes_before_the_fleets_and_own_names_first(desk: LineDesk) -> None:
    assert desk.lines() == {"d-1": FLEET, "d-2": FLEET, "d-3": FLEET}
    answer = (await desk.say(site="corner", mb_per_hour=5, windows=["sat,sun 00:00-00:00"], zone="Asia/Dubai")).json()
    assert answer["devices"] == ["d-1", "d-2"]
    corner = rules_of(5, ["sat,sun 00:00-00:00"], "Asia/Dubai")
    assert desk.lines() == {"d-1": corner, "d-2": corner, "d-3": FLEET}
    await desk.say(site="JFK", mb_per_hour=1)
    await desk.say(site="LGA")  # no bound: the fleet's rules are lifted there
    assert desk.lines() == {"d-1": corner, "d-2": rules_of(1, []), "d-3": LineRules()}
    for site in ("JFK", "corner", "LGA"):
        await desk.say(site=site, forget=True)
    assert desk.lines() == {"d-1": FLEET, "d-2": FLEET, "d-3": FLEET}


async def test_same_rules_again_make_no_new_document(desk: LineDesk) -> None:
    await desk.say(site="corner", mb_per_hour=5)
    before = {device: order.generation for device, order in desk.orders().items()}
    await desk.say(site="corner", mb_per_hour=5)
    assert {device: order.generation for device, order in desk.orders().items()} == before


async def test_rules_are_listed_shown_with_the_box_and_in_the_audit(desk: LineDesk) -> None:
    await desk.say(site="corner", mb_per_hour=0.5, windows="mon-fri 22:00-06:00; sat,sun 00:00-00:00")
    (row,) = (await desk.client.get("/api/v1/lines")).json()["lines"]
    windows = ["mon-fri 22:00-06:00", "sat,sun 00:00-00:00"]
    assert (row["site"], row["mb_per_hour"], row["windows"], row["by"]) == ("corner", 0.5, windows, "olga")
    shown = (await desk.client.get("/api/v1/devices/EWR")).json()["line"]
    assert (shown["site"], shown["windows"]) == ("corner", windows)
    assert (await desk.client.get("/api/v1/devices/LGA")).json()["line"] is None
    done = await desk.hub.store.read(lambda c: list(c.execute(select(tables.audit.c.action)).scalars()))
    assert "site.line" in done


async def test_rules_nobody_could_keep_are_refused(desk: LineDesk) -> None:
    for body, status, words in (
        ({"site": "nowhere", "mb_per_hour": 1}, 404, "no device at a site"),
        ({"site": "EWR", "windows": ["25:00-06:00"]}, 422, "body.windows"),
        ({"site": "EWR", "windows": ["22:00-06:00"], "zone": "Mars/Base"}, 422, "body.zone"),
        ({"site": "EWR", "mb_per_hour": -1}, 422, "mb_per_hour"),
        ({"site": "EWR", "mb_per_day": 1}, 422, "mb_per_day"),
    ):
        answer = await desk.say(**body)  # type: ignore[arg-type]
        assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert desk.lines()["d-1"] == FLEET


async def test_a_viewer_may_look_and_not_steer(desk: LineDesk) -> None:
    async with await desk.hub.person("vera", Role.VIEWER) as viewer:
        assert (await viewer.get("/api/v1/lines")).status_code == 200
        assert (await viewer.post("/api/v1/lines", json={"site": "EWR"})).status_code == 403
