"""The pages of audit log and signing keys, over the real API: who sees what, and what never shows."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from landreeve_hub.access import identity, users
from landreeve_hub.access.roles import Role
from landreeve_hub.api.guard import COOKIE
from landreeve_hub.audit.entry import Act
from landreeve_hub.signing.approvers import public_half
from landreeve_hub.signing.keyfolder import make_key

from tests.hub.hub_without_broker import Hub


@pytest.fixture
async def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


async def signed_in(hub: Hub, name: str, role: Role, lang: str = "en") -> httpx2.AsyncClient:
    def open_session(connection: Any) -> str:
        users.ensure(connection, name, role, hub.now)
        return identity.open_session(connection, name, hub.now)

    secret = await hub.store.write(open_session)
    return hub.client(cookies={COOKIE: secret, "lang": lang})


async def text(client: httpx2.AsyncClient, path: str) -> str:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_entries_are_found_by_who_what_and_when_and_people_in_full_only(hub: Hub) -> None:
    admin = await hub.person("ada", Role.ADMIN)
    for n, who in enumerate(("ada", "bob", "site:d-1:console")):
        moment = hub.now + timedelta(days=n)
        for m in range(3):
            await hub.audit.record(moment, Act(who, "rollout.pause", f"r-{n}{m}", "denied" if m == 2 else "allowed"))

    async def found(**asked: str) -> list[str]:
        answer = await admin.get("/api/v1/audit", params=asked)
        assert answer.status_code == 200, answer.text
        return [row["object"] for row in answer.json()["items"]]

    assert await found(actor="bob") == ["r-12", "r-11", "r-10"]
    assert await found(actor="bo") == []
    assert await found(actor="site:d-1") == ["r-22", "r-21", "r-20"]
    assert await found(action="rollout", decision="denied") == ["r-22", "r-12", "r-02"]
    assert await found(object="r-2", limit="2") == ["r-22", "r-21"]
    assert await found(since="2026-05-02", until="2026-05-02") == ["r-12", "r-11", "r-10"]
    assert await found(since="2026-05-03T12:00:00Z") == ["r-22", "r-21", "r-20"]
    assert await found(until="2026-05-01T12:00:00+00:00") == []
    refused = await admin.get("/api/v1/audit", params={"since": "yesterday"})
    assert (refused.status_code, "since: 'yesterday'" in refused.json()["detail"]) == (422, True)
    hub.store.close()


async def test_the_audit_page_verifies_for_real_and_says_what_it_found(hub: Hub) -> None:
    for n in range(60):
        await hub.audit.record(hub.now, Act("cem", "incident.close", f"i-{n}"))
    await hub.audit.checkpoint(hub.now)
    auditor = await signed_in(hub, "audra", Role.AUDITOR)
    page = await text(auditor, "/audit?verify=1")
    assert "The log is whole." in page
    older = re.search(r'href="(/audit\?before=\d+)" rel="next"', page)
    assert older is not None
    assert ">i-0<" in await text(auditor, older[1])
    assert "No entry matches" in await text(auditor, "/audit?actor=nobody")
    assert "neither a day" in await text(auditor, "/audit?since=never")
    assert ("/audit/erase" in page, "cem" in page) == (False, True)
    await hub.store.write(lambda c: c.exec_driver_sql("UPDATE audit SET object = 'i-x' WHERE seq = 7") and None)
    broken = await text(auditor, "/audit?verify=1")
    assert ("entry 7 was changed after it was written" in broken, "The log is whole." in broken) == (True, False)
    hub.store.close()


async def test_who_may_not_read_entries_still_sees_how_the_log_stands(hub: Hub) -> None:
    await hub.audit.record(hub.now, Act("cem", "incident.close", "i-1"))
    await hub.audit.checkpoint(hub.now)
    viewer = await signed_in(hub, "vic", Role.VIEWER)
    page = await text(viewer, "/audit?verify=1")
    assert ("Your role does not read the entries" in page, hub.audit.keys.key.text() in page) == (True, True)
    assert ("i-1" in page, "The log is whole." in page, "/audit/export" in page) == (False, False, False)
    security = await text(await signed_in(hub, "sec", Role.SECURITY), "/audit")
    assert "POST /api/v1/audit/erase" in security
    hub.store.close()


async def test_the_keys_page_shows_roles_and_their_keys_and_no_private_half(hub: Hub, tmp_path: Path) -> None:
    viewer, security = await signed_in(hub, "vic", Role.VIEWER), await signed_in(hub, "sec", Role.SECURITY)
    pages = {client: await text(client, "/keys") for client in (viewer, security)}
    for page in pages.values():
        assert ("2 of 3" in page.replace("<bdi>", "").replace("</bdi>", ""), "root-1" in page) == (True, True)
        for file in (tmp_path / "hub" / "keys").glob("*.pem"):
            secret = file.read_text().splitlines()[1]
            assert secret not in page
        assert "PRIVATE KEY" not in page
    assert ("/keys/rotate/" in pages[security], "/keys/rotate/" in pages[viewer]) == (True, False)
    roles = (await viewer.get("/api/v1/keys")).json()["roles"]
    root = next(role for role in roles if role["role"] == "root")
    assert [(one["name"], one["where"]) for one in root["signers"]] == [(f"root-{n}", "here") for n in (1, 2, 3)]
    assert all(f"{one['name']} ({one['keyid'][:8]}): here" in root["keys"] for one in root["signers"])
    hub.store.close()


async def test_a_change_that_awaits_signatures_is_offered_and_alarms_come_first(hub: Hub, tmp_path: Path) -> None:
    for name in ("root-2", "root-3"):
        (tmp_path / "hub" / "keys" / f"{name}.pem").rename(tmp_path / f"{name}.pem")
    admin = await signed_in(hub, "ada", Role.ADMIN)
    made = await admin.post("/api/v1/keys/rotate/targets", json={})
    assert made.status_code == 200, made.text
    change = made.json()["id"]
    page = await text(admin, "/keys")
    assert f'href="/api/v1/keys/changes/{change}" download="{change}.json"' in page
    assert f"DELETE /api/v1/keys/changes/{change}" in page
    assert "One change awaits signatures." in page
    hub.now += timedelta(days=700)
    late = await text(await signed_in(hub, "ada", Role.ADMIN), "/keys")
    assert ("Nothing new can be installed" in late, "POST /api/v1/keys/renew/root" in late) == (True, True)
    arabic = await text(await signed_in(hub, "ada", Role.ADMIN, "ar"), "/keys")
    assert ('dir="rtl"' in arabic, "Signing keys" in arabic) == (True, False)
    hub.store.close()


async def test_a_dismissed_key_brought_again_can_be_admitted_or_dismissed_on_the_page(hub: Hub, tmp_path: Path) -> None:
    admin, other = await signed_in(hub, "ada", Role.ADMIN), await signed_in(hub, "bob", Role.ADMIN)
    half = msgspec.json.encode(public_half(make_key(tmp_path / "ada.pem", ""), "ada")).decode()
    brought = await admin.post("/api/v1/keys/approvers", json={"public": half})
    assert brought.status_code == 201, brought.text
    path = f"POST /api/v1/keys/approvers/{brought.json()['keyid']}"
    gone = await other.post(f"{path.removeprefix('POST ')}/dismiss")
    assert gone.status_code == 200, gone.text
    page = await text(other, "/keys")
    assert (f"{path}/admit" in page, f"{path}/dismiss" in page) == (False, False)
    assert (await admin.post("/api/v1/keys/approvers", json={"public": half})).json()["state"] == "brought"
    page = await text(other, "/keys")
    assert (f"{path}/admit" in page, f"{path}/dismiss" in page) == (True, True)
    assert "Dismissed before by <bdi>bob</bdi>" in page
    hub.store.close()
