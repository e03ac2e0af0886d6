"""The broker over the API: what to put into another, and its check."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.broker.advice import finding
from landreeve_hub.broker.place import broker_place
from landreeve_hub.errors import BrokerError, OperatorError

from tests.hub.hub_without_broker import Hub


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path)
    await hub.enrol()
    yield hub
    hub.store.close()


@pytest.fixture
async def admin(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    async with await hub.person("ada", Role.ADMIN) as client:
        yield client


async def test_each_known_broker_gets_its_files_with_the_devices_of_the_fleet(admin: httpx2.AsyncClient) -> None:
    for kind, names in (("mosquitto", {"landreeve.conf", "landreeve.acl"}), ("nats", {"landreeve.conf"})):
        files = (await admin.get(f"/api/v1/broker/config/{kind}")).json()["files"]
        assert set(files) == names
    assert (await admin.get("/api/v1/broker/config/emqx")).json()["proven"] is False
    assert "CN=d-2" in files["landreeve.conf"]
    unknown = await admin.get("/api/v1/broker/config/rabbit")
    assert unknown.status_code == 404
    assert "mosquitto, nats, emqx" in unknown.json()["detail"]


async def test_the_check_answers_with_its_findings_or_why_there_are_none(hub: Hub, admin: httpx2.AsyncClient) -> None:
    assert (await admin.post("/api/v1/broker/check")).status_code == 503

    async def found() -> list[object]:
        return [finding("wildcard", "it heard through #", ok=False)]

    async def unconnected() -> list[object]:
        raise BrokerError("the hub is not connected to the broker at b:1: nothing to check")

    object.__setattr__(hub.services, "check_broker", found)
    answer = (await admin.post("/api/v1/broker/check")).json()
    assert answer["ok"] is False
    assert answer["findings"][0]["change"]["emqx"]
    object.__setattr__(hub.services, "check_broker", unconnected)
    refused = await admin.post("/api/v1/broker/check")
    assert (refused.status_code, "not connected" in refused.json()["detail"]) == (503, True)


@pytest.mark.parametrize("url", ["", "broker:8883", "mqtt://broker", "mqtts://", "mqtts://b:99999", "mqtts://[::1"])
def test_an_address_that_cannot_be_meant_is_refused_and_shown_how(url: str) -> None:
    with pytest.raises(OperatorError, match="write it as mqtts://host:8883"):
        broker_place(url)
