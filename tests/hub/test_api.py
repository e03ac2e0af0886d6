"""The hub's API over real rooms: store, signing, registry, publisher, rollout runner, audit."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
import msgspec
import pytest
from landreeve.trust.document import parse_document
from landreeve.wire.codec import decode
from landreeve.wire.messages import Command, PlanReport, SignedDesired
from landreeve.wire.plans import BoxFacts, PlanTrial, RunPlan
from landreeve_hub.access import setup
from landreeve_hub.access.roles import Role
from landreeve_hub.api.guard import undeclared
from landreeve_hub.exchange.archive import read_archive
from landreeve_hub.learning import known_plans
from landreeve_hub.signing import request
from landreeve_hub.signing.approvers import public_half
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from securesystemslib.signer import CryptoSigner
from sqlalchemy import delete, insert, update

from tests.hub.hub_without_broker import SITES, SKETCH, Hub, push, release, rolled_out


@pytest.fixture
async def ann(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    """An ml-engineer: proposes."""
    async with await hub.person("ann", Role.ML_ENGINEER) as client:
        yield client


@pytest.fixture
async def bob(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    """An approver."""
    async with await hub.person("bob", Role.APPROVER) as client:
        yield client


# --- doors ---


def test_every_route_declares_who_may_call_it(hub: Hub) -> None:
    assert undeclared(hub.app) == []


async def test_every_api_path_refuses_a_stranger(hub: Hub) -> None:
    schema = hub.app.openapi()
    open_paths = {"/api/v1/sessions", "/api/v1/health"}
    async with hub.client() as stranger:
        for path, methods in schema["paths"].items():
            if path in open_paths:
                continue
            for method in methods:
                answer = await stranger.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == 401, (method, path)
                assert answer.headers["content-type"] == "application/problem+json"


async def test_viewer_changes_nothing(hub: Hub) -> None:
    async with await hub.person("vic", Role.VIEWER) as viewer:
        answer = await viewer.post("/api/v1/rollouts", json={"model": "delay", "version": "v1"})
        assert answer.status_code == 403
        assert "vic is viewer" in answer.json()["detail"]


async def test_setup_code_opens_one_admin_session_once(hub: Hub) -> None:
    code = await setup.issue_code(hub.store, hub.now)
    async with hub.client() as browser:
        assert (await browser.post("/api/v1/sessions", json={"code": code})).status_code == 201
        assert (await browser.get("/api/v1/me")).json()["role"] == "admin"
        assert (await browser.post("/api/v1/sessions", json={"code": code})).status_code == 401


async def test_session_ends_when_signed_out_or_idle(hub: Hub) -> None:
    code = await setup.issue_code(hub.store, hub.now)
    async with hub.client() as browser:
        await browser.post("/api/v1/sessions", json={"code": code})
        hub.now += timedelta(minutes=31)
        assert (await browser.get("/api/v1/me")).status_code == 401


async def test_cookie_from_a_foreign_page_changes_nothing(hub: Hub) -> None:
    code = await setup.issue_code(hub.store, hub.now)
    async with hub.client() as browser:
        await browser.post("/api/v1/sessions", json={"code": code})
        foreign = {"Origin": "http://evil.example"}
        answer = await browser.post("/api/v1/users", json={"name": "eve", "role": "admin"}, headers=foreign)
        assert answer.status_code == 401


async def test_foreign_host_name_is_refused(hub: Hub) -> None:
    async with hub.client(url="http://rebound.example") as rebound:
        assert (await rebound.get("/api/v1/health")).status_code == 421


async def test_guessing_is_slowed_down(hub: Hub) -> None:
    async with hub.client() as guesser:
        tries = [await guesser.post("/api/v1/sessions", json={"code": f"AAAA-{n}"}) for n in range(6)]
    assert [t.status_code for t in tries] == [401, 401, 401, 401, 401, 429]
    assert int(tries[-1].headers["retry-after"]) > 0


async def test_password_signs_in(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        new = {"name": "carol", "role": "operator", "password": "correct horse battery"}
        assert (await admin.post("/api/v1/users", json=new)).status_code == 201
        assert (await admin.post("/api/v1/users", json=new)).status_code == 409
    async with hub.client() as browser:
        asked = {"user": "carol", "password": "correct horse battery"}
        assert (await browser.post("/api/v1/sessions", json=asked)).status_code == 201
        assert (await browser.get("/api/v1/me")).json()["user"] == "carol"


async def test_token_expires_and_its_scopes_narrow_the_role(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        made = await admin.post("/api/v1/tokens", json={"name": "ci", "scopes": ["view"], "days": 1})
    async with hub.client(made.json()["token"]) as narrow:
        assert (await narrow.get("/api/v1/fleet")).status_code == 200
        assert (await narrow.get("/api/v1/users")).status_code == 403
        hub.now += timedelta(days=2)
        assert (await narrow.get("/api/v1/fleet")).status_code == 401


async def test_bad_body_names_the_field(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        answer = await admin.post("/api/v1/users", json={"name": "x", "role": 7})
        assert answer.status_code == 422
        assert "body.role: must be a text" in answer.json()["detail"]


async def test_repeated_post_with_the_same_key_happens_once(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        key = {"Idempotency-Key": "k1"}
        body = {"name": "dora", "role": "viewer"}
        first = await admin.post("/api/v1/users", json=body, headers=key)
        again = await admin.post("/api/v1/users", json=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content


# --- releases ---


async def test_proposer_cannot_approve_their_own_release(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        digest = await push(admin, release())
        answer = await admin.post(f"/api/v1/releases/{digest}/approve")
        assert answer.status_code == 403
        assert "cannot also approve" in answer.json()["detail"]


async def test_another_token_or_a_session_of_the_proposer_is_no_second_person(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as session:
        tokens = [(await session.post("/api/v1/tokens", json={"name": n, "days": 1})).json()["token"] for n in "ab"]
        async with hub.client(tokens[0]) as one, hub.client(tokens[1]) as other:
            digest = await push(one, release())
            for same in (one, other, session):
                assert (await same.post(f"/api/v1/releases/{digest}/approve")).status_code == 403
            listed = (await session.get("/api/v1/releases")).json()
            assert [r["approved_by"] for r in listed if r["digest"] == digest] == [""]


async def test_emergency_approval_is_flagged_for_someone_elses_review(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        digest = await push(admin, release())
        answer = await admin.post(f"/api/v1/releases/{digest}/approve", json={"emergency": "the site is down"})
        assert answer.status_code == 200
        (incident,) = (await admin.get("/api/v1/incidents")).json()
        assert incident["kind"] == "emergency_review"
        assert (await admin.post(f"/api/v1/incidents/{incident['id']}/close")).status_code == 403
    async with await hub.person("sue", Role.SECURITY) as other:
        assert (await other.post(f"/api/v1/incidents/{incident['id']}/close")).status_code == 200


async def test_release_waits_for_an_approvers_own_key_and_says_how_to_sign(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    key = CryptoSigner.generate_ed25519()
    half = msgspec.json.encode(public_half(key, "bob")).decode()
    assert (await ann.post("/api/v1/keys/approvers", json={"public": half})).status_code == 403
    assert (await bob.post("/api/v1/keys/approvers", json={"public": half})).status_code == 201
    async with await hub.person("root", Role.ADMIN) as admin:
        assert (await admin.post("/api/v1/keys/approvers/bob/admit")).json()["state"] == "admitted"
        body = {"name": "delays", "paths": ["models/*/*"], "threshold": 1}
        assert (await admin.post("/api/v1/keys/roles", json=body)).json()["state"] == "in force"
    digest = await push(ann, release())
    approved = (await bob.post(f"/api/v1/releases/{digest}/approve")).json()
    assert approved["state"] == "awaiting"
    assert approved["waits_for"].startswith("awaiting signatures: 0 of 1 (missing: bob (")
    assert (await bob.get("/api/v1/releases?state=awaiting")).json()[0]["waits_for"] == approved["waits_for"]
    refused = await ann.post("/api/v1/rollouts", json={"model": "delay", "version": approved["version"]})
    assert refused.status_code == 409, refused.text
    change = (await bob.get("/api/v1/keys/changes")).json()[0]
    exported = (await bob.get(f"/api/v1/keys/changes/{change['id']}")).content
    assert (await bob.post("/api/v1/keys/changes", content=exported)).json()["detail"].startswith("this file brings no")
    signed, _ = request.sign(request.parse(exported), key)
    taken = await bob.post("/api/v1/keys/changes", content=request.encode(signed))
    assert taken.json()["state"] == "in force"
    assert (await bob.get(f"/api/v1/releases/{digest}")).json()["state"] == "approved"
    roles = (await bob.get("/api/v1/keys")).json()["roles"]
    assert [view["keys"] for view in roles if view["role"] == "delays"] == [
        [f"bob ({key.public_key.keyid[:8]}): elsewhere"]
    ]


async def test_release_comes_back_as_it_was_pushed(hub: Hub, ann: httpx2.AsyncClient) -> None:
    packed = release()
    digest = await push(ann, packed)
    archive = await ann.get("/api/v1/releases/delay@v1/archive")
    (hub.services.work / "pulled.tar").write_bytes(archive.content)
    with (hub.services.work / "pulled.tar").open("rb") as stream:
        assert read_archive(stream) == packed
    assert digest == packed.digest


async def test_rubbish_is_no_release(ann: httpx2.AsyncClient) -> None:
    headers = {"Content-Type": "application/x-tar"}
    answer = await ann.post("/api/v1/releases", content=b"rubbish" * 100, headers=headers)
    assert answer.status_code == 422
    assert "archive" in answer.json()["detail"]


# --- rollouts ---


async def test_draft_release_cannot_be_rolled_out(hub: Hub, ann: httpx2.AsyncClient) -> None:
    await hub.enrol()
    await push(ann, release())
    answer = await ann.post("/api/v1/rollouts", json={"model": "delay", "version": "v1"})
    assert answer.status_code == 409
    assert "only an approved release" in answer.json()["detail"]


async def test_proposer_cannot_approve_their_own_rollout(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    async with await hub.person("root", Role.ADMIN) as admin:
        digest = await push(ann, release())
        await bob.post(f"/api/v1/releases/{digest}/approve")
        made = (await admin.post("/api/v1/rollouts", json={"model": "delay", "version": "v1"})).json()
        assert made["state"] == "AWAITING_APPROVAL"
        assert (await admin.post(f"/api/v1/rollouts/{made['id']}/approve")).status_code == 403


async def test_canary_alone_is_told_first(hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient) -> None:
    await hub.enrol()
    row = await rolled_out(hub, ann, bob)
    told = {t: decode(p, SignedDesired) for t, p, _ in hub.published}
    assert row["waiting"] == ["EWR has been told of v1 and not answered yet"]
    assert row["waves"][0]["in_flight"] == 1
    assert '"models":[{' in told["lr/1/demo/dn/d-1/desired"].document.replace(" ", "")
    assert '"models":[]' in told["lr/1/demo/dn/d-2/desired"].document.replace(" ", "")


async def test_bad_release_stops_at_the_canary_and_says_why(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    first = await rolled_out(hub, ann, bob)
    for device in SITES:
        await hub.report(device, "COMMITTED", first["release"], first["id"])
    assert (await ann.get(f"/api/v1/rollouts/{first['id']}")).json()["state"] == "FINISHED"
    second = await rolled_out(hub, ann, bob, "worse")
    await hub.report("d-1", "ROLLED_BACK", second["release"], second["id"], "It was worse than v1 on the same rows.")
    row = (await ann.get(f"/api/v1/rollouts/{second['id']}")).json()
    (incident,) = (await ann.get("/api/v1/incidents")).json()
    assert row["state"] in {"ROLLING_BACK", "ROLLED_BACK"}
    assert "It was worse than v1" in incident["sentence"]
    assert "JFK and LGA never got it" in incident["sentence"]
    assert (await ann.get(f"/api/v1/releases/{second['release']}")).json()["state"] == "quarantined"
    refused = await ann.post("/api/v1/rollouts", json={"model": "delay", "version": "v2"})
    assert refused.status_code == 409
    assert "quarantined" in refused.json()["detail"]


async def test_release_in_use_is_not_withdrawn(hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient) -> None:
    await hub.enrol()
    row = await rolled_out(hub, ann, bob)
    answer = await bob.post(f"/api/v1/releases/{row['release']}/withdraw")
    assert answer.status_code == 409
    assert "ordered for EWR" in answer.json()["detail"]


async def test_late_joiner_gets_the_fleets_release(hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient) -> None:
    await hub.enrol()
    first = await rolled_out(hub, ann, bob)
    for device in SITES:
        await hub.report(device, "COMMITTED", first["release"], first["id"])
    row = {"id": "d-4", "fleet": "demo", "site": "PHL", "online": True}
    await hub.store.write(lambda c: c.execute(insert(tables.devices), [row]) and None)
    await hub.runner.tick(hub.now)
    newest = [decode(p, SignedDesired) for t, p, _ in hub.published if t == "lr/1/demo/dn/d-4/desired"][-1]
    assert first["release"] in newest.document


async def test_restart_publishes_what_was_decided_but_not_sent(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    digest = await push(ann, release())
    await bob.post(f"/api/v1/releases/{digest}/approve")
    assignment = {"device": "d-1", "model": "delay", "digest": digest, "version": "v1", "rollout": "r-000001"}
    await hub.store.write(lambda c: c.execute(insert(tables.assignments).values(assignment)) and None)
    await hub.runner.tick(hub.now)
    assert any(t == "lr/1/demo/dn/d-1/desired" for t, _, _ in hub.published)


async def test_fleet_shows_each_site_and_what_is_waited_for(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    await rolled_out(hub, ann, bob)
    fleet = (await ann.get("/api/v1/fleet")).json()
    assert fleet["counts"] == {"healthy": 3, "drift": 0, "failing": 0, "offline": 0, "total": 3}
    assert [row["site"] for row in fleet["devices"]] == ["EWR", "JFK", "LGA"]
    assert fleet["waiting"] == ["EWR has been told of v1 and not answered yet"]


async def test_preview_shows_the_exact_waves(hub: Hub, ann: httpx2.AsyncClient) -> None:
    await hub.enrol()
    asked = {"model": "delay", "preview": True, "plan": {"waves": [{"share": 0.34}, {"rest": True}]}}
    assert (await ann.post("/api/v1/rollouts", json=asked)).json()["waves"] == [["EWR"], ["JFK", "LGA"]]


async def test_preview_says_which_wave_takes_nobody_and_who_is_in_none(hub: Hub, ann: httpx2.AsyncClient) -> None:
    await hub.enrol()
    plan = {"waves": [{"query": "tag:pilot"}, {"devices": ["EWR"]}, {"query": "site:ewr"}]}
    notes = (await ann.post("/api/v1/rollouts/preview", json={"plan": plan})).json()["notes"]
    assert notes[:3] == [
        "Wave 1 takes nobody: no device answers to 'tag:pilot' now. No device has a label.",
        "Wave 3 takes nobody: its devices are in earlier waves.",
        "JFK and LGA are in no wave and keep the version there is; a last wave of the rest would take everyone.",
    ]


# --- the rest ---


async def test_command_reaches_the_device_until_answered(hub: Hub) -> None:
    await hub.enrol()
    async with await hub.person("sue", Role.SECURITY) as sue:
        made = await sue.post("/api/v1/devices/EWR/commands", json={"name": "bundle"})
        assert made.status_code == 202
        topic, payload, retain = hub.published[-1]
        assert (topic, retain) == ("lr/1/demo/dn/d-1/command", False)
        assert decode(payload, Command).id == made.json()["id"]


async def test_audit_holds_what_people_did_and_verifies(hub: Hub) -> None:
    async with await hub.person("root", Role.ADMIN) as admin:
        await admin.post("/api/v1/users", json={"name": "dora", "role": "viewer"})
        listed = (await admin.get("/api/v1/audit")).json()
        assert [e["action"] for e in listed["items"]] == ["user.add"]
        assert (await admin.get("/api/v1/audit/verify")).json()["whole"] is True


async def test_change_is_told_to_who_watches_and_the_stream_ends_when_closing(hub: Hub) -> None:
    stream = hub.services.changes.stream(hub.services.closing)
    assert await anext(stream) == b"retry: 2000\n\n"
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    hub.services.changes.say("fleet")
    assert await waiting == b'event: changed\ndata: {"part": "fleet"}\n\n'
    hub.services.closing.set()
    assert [chunk async for chunk in stream] == [b": here\n\n"]


async def test_drift_of_a_model_without_windows_is_empty(ann: httpx2.AsyncClient) -> None:
    drift = (await ann.get("/api/v1/drift/delay")).json()
    assert (drift["columns"], drift["sites"], drift["windows"]) == ([], [], [])


async def test_certificate_days_count_down(hub: Hub, ann: httpx2.AsyncClient) -> None:
    await hub.enrol()
    expires = {"certificate_expires": rfc3339(hub.now + timedelta(days=9))}
    own = tables.devices.c.id == "d-1"
    await hub.store.write(lambda c: c.execute(update(tables.devices).where(own).values(expires)) and None)
    assert (await ann.get("/api/v1/devices/EWR")).json()["certificate_days"] == 9.0


async def test_drift_shows_now_beside_what_the_release_was_trained_on(hub: Hub, ann: httpx2.AsyncClient) -> None:
    await hub.enrol()
    digest = await push(ann, release())
    for name, known in (("d-1", digest), ("d-2", "0" * 64)):
        report = {"scores": {"hour": 0.3}, "sketches": {}, "verdict": "drifted"}
        row = {"device": name, "model": "delay", "window": 1, "release": known, "version": "v1", "report": report}
        await hub.store.write(lambda c, row=row: c.execute(insert(tables.windows).values(row)) and None)
    drift = (await ann.get("/api/v1/drift/delay")).json()
    assert drift["reference"] == {"release": digest, "sketches": {"hour": SKETCH}}
    await hub.store.write(lambda c: c.execute(delete(tables.windows).where(tables.windows.c.device == "d-1")) and None)
    unknown = (await ann.get("/api/v1/drift/delay")).json()
    assert unknown["reference"] == {"release": "0" * 64, "sketches": {}}


async def tell_plan(hub: Hub, device: str, release: str, box_class: str = "n100") -> None:
    """What ingest does with a device's plan."""
    plan = RunPlan(backend="openvino", device="cpu", precision="int8", threads=2, recipe="nncf")
    fell = PlanTrial(what="onnxruntime cpu int8 dynamic", accepted=False, why="accuracy fell to 0.53")
    body = PlanReport(
        model="delay", release=release, version="v1", box_class=box_class, box=BoxFacts(cpu="Intel N100", threads=2),
        plan=plan, ratio=0.25, seconds=8.0, trials=(fell,),
    )  # fmt: skip
    await hub.store.write(lambda c: known_plans.keep(c, device, body, rfc3339(hub.now), (1, 1)))


