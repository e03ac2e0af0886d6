"""The hub's store on a real PostgreSQL of its own; `make test-postgres` runs all of the hub's tests there."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from landreeve.wire.codec import encode
from landreeve.wire.messages import Ack, Event, Fact, Gap, LogLines
from landreeve_hub.access.roles import Role
from landreeve_hub.audit.entry import Act, Verified
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import Arrival, Outcome, commit_batch
from landreeve_hub.rollout import book
from landreeve_hub.rollout.roster import Outcome as Ended
from landreeve_hub.rollout.state import State
from landreeve_hub.store import changes, tables
from landreeve_hub.store.database import PASSING, Store
from landreeve_hub.store.migrate import configuration
from landreeve_hub.store.upsert import upsert
from sqlalchemy import Connection, create_engine, func, select, text

from tests import postgres
from tests.hub.hub_without_broker import SITES, Hub, rolled_out

pytestmark = pytest.mark.skipif(bool(postgres.skip_reason()), reason=postgres.skip_reason())
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
EPOCH = 7


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture
def url(server: postgres.Server, request: pytest.FixtureRequest) -> str:
    return server.url(f"t{abs(hash(request.node.name)):x}"[:40])


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def test_old_tables_migrate_with_what_they_hold_and_become_exactly_ours(url: str) -> None:
    engine, config = create_engine(url), configuration()
    member = {"device": "d-1", "site": "EWR", "wave": 0, "outcome": "committed"}
    doc = {"id": "r-000001", "model": "m", "digest": "1" * 64, "version": "v2", "state": "FINISHED", "plan": {}}
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        row = "INSERT INTO rollouts (id, model, digest, state, doc) VALUES ('r-000001', 'm', '1', 'FINISHED', :doc)"
        connection.execute(text(row), {"doc": msgspec.json.encode({**doc, "members": [member]}).decode()})
    engine.dispose()
    store = Store(url)
    kept = store.submit_read(lambda c: book.load(c, "r-000001")).result()
    differs = store.submit_read(
        lambda c: list(compare_metadata(MigrationContext.configure(c), tables.metadata))
    ).result()
    store.close()
    assert kept.rollout.members["d-1"].outcome is Ended.COMMITTED
    assert differs == []


async def test_facts_twice_early_with_gaps_and_unstorable_count_once_each(store: Store) -> None:
    await store.write(lambda c: upsert(c, tables.devices, {"id": "d-1", "fleet": "f", "site": "s"}))
    appliers = standard_appliers(audit=lambda _c, _d, _f: None)

    async def take(*facts: Fact) -> Outcome:
        arrivals = [Arrival("d-1", encode(fact), is_state=False, retained=False) for fact in facts]
        return await store.write(lambda c: commit_batch(c, arrivals, [], appliers, NOW))

    assert (await take(_fact(1), _fact(1), _fact(3))).acks == [("d-1", Ack(epoch=EPOCH, seq=1))]
    hostile = LogLines(lines=("before\0after",))  # PostgreSQL keeps no NUL in a text
    assert (await take(_fact(2, hostile))).acks == [("d-1", Ack(epoch=EPOCH, seq=3))]
    gap = Gap(first=4, last=6, count=3)
    assert (await take(_fact(6, gap), _fact(6, gap), _fact(2))).acks[-1] == ("d-1", Ack(epoch=EPOCH, seq=6))
    events = await store.read(lambda c: c.execute(select(func.count()).select_from(tables.events)).scalar())
    assert events == 2


def _fact(seq: int, body: Any = None) -> Fact:
    event = Event(name=f"n{seq}", subject="s", cause="c", sentence="It happened.")
    return Fact(epoch=EPOCH, seq=seq, at="2026-05-01T11:59:00Z", body=body or event)


async def test_two_hubs_append_to_one_audit_log_at_once_and_it_verifies(url: str, tmp_path: Path) -> None:
    stores = [Store(url), Store(url)]
    logs = [AuditLog(store, tmp_path / "keys") for store in stores]
    acts = [(logs[n % 2], Act("ann", "rollout.pause", f"r-{n}")) for n in range(60)]
    await asyncio.gather(*(log.record(NOW, act) for log, act in acts))
    answer = await logs[0].verify()
    assert isinstance(answer, Verified), answer
    assert answer.entries == 60
    for store in stores:
        store.close()


async def test_rollout_runs_to_its_end_and_looks_only_at_what_changed(url: str, tmp_path: Path) -> None:
    hub = Hub(tmp_path, url)
    await hub.enrol()
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        row = await rolled_out(hub, ann, bob)
        for device in SITES:
            await hub.report(device, "COMMITTED", row["release"], row["id"])
        number = await hub.store.read(changes.newest)
        await hub.report("d-2", "COMMITTED", row["release"], row["id"])
        assert (await hub.store.read(lambda c: changes.since(c, number))).devices == {"d-2"}
    kept = await hub.store.read(lambda c: book.load(c, row["id"]))
    hub.store.close()
    assert kept.rollout.state is State.FINISHED


async def test_store_goes_on_after_the_server_dropped_its_connections(store: Store, server: postgres.Server) -> None:
    await store.read(changes.newest)
    server.disconnect()
    with pytest.raises(PASSING):
        await store.write(_count)
    assert await store.write(_count) == await store.read(_count) == 0


def _count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tables.devices)).scalar_one()
