"""Who belongs to the fleet, over the API: what people may do, what they are told, what the audit log keeps."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.store import tables
from sqlalchemy import insert, select

from tests.hub.hub_without_broker import Hub


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path)
    await hub.enrol()
    yield hub
    hub.store.close()


async def acts(hub: Hub) -> list[str]:
    return list(await hub.store.read(lambda c: c.execute(select(tables.audit.c.action)).scalars().all()))


async def test_revoked_device_is_refused_even_where_the_broker_cannot_be_told(hub: Hub) -> None:
    """No broker is there: the tables refuse the device, and the answer says what is left to do."""
    async with await hub.person("sam", Role.SECURITY) as sam:
        answer = (await sam.post("/api/v1/devices/JFK/revoke", json={"reason": "stolen"})).json()
        assert (answer["device"], answer["cut_s"]) == ("d-2", None)
        assert "/enrol/v1/crl" in answer["sentence"]
        shown = (await sam.get("/api/v1/devices/d-2")).json()
        assert (shown["revoked"], shown["ended_reason"]) == (True, "revoked")
        assert [row["id"] for row in (await sam.get("/api/v1/devices")).json()] == ["d-1", "d-3"]
        assert (await sam.post("/api/v1/devices/nobody/revoke", json={})).status_code == 404
    cleared = {topic for topic, payload, retain in hub.published if retain and not payload}
    assert {"lr/1/demo/dn/d-2/desired", "lr/1/demo/up/d-2/state"} <= cleared
    assert "device.revoke" in await acts(hub)


@pytest.mark.parametrize("path", ["devices/JFK/revoke", "authority/roll", "authority/finish"])
async def test_operator_may_let_boxes_in_but_throws_nobody_out(hub: Hub, path: str) -> None:
    async with await hub.person("olga", Role.OPERATOR) as olga:
        assert (await olga.post(f"/api/v1/{path}", json={})).status_code == 403
        assert (await olga.post("/api/v1/enrolments/d-9/approve")).status_code == 404  # allowed; nobody waits


async def test_waiting_box_is_shown_without_its_token_and_decided_once(hub: Hub) -> None:
    row = {"device": "d-9", "token": "hash", "site": "BOS", "fingerprint": "ab12 cd34", "state": "waiting"}
    await hub.store.write(lambda c: c.execute(insert(tables.enrolment_requests), [row]) and None)
    async with await hub.person("olga", Role.OPERATOR) as olga:
        (shown,) = (await olga.get("/api/v1/enrolments")).json()
        assert (shown["site"], shown["fingerprint"], "token" in shown) == ("BOS", "ab12 cd34", False)
        decided = (await olga.post("/api/v1/enrolments/d-9/approve")).json()
        assert (decided["state"], decided["decided_by"], "token" in decided) == ("approved", "olga", False)
        assert (await olga.post("/api/v1/enrolments/d-9/deny")).status_code == 404
        assert (await olga.get("/api/v1/enrolments")).json() == []
    assert "enrolment.approve" in await acts(hub)


async def test_authority_is_rolled_once_and_finished_only_when_nobody_is_stranded(hub: Hub) -> None:
    async with await hub.person("sam", Role.SECURITY) as sam:
        before = (await sam.get("/api/v1/authority")).json()
        assert (before["rolling"], before["devices"], len(before["authorities"])) == (False, 3, 1)
        assert (await sam.post("/api/v1/authority/finish", json={})).status_code == 409
        rolled = (await sam.post("/api/v1/authority/roll")).json()
        assert (rolled["rolling"], rolled["moved"], len(rolled["authorities"])) == (True, 0, 2)
        assert (await sam.post("/api/v1/authority/roll")).status_code == 409
        refused = await sam.post("/api/v1/authority/finish", json={})
        assert "3 of 3 devices" in refused.json()["detail"]
        done = (await sam.post("/api/v1/authority/finish", json={"force": True})).json()
        assert (done["rolling"], len(done["authorities"])) == (False, 1)
        assert done["authorities"][0]["fingerprint"] == rolled["authorities"][1]["fingerprint"]
    assert {"authority.roll", "authority.finish"} <= set(await acts(hub))
