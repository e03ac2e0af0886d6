"""Each device is asked for its own rate: by name, by label, or by what the settings say for all."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from landreeve.trust.document import parse_document
from landreeve.wire.codec import decode
from landreeve.wire.messages import Desired, SignedDesired
from landreeve_hub.access.roles import Role
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.desired.rates import choose
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.store import tables
from sqlalchemy import update

from tests.hub.hub_without_broker import Hub


class Desk:
    """A hub whose fleet has a rate, and an operator's client."""

    def __init__(self, hub: Hub, client: httpx2.AsyncClient) -> None:
        self.hub = hub
        self.client = client

    async def ask(self, **body: Any) -> httpx2.Response:
        answer = await self.client.post("/api/v1/rates", json=body)
        await self.hub.runner.tick(self.hub.now)
        return answer

    def orders(self) -> dict[str, Desired]:
        """The newest document of each device."""
        found = {}
        for topic, payload, _ in self.hub.published:
            if topic.endswith("/desired"):
                document = parse_document(decode(payload, SignedDesired).document)
                found[document.device] = document
        return found

    def rates(self) -> dict[str, float | None]:
        return {device: document.max_facts_per_s for device, document in self.orders().items()}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    hub = Hub(tmp_path)
    await hub.enrol()
    north = update(tables.devices).where(tables.devices.c.id.in_(["d-1", "d-2"]))
    await hub.store.write(lambda c: c.execute(north.values(labels={"region": "north"})).rowcount)
    old: Publisher = hub.runner._publisher  # type: ignore[assignment]
    publisher = Publisher(hub.store, old._director, old._targets, hub.send, hub.clock, 50.0)
    hub.runner = RolloutRunner(hub.store, publisher, hub.services.incidents, hub.audit)
    object.__setattr__(hub.services, "runner", hub.runner)
    object.__setattr__(hub.services, "facts_per_s", 50.0)
    await hub.runner.tick(hub.now)
    async with await hub.person("olga", Role.OPERATOR) as client:
        yield Desk(hub, client)
    hub.store.close()


async def test_each_device_is_asked_for_its_own_rate(desk: Desk) -> None:
    assert desk.rates() == {"d-1": 50.0, "d-2": 50.0, "d-3": 50.0}
    await desk.ask(label="region=north", facts_per_s=5)
    assert desk.rates() == {"d-1": 5.0, "d-2": 5.0, "d-3": 50.0}
    await desk.ask(device="EWR", facts_per_s=0.5)
    assert desk.rates() == {"d-1": 0.5, "d-2": 5.0, "d-3": 50.0}
    await desk.ask(device="d-2", facts_per_s=0)
    assert desk.rates() == {"d-1": 0.5, "d-2": None, "d-3": 50.0}
    await desk.ask(device="d-1", facts_per_s=None)
    await desk.ask(device="d-2", facts_per_s=None)
    assert desk.rates() == {"d-1": 5.0, "d-2": 5.0, "d-3": 50.0}


async def test_only_devices_whose_rate_changed_get_a_new_generation(desk: Desk) -> None:
    before = {device: order.generation for device, order in desk.orders().items()}
    await desk.ask(device="d-1", facts_per_s=3)
    await desk.ask(device="d-1", facts_per_s=3)
    await desk.ask(label="region=south", facts_per_s=3)
    after = {device: order.generation for device, order in desk.orders().items()}
    assert {device: after[device] - before[device] for device in after} == {"d-1": 1, "d-2": 0, "d-3": 0}


async def test_rates_are_listed_shown_with_the_device_and_in_the_audit(desk: Desk) -> None:
    await desk.ask(device="EWR", facts_per_s=2)
    listed = (await desk.client.get("/api/v1/rates")).json()
    assert listed["fleet"] == 50.0
    assert [(row["scope"], row["name"], row["facts_per_s"], row["by"]) for row in listed["rates"]] == [
        ("device", "d-1", 2.0, "olga")
    ]
    assert (await desk.client.get("/api/v1/devices/EWR")).json()["facts_per_s"] == 2.0


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"facts_per_s": 1}, 422, "name one of device and label"),
        ({"facts_per_s": 1, "device": "EWR", "label": "a=b"}, 422, "name one of device and label"),
        ({"facts_per_s": 1, "label": "north"}, 422, "write it as key=value"),
        ({"facts_per_s": 1, "device": "nowhere"}, 404, "no device or site"),
        ({"facts_per_s": -1, "device": "EWR"}, 422, "facts_per_s"),
        ({"device": "EWR"}, 422, "facts_per_s"),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_named(
    desk: Desk, body: dict[str, Any], status: int, words: str
) -> None:
    answer = await desk.ask(**body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert desk.rates() == {"d-1": 50.0, "d-2": 50.0, "d-3": 50.0}


async def test_a_viewer_sets_no_rate(desk: Desk) -> None:
    async with await desk.hub.person("vic", Role.VIEWER) as viewer:
        assert (await viewer.post("/api/v1/rates", json={"device": "EWR", "facts_per_s": 1})).status_code == 403


@pytest.mark.parametrize(
    ("own", "labels", "fleet", "rate"),
    [
        (None, [], None, None),
        (None, [], 9.0, 9.0),
        (None, [0.0], 9.0, None),
        (None, [7.0, 3.0], 9.0, 3.0),
        (1.0, [7.0], 9.0, 1.0),
        (0.0, [7.0], 9.0, None),
    ],
)
def test_the_nearest_rate_holds(
    own: float | None, labels: list[float], fleet: float | None, rate: float | None
) -> None:
    assert choose(own, labels, fleet) == rate
