"""A hub and a site witness each other's audit log: real stores on both sides, messages handed over as they travel."""

import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve.audit import export, keys, note
from landreeve.audit.verify import Known, verify
from landreeve.wire.codec import decode
from landreeve.wire.messages import Audit, AuditHead, Body, Cosigned, Event, Fact, Witness
from landreeve_agent.audit.log import SiteLog
from landreeve_agent.audit.shelf import SiteShelf
from landreeve_agent.audit.witness import Mutual
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.audit.shelf import HubShelf
from landreeve_hub.audit.witnesses import Witnesses
from landreeve_hub.incidents import incidents
from landreeve_hub.incidents.incidents import Incidents, IncidentWatch
from landreeve_hub.ingest.appliers import Applier, standard_appliers
from landreeve_hub.ingest.commit import Arrival, commit_batch
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import Connection, insert

START = datetime(2026, 11, 23, 6, tzinfo=UTC)


class Pair:
    """A hub, a site, and the messenger between them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = START
        self.down: list[Witness] = []
        self.open_hub()
        self.open_site()

    def clock(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def open_hub(self) -> None:
        self.store = Store(self.root / "hub" / "hub.db") if (self.root / "hub").exists() else self._new_hub()
        self.audit = AuditLog(self.store, self.root / "hub" / "keys", "landreeve-hub/demo")
        self.witnesses = Witnesses(
            self.store, self.audit, Incidents(), "demo",
            lambda _topic, payload, _retain: self.down.append(decode(payload, Witness)), clock=self.clock,
        )  # fmt: skip
        watch = IncidentWatch(Incidents(), self.clock)

        found: dict[type[Body], Applier] = standard_appliers(lambda *_: None)
        keep_event = found[Event]

        def event(connection: Connection, device: str, fact: Fact) -> None:
            keep_event(connection, device, fact)
            watch.apply(connection, device, fact)

        found[Event] = event
        self.appliers = {**found, AuditHead: self.witnesses.apply_head, Cosigned: self.witnesses.apply_line}

    def _new_hub(self) -> Store:
        (self.root / "hub").mkdir()
        store = Store(self.root / "hub" / "hub.db")
        row = {"id": "d-1", "fleet": "demo", "site": "Shop", "state": "active"}
        store.submit(lambda c: c.execute(insert(tables.devices).values(row))).result()
        return store

    def open_site(self) -> None:
        (self.root / "site").mkdir(exist_ok=True)
        self.database = Database(self.root / "site" / "agent.db")
        self.outbox = Outbox(self.database)
        self.log = SiteLog(self.database, self.outbox, self.root / "site" / "keys", self.clock)
        self.mutual = Mutual(self.log, self.outbox, self.clock)

    async def act(self, what: str) -> None:
        body = Audit(actor="console", action=what, object="m", decision="allowed")
        await self.database.write(lambda db: self.outbox.enqueue(db, body, self.now))

    async def hub_act(self, what: str) -> None:
        await self.audit.record(self.clock(), Act("ann", what, "r-1"))

    async def exchange(self) -> None:
        """Both seal; the site asks; whatever follows travels until nothing does."""
        await self.audit.checkpoint(self.clock())
        await self.mutual.tell()
        for _ in range(4):  # a hub that was put back acknowledges nothing of what it has forgotten
            waiting = await self.outbox.pending(0, 1000)
            arrivals = [Arrival("d-1", one.body) for one in waiting]
            outcome = await self.store.write(
                lambda c, a=arrivals: commit_batch(c, a, (), self.appliers, self.clock())  # type: ignore[misc]
            )
            for _, ack in outcome.acks:
                await self.outbox.acknowledge(ack.epoch, ack.seq, self.clock())
            for device, fact in outcome.accepted:
                if isinstance(fact.body, AuditHead):
                    self.witnesses.answer(device, fact.body).result()
            while self.down:
                await self.mutual.on_witness(self.down.pop(0))

    async def incidents(self) -> list[dict[str, Any]]:
        return await self.store.read(incidents.listed)

    def close(self) -> None:
        self.store.close()
        self.database.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


async def busy(pair: Pair, rounds: int) -> None:
    for number in range(rounds):
        await pair.act(f"site-{number}")
        await pair.hub_act(f"hub-{number}")
        await pair.exchange()


async def test_each_log_carries_the_others_signature_and_verifies_offline(pair: Pair, tmp_path: Path) -> None:
    await busy(pair, 3)
    site, hub = await pair.mutual.standing(), await pair.witnesses.standing()
    assert (site.entries, site.sealed, site.witnessed, site.hub_seen) == (3, 3, 3, 3)
    assert (hub["sealed"], hub["witnesses"], hub["sites"][0]["seen"]) == (3, 1, 3)
    assert await pair.incidents() == []
    hub_export, site_export = tmp_path / "hub.export", tmp_path / "site.export"
    hub_key, site_key = pair.audit.keys.key, pair.log.keys.key
    await pair.store.read(lambda c: export.write(HubShelf(c), hub_key, "now", export.Folder(hub_export)))
    await pair.database.read(lambda t: export.write(SiteShelf(t), site_key, "now", export.Folder(site_export)))
    for path, key in ((hub_export, hub_key), (site_export, site_key)):
        report = verify(path, Known(key))
        assert (report.whole, report.witnessed, len(report.witnesses)) == (True, 3, 1)


async def test_hub_put_back_to_an_older_backup_is_refused_and_raised_with_both_notes(
    pair: Pair, tmp_path: Path
) -> None:
    await busy(pair, 2)
    pair.store.close()
    shutil.copytree(tmp_path / "hub", tmp_path / "backup")
    pair.open_hub()
    await busy(pair, 2)
    pair.store.close()
    shutil.rmtree(tmp_path / "hub")
    shutil.copytree(tmp_path / "backup", tmp_path / "hub")  # keys and all: the hub itself cannot know
    pair.open_hub()
    assert (await pair.audit.verify()).__class__.__name__ == "Verified"
    await pair.exchange()
    assert (await pair.mutual.standing()).hub_refused == "shrunk"
    (incident,) = [one for one in await pair.incidents() if one["subject"].get("offered")]
    assert (incident["kind"], incident["cause"]) == ("audit_log_refused", "shrunk")
    for name, size in (("seen", 4), ("offered", 2)):
        evidence = note.parse_note(incident["subject"][name])
        assert note.signed_by(evidence, pair.audit.keys.key)
        assert note.parse_checkpoint(evidence.text).size == size
    assert "not the one this box has seen" in pair.mutual.doubts()[0]
    await pair.mutual.trust("admin")  # the operator says that it was a restore
    await pair.hub_act("again")
    await pair.exchange()
    assert pair.mutual.doubts() == ()
    assert (await pair.witnesses.standing())["witnesses"] == 1


async def test_hub_that_rewrote_its_history_is_refused_as_forked(pair: Pair, tmp_path: Path) -> None:
    """It holds its own keys, so chain, tree and signature are all made anew and verify."""
    await busy(pair, 2)
    pair.store.close()
    keys = tmp_path / "keys"
    shutil.copytree(tmp_path / "hub" / "keys", keys)
    shutil.rmtree(tmp_path / "hub")
    (keys / "audit.checkpoint").unlink()
    pair.open_hub()
    shutil.rmtree(tmp_path / "hub" / "keys")
    shutil.copytree(keys, tmp_path / "hub" / "keys")
    pair.open_hub()
    for number in range(5):
        await pair.hub_act(f"other-{number}")
    await pair.exchange()
    assert (await pair.mutual.standing()).hub_refused == "forked"
    assert [one["cause"] for one in await pair.incidents()].count("forked") == 1


async def test_hub_under_another_key_is_refused(pair: Pair, tmp_path: Path) -> None:
    await busy(pair, 1)
    (tmp_path / "hub" / "keys" / "audit.pem").unlink()
    (tmp_path / "hub" / "keys" / "audit.checkpoint").unlink()
    await pair.store.write(lambda c: c.exec_driver_sql("DELETE FROM audit_checkpoints"))
    pair.store.close()
    pair.open_hub()
    await pair.hub_act("as if nothing were")
    await pair.exchange()
    assert (await pair.mutual.standing()).hub_refused == "swapped_key"


@pytest.mark.parametrize("more", [0, 6], ids=["shrunk", "forked"])
async def test_site_put_back_to_an_older_copy_is_refused_by_the_hub(pair: Pair, tmp_path: Path, more: int) -> None:
    await busy(pair, 2)
    pair.database.close()
    shutil.copytree(tmp_path / "site", tmp_path / "copy")
    pair.open_site()
    await busy(pair, 2)
    pair.database.close()
    shutil.rmtree(tmp_path / "site")
    shutil.copytree(tmp_path / "copy", tmp_path / "site")
    pair.open_site()
    for number in range(more):
        await pair.act(f"after-{number}")
    for _ in range(3):  # the outbox first learns that the hub knows a later life, and numbers anew
        await pair.exchange()
    cause = "forked" if more else "shrunk"
    (incident,) = await pair.incidents()
    assert (incident["kind"], incident["cause"], incident["subject"]["device"]) == ("audit_log_refused", cause, "d-1")
    assert note.signed_by(note.parse_note(incident["subject"]["offered"]), pair.log.keys.key)
    assert "does not recognise" in pair.mutual.doubts()[0]


async def test_answers_that_are_lost_or_come_twice_cost_nothing(pair: Pair) -> None:
    await busy(pair, 1)
    await pair.act("more")
    await pair.mutual.tell()
    waiting = await pair.outbox.pending(0, 100)
    for _ in range(2):  # delivered, acknowledged, the answer lost; then all of it again
        await pair.store.write(
            lambda c: commit_batch(c, [Arrival("d-1", one.body) for one in waiting], (), pair.appliers, pair.clock())
        )
    heads = [decode(one.body, Fact).body for one in waiting]
    head = [body for body in heads if isinstance(body, AuditHead)][-1]
    await pair.exchange()
    assert (await pair.mutual.standing()).witnessed == 2
    pair.witnesses.answer("d-1", head).result()
    await pair.mutual.on_witness(pair.down.pop())
    assert (await pair.mutual.standing()).witnessed == 2
    assert await pair.incidents() == []


async def test_a_device_cannot_cosign_in_the_name_of_another(pair: Pair, tmp_path: Path) -> None:
    await busy(pair, 1)
    other = keys.load(tmp_path / "other", "landreeve-site/ffffffff")
    whole = await pair.store.read(lambda c: HubShelf(c).newest())
    text = note.parse_note(whole).text
    line = note.cosign(text, other.origin, other.witness, 1_700_000_000).line()
    body = Cosigned(size=1, key=other.witness_key.text(), line=line)
    await pair.database.write(lambda db: pair.outbox.enqueue(db, body, pair.now))
    await pair.exchange()
    assert (await pair.witnesses.standing())["witnesses"] == 1
    rejected = await pair.store.read(lambda c: c.exec_driver_sql("SELECT reason FROM rejections").scalars().all())
    assert any("is not that of this device's log" in reason for reason in rejected)
