"""The audit log over the hub's API: who may read, export and erase, and what an export holds."""

from pathlib import Path

import pytest
from landreeve.audit.verify import Known, verify
from landreeve_hub.access.roles import Role

from tests.hub.hub_without_broker import Hub


@pytest.fixture
async def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


async def test_a_person_is_erased_by_who_may_and_the_export_verifies_without_them(hub: Hub, tmp_path: Path) -> None:
    admin, auditor = await hub.person("root", Role.ADMIN), await hub.person("audra", Role.AUDITOR)
    dpo = await hub.person("dora", Role.DPO)
    assert (await admin.post("/api/v1/users", json={"name": "zacharias", "role": "viewer"})).status_code == 201
    listed = (await auditor.get("/api/v1/audit")).json()["items"]
    assert listed[0]["object"] == "zacharias"
    assert (await auditor.post("/api/v1/audit/erase", json={"subject": "zacharias"})).status_code == 403
    erased = (await dpo.post("/api/v1/audit/erase", json={"subject": "zacharias"})).json()
    assert (erased["entries"], erased["plain"]) == (1, 0)
    assert (await dpo.post("/api/v1/audit/erase", json={"subject": "zacharias"})).status_code == 404
    items = (await auditor.get("/api/v1/audit")).json()["items"]
    assert [(one["actor"], one["action"]) for one in items[:2]] == [
        ("dora", "audit.erase"),
        ("audra", items[1]["action"]),
    ]
    assert "zacharias" not in str(items)
    assert (await auditor.get("/api/v1/audit/verify")).json()["whole"]
    archive = tmp_path / "audit.zip"
    archive.write_bytes((await auditor.get("/api/v1/audit/export")).content)
    report = verify(archive, Known(hub.audit.keys.key))
    assert (report.whole, report.sealed, report.revealed) == (True, report.entries, 0)
    assert list((tmp_path / "hub").glob("audit-*.zip")) == []  # nothing is left behind of the answer
    named = tmp_path / "named.zip"
    assert (await auditor.get("/api/v1/audit/export?personal=true")).status_code == 403
    named.write_bytes((await dpo.get("/api/v1/audit/export?personal=true")).content)
    assert verify(named, Known(hub.audit.keys.key)).revealed > 0
    hub.store.close()


async def test_status_names_key_seal_and_witnesses_and_only_the_known_can_be_trusted_anew(hub: Hub) -> None:
    security, viewer = await hub.person("sec", Role.SECURITY), await hub.person("vic", Role.VIEWER)
    await hub.audit.checkpoint(hub.now)
    status = (await viewer.get("/api/v1/audit/status")).json()
    assert status["key"] == hub.audit.keys.key.text()
    assert (status["witnesses"], status["sites"]) == (0, [])
    assert (await security.post("/api/v1/audit/trust", json={"subject": "d-9"})).status_code == 404
    assert (await viewer.post("/api/v1/audit/trust", json={"subject": "d-9"})).status_code == 403
    hub.store.close()
