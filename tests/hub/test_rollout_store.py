"""Rollouts in the tables: old ones migrate, idle looks cost nothing, conflicts hold, people ask why."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from alembic import command
from landreeve.trust.document import parse_document
from landreeve.wire.codec import decode
from landreeve.wire.messages import Fact, SignedDesired, UpdateReport
from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Role
from landreeve_hub.ingest.appliers import apply_update
from landreeve_hub.rollout import book
from landreeve_hub.rollout.roster import Back, Outcome
from landreeve_hub.rollout.state import State
from landreeve_hub.store import changes, tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.migrate import configuration
from sqlalchemy import Connection, create_engine, insert, select, text, update

from tests.hub.conftest import on_sqlite
from tests.hub.hub_without_broker import SITES, Hub, release, rolled_out


@on_sqlite
def test_rollout_of_before_comes_out_of_its_document_whole(tmp_path: Path) -> None:
    engine, config = create_engine(f"sqlite:///{tmp_path / 'hub.db'}"), configuration()
    member = {"device": "d-1", "site": "EWR", "wave": 0, "outcome": "committed", "back": "returning", "prior": "0" * 64}
    doc = {
        "id": "r-000001", "model": "m", "digest": "1" * 64, "version": "v2", "state": "ROLLING_BACK",
        "plan": {"waves": [{"rest": True}]}, "members": [member, {**member, "device": "d-2", "site": "JFK"}],
    }  # fmt: skip
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        row = "INSERT INTO rollouts (id, model, digest, state, doc) VALUES ('r-000001', 'm', '1', 'ROLLING_BACK', :doc)"
        connection.execute(text(row), {"doc": msgspec.json.encode(doc).decode()})
        line = "INSERT INTO rollout_log (rollout, data) VALUES ('r-000001', '{\"device\": \"d-1\"}')"
        connection.execute(text(line))
    engine.dispose()
    store = Store(tmp_path / "hub.db")
    kept = store.submit_read(lambda c: book.load(c, "r-000001")).result()
    logged = store.submit_read(lambda c: c.execute(select(tables.rollout_log.c.device)).scalar()).result()
    store.close()
    assert kept.rollout.state is State.ROLLING_BACK
    assert [(m.device, m.outcome, m.back) for m in kept.rollout.members.values()] == [
        ("d-1", Outcome.COMMITTED, Back.RETURNING),
        ("d-2", Outcome.COMMITTED, Back.RETURNING),
    ]
    assert logged == "d-1"


async def test_every_writer_of_what_a_rollout_looks_at_is_noticed(hub: Hub) -> None:
    await hub.enrol()
    before = await hub.store.read(changes.newest)
    await hub.store.write(lambda c: c.execute(update(tables.devices).values(last_seen="2026-05-01T00:00:00Z")) and None)
    assert (await hub.store.read(lambda c: changes.since(c, before))).devices == frozenset()
    own = tables.devices.c.id == "d-2"
    await hub.store.write(lambda c: c.execute(update(tables.devices).where(own).values(online=False)) and None)
    window = {"device": "d-3", "model": "m", "window": 1}
    await hub.store.write(lambda c: c.execute(insert(tables.windows).values(window)) and None)
    assert (await hub.store.read(lambda c: changes.since(c, before))).devices == {"d-2", "d-3"}


async def test_idle_look_writes_nothing(hub: Hub) -> None:
    await hub.enrol()
    await hub.runner.tick(hub.now)
    hub.now += timedelta(minutes=5)
    await hub.runner.tick(hub.now)
    wrote: list[Any] = []
    write, hub.store.write = hub.store.write, wrote.append  # type: ignore[assignment,method-assign]
    await hub.runner.tick(hub.now)
    hub.store.write = write  # type: ignore[method-assign]
    assert wrote == []


@pytest.fixture
async def people(hub: Hub) -> Any:
    await hub.enrol()
    ann, bob = await hub.person("ann", Role.ML_ENGINEER), await hub.person("bob", Role.APPROVER)
    async with ann, bob:
        yield ann, bob


def newest(hub: Hub, device: str) -> Any:
    topic = f"lr/1/demo/dn/{device}/desired"
    return parse_document([decode(p, SignedDesired) for t, p, _ in hub.published if t == topic][-1].document)


def obeys(device: str, generation: int, digest: str) -> Any:
    served = {"model": "delay", "version": "v1", "release": digest}
    own = tables.devices.c.id == device
    doc = {"models": [served], "generation": generation}

    def write(connection: Connection) -> None:
        connection.execute(update(tables.devices).where(own).values(doc=doc, generation=generation))

    return write


@pytest.mark.parametrize("word", ["adopt", "override"])
async def test_restored_hub_drags_no_device_back_until_a_person_says_who_is_right(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient], word: str
) -> None:
    ann, bob = people
    row = await rolled_out(hub, ann, bob)
    await hub.store.write(obeys("d-1", 9, row["release"]))
    count = len(hub.published)
    await hub.store.write(lambda c: c.execute(tables.assignments.delete()) and None)
    await hub.runner.tick(hub.now)
    assert not [t for t, _, _ in hub.published[count:] if "/d-1/" in t]
    (incident,) = [i for i in (await ann.get("/api/v1/incidents")).json() if i["kind"] == "conflict"]
    assert "device resolve EWR" in incident["sentence"]
    assert (await ann.get("/api/v1/devices/EWR/why")).json()["conflict"]
    answer = await ann.post("/api/v1/devices/EWR/resolve", json={word: True})
    assert answer.status_code == 200
    document = newest(hub, "d-1")
    assert document.generation > 9
    assert [m.release for m in document.models] == ([row["release"]] if word == "adopt" else [])
    closed = (await ann.get(f"/api/v1/incidents/{incident['id']}")).json()
    assert closed["state"] == "closed"
    assert (await ann.post("/api/v1/devices/EWR/resolve", json={word: True})).status_code == 409


async def test_why_tells_the_steps_that_led_to_a_version(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    ann, bob = people
    row = await rolled_out(hub, ann, bob)
    await hub.report("d-1", "COMMITTED", row["release"], row["id"], "It proved itself.")
    (model,) = (await ann.get("/api/v1/devices/EWR/why")).json()["models"]
    assert model["sentence"].startswith("EWR runs v1")
    assert f"rollout {row['id']} ordered" in model["sentence"]
    assert [step["cause"] for step in model["steps"]] == ["told", "ordered"]
    (waits,) = (await ann.get("/api/v1/devices/LGA/why")).json()["models"][0]["waiting"]
    assert waits == f"rollout {row['id']}, wave 2: told and not answered yet"


async def test_command_with_the_same_key_answers_the_same_after_a_restart(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    ann, bob = people
    row = await rolled_out(hub, ann, bob)
    key = {"Idempotency-Key": "k-1"}
    first = (await ann.post(f"/api/v1/rollouts/{row['id']}/next", headers=key)).json()
    kept = await hub.store.read(lambda c: book.load(c, row["id"]))
    assert kept.rollout.keys == ("next:ann:k-1",)
    again = (await ann.post(f"/api/v1/rollouts/{row['id']}/next", headers=key)).json()
    assert (first["wave"], again["wave"]) == (1, 1)
    named = (await ann.post(f"/api/v1/rollouts/{row['id']}/next", json={"wave": 2})).json()
    assert named["wave"] == 1


async def test_change_record_says_who_why_and_what_came_of_it(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    ann, bob = people
    row = await rolled_out(hub, ann, bob)
    for device in SITES:
        await hub.report(device, "COMMITTED", row["release"], row["id"])
    record = (await ann.get(f"/api/v1/rollouts/{row['id']}/record")).json()
    assert (record["who"], record["outcome"]["state"]) == ("ann", "FINISHED")
    assert [entry["actor"] for entry in record["approvals"]] == ["bob"]
    assert record["outcome"]["devices"] == {"committed": 3}


async def test_second_rollout_of_a_model_is_refused_or_waits_behind_the_first(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    ann, bob = people
    row = await rolled_out(hub, ann, bob)
    body = {"model": "delay", "version": "v1"}
    refused = await ann.post("/api/v1/rollouts", json=body)
    assert (refused.status_code, "let this one wait behind it" in refused.json()["detail"]) == (409, True)
    queued = (await ann.post("/api/v1/rollouts", json={**body, "queue": True})).json()
    await bob.post(f"/api/v1/rollouts/{queued['id']}/approve")
    shown = (await ann.get(f"/api/v1/rollouts/{queued['id']}")).json()
    assert shown["waiting"] == [f"rollout {row['id']} of the same model goes first"]


async def test_rollout_that_cannot_be_decided_holds_up_no_other(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    ann, bob = people
    other = {"digest": "e" * 64, "model": "aside", "version": "v1", "state": "approved", "manifest_bytes": 9}
    await hub.store.write(lambda c: c.execute(insert(tables.releases).values(**other, config={})) and None)
    bad = (await ann.post("/api/v1/rollouts", json={"model": "aside", "version": "v1"})).json()["id"]
    doc = (await hub.store.read(lambda c: c.execute(select(tables.rollouts.c.doc)).scalar_one())) | {
        "plan": {"jitter_s": 1e300}
    }
    await hub.store.write(lambda c: c.execute(update(tables.rollouts).values(doc=doc)) and None)
    await hub.runner.command(bad, "approve", Person("bob", Role.APPROVER), hub.now)
    row = await rolled_out(hub, ann, bob)
    await hub.report("d-1", "COMMITTED", row["release"], row["id"])
    kept = await hub.store.read(lambda c: book.load(c, row["id"]))
    assert kept.rollout.members["d-2"].outcome is Outcome.ORDERED
    (incident,) = (await ann.get("/api/v1/incidents")).json()
    assert (incident["kind"], incident["subject"]["rollout"]) == ("rollout_stuck", bad)
    hub.now += timedelta(minutes=1)
    await hub.runner.tick(hub.now)
    assert len((await ann.get("/api/v1/incidents")).json()) == 1


async def test_fleet_rollback_is_a_rollout_of_its_own(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    ann, bob = people
    first = await rolled_out(hub, ann, bob)
    for device in SITES:
        await hub.report(device, "COMMITTED", first["release"], first["id"])
    second = await rolled_out(hub, ann, bob, "worse")
    await hub.report("d-1", "ROLLED_BACK", second["release"], second["id"], "It was worse.")
    back = (await ann.get(f"/api/v1/rollouts/{second['id']}-back")).json()
    assert (back["kind"], back["of"], back["waves"][0]["total"]) == ("return", second["id"], 1)
    assert release().digest == first["release"]


async def test_device_goes_back_to_what_it_last_said_is_good_and_not_to_what_its_state_still_names(
    hub: Hub, people: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
) -> None:
    """The state follows the reports by seconds: a rollout begun right after another saw the version before."""
    ann, bob = people
    first = await rolled_out(hub, ann, bob)
    for device in SITES:
        await hub.report(device, "COMMITTED", first["release"], first["id"])
    older = {"models": [{"model": "delay", "version": "v0", "release": "0" * 64, "state": "COMMITTED"}]}
    await hub.store.write(lambda c: c.execute(update(tables.devices).values(doc={**older, "generation": 1})) and None)
    data = {"good": first["release"], "good_version": first["version"]}
    said = UpdateReport(
        model="delay", rollout=first["id"], generation=1, release=first["release"], version=first["version"],
        state="COMMITTED", previous="PROBATION", cause="probation_passed", sentence="It passed.", data=data,
    )  # fmt: skip
    fact = Fact(epoch=1, seq=1, at="2026-05-01T12:00:00Z", body=said)
    await hub.store.write(lambda c: apply_update(c, "d-1", fact))
    second = await rolled_out(hub, ann, bob, "worse")
    await hub.report("d-1", "ROLLED_BACK", second["release"], second["id"], "It was worse.")
    back = await hub.store.read(lambda c: book.load(c, f"{second['id']}-back"))
    assert back.rollout.members["d-1"].target == first["release"]