async def test_second_wave_starts_from_the_plan_that_won_in_the_first(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    await hub.store.write(lambda c: c.execute(update(tables.devices).values(box_class="n100")) and None)
    own = tables.devices.c.id == "d-3"
    await hub.store.write(lambda c: c.execute(update(tables.devices).where(own).values(box_class="rpi5")) and None)
    made = await rolled_out(hub, ann, bob)
    await tell_plan(hub, "d-1", made["release"])
    await hub.report("d-1", "COMMITTED", made["release"], made["id"])
    orders = {t: parse_document(decode(p, SignedDesired).document) for t, p, _ in hub.published}
    hints = {d: [h.name for h in orders[f"lr/1/demo/dn/{d}/desired"].models[0].hints] for d in SITES}
    assert hints == {"d-1": [], "d-2": ["openvino cpu int8 nncf 2 threads"], "d-3": []}


async def test_plans_say_who_agrees_and_why_others_fell(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    made = await rolled_out(hub, ann, bob)
    for device in ("d-1", "d-2"):
        await tell_plan(hub, device, made["release"])
    await tell_plan(hub, "d-3", "0" * 64, "rpi5")
    (row,) = (await ann.get("/api/v1/plans", params={"release": "delay@v1"})).json()
    assert (row["winner"]["boxes"], row["boxes"], row["box"]["cpu"]) == (2, 2, "Intel N100")
    assert [report["site"] for report in row["reports"]] == ["EWR", "JFK"]
    assert row["reports"][0]["trials"][0]["why"] == "accuracy fell to 0.53"
    every = (await ann.get("/api/v1/plans", params={"model": "delay"})).json()
    assert {(row["release"], row["box_class"]) for row in every} == {(made["release"], "n100"), ("0" * 64, "rpi5")}
    assert (await ann.get("/api/v1/plans", params={"release": "delay@v9"})).status_code == 404
    device = (await ann.get("/api/v1/devices/JFK")).json()
    assert (device["box_class"], device["plans"][0]["name"]) == ("n100", "openvino cpu int8 nncf 2 threads")


async def test_box_that_has_just_joined_tells_what_it_is_before_its_first_order(
    hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await hub.enrol()
    first = await rolled_out(hub, ann, bob)
    await tell_plan(hub, "d-1", first["release"])
    for device in SITES:
        await hub.report(device, "COMMITTED", first["release"], first["id"])
    rows = [
        {"id": name, "fleet": "demo", "site": name, "online": True, "enrolled": rfc3339(hub.now)}
        for name in ("born", "silent")
    ]
    await hub.store.write(lambda c: c.execute(insert(tables.devices), rows) and None)
    await hub.runner.tick(hub.now)
    own = tables.devices.c.id == "born"
    told = {"agent": "0.2.0", "box_class": "n100"}
    await hub.store.write(lambda c: c.execute(update(tables.devices).where(own).values(told)) and None)
    await hub.runner.tick(hub.now)

    def ordered(device: str) -> list[list[str]]:
        documents = [p for t, p, _ in hub.published if t == f"lr/1/demo/dn/{device}/desired"]
        models = [parse_document(decode(p, SignedDesired).document).models for p in documents]
        return [[hint.backend for model in found for hint in model.hints] for found in models if found]

    assert (ordered("born"), ordered("silent")) == ([["openvino"]], [])
    hub.now += timedelta(minutes=3)  # a box whose hardware cannot be probed must not wait for ever
    await hub.runner.tick(hub.now)
    assert ordered("silent") == [[]]


async def test_files_that_no_release_needs_are_shown_to_all_and_removed_by_few(hub: Hub) -> None:
    orphan = hub.blobs.put(b"of a push that was cut short")
    viewer, operator = await hub.person("vera", Role.VIEWER), await hub.person("otto", Role.OPERATOR)
    shown = (await viewer.get("/api/v1/blobs/garbage")).json()
    assert [(blob["digest"], blob["age_s"], blob["after_s"]) for blob in shown["blobs"]] == [(orphan, 0, 3600)]
    assert (shown["bytes"], shown["removed"]) == (28, 0)
    assert (await viewer.post("/api/v1/blobs/gc")).status_code == 403
    removed = (await operator.post("/api/v1/blobs/gc")).json()
    assert (removed["removed"], removed["blobs"][0]["removed"]) == (0, False)  # seen needless for no time yet
    assert hub.blobs.has(orphan)
