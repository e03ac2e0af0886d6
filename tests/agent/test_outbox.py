"""The outbox: born with its cause, complete in its numbers, bounded without losing what counts."""

import asyncio
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve.wire.codec import decode
from landreeve.wire.messages import Event, Fact, Gap, LogLines, Metrics
from landreeve.wire.topics import Up
from landreeve_agent.link.outbox import MAX_FACT_BYTES, Outbox
from landreeve_agent.store.continuity import begin_epoch
from landreeve_agent.store.database import Database
from sqlite_utils import Database as SqliteDatabase

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "agent.db")
    yield database
    database.close()


def event(name: str = "e") -> Event:
    return Event(name=name, subject="s", cause="c", sentence="It happened.")


def metrics(values: int = 50) -> Metrics:
    return Metrics(metric_set=1, rows=((1.0, *(n * 1.5 for n in range(values))),))


async def add(outbox: Outbox, *bodies: Event | Metrics) -> list[int]:
    return await outbox.database.write(lambda db: [outbox.enqueue(db, body, NOW) for body in bodies])


async def facts(outbox: Outbox) -> list[Fact]:
    return [decode(row.body, Fact) for row in await outbox.pending(0, 10_000)]


async def test_fact_exists_exactly_when_its_cause_does(database: Database) -> None:
    outbox = Outbox(database)

    def failing(db: SqliteDatabase) -> None:
        outbox.enqueue(db, event(), NOW)
        raise RuntimeError("the cause did not happen")

    with pytest.raises(RuntimeError):
        await database.write(failing)
    assert await add(outbox, event()) == [1]
    assert [fact.seq for fact in await facts(outbox)] == [1]


async def test_numbers_are_never_used_twice(database: Database) -> None:
    outbox = Outbox(database)
    await add(outbox, event(), event())
    epoch = (await facts(outbox))[0].epoch
    await outbox.acknowledge(epoch, 2, NOW)
    assert await outbox.pending(0, 10) == []
    assert await add(outbox, event()) == [3]


async def test_epoch_survives_restarts(tmp_path: Path) -> None:
    epochs = []
    for _ in range(2):
        database = Database(tmp_path / "agent.db")
        outbox = Outbox(database)
        await add(outbox, event())
        epochs.append(await outbox.epoch(NOW))
        database.close()
    assert epochs[0] == epochs[1]


async def test_acknowledgement_of_another_epoch_forgets_nothing(database: Database) -> None:
    outbox = Outbox(database)
    await add(outbox, event())
    assert (await outbox.acknowledge(12345, 99, NOW)).facts == 0
    assert len(await outbox.pending(0, 10)) == 1


async def test_pending_is_in_order_and_limited(database: Database) -> None:
    outbox = Outbox(database)
    await add(outbox, *(event(str(n)) for n in range(5)))
    assert [row.seq for row in await outbox.pending(2, 2)] == [3, 4]
    assert (await outbox.pending(0, 1))[0].channel is Up.EVENT


async def test_full_outbox_drops_oldest_metrics_and_leaves_a_gap(database: Database) -> None:
    outbox = Outbox(database, max_bytes=8_000)
    await add(outbox, event("first"))
    for _ in range(60):
        await add(outbox, metrics())
    kept = await facts(outbox)
    assert [fact.seq for fact in kept][:1] == [1]
    gaps = [fact for fact in kept if isinstance(fact.body, Gap)]
    assert len(gaps) == 1
    assert kept.index(gaps[0]) == 1
    gap = gaps[0].body
    assert (gap.first, gap.last, gap.count) == (2, gaps[0].seq, gaps[0].seq - 1)
    assert kept[-1].seq == 61
    assert (await outbox.size()).bytes <= 8_000


async def test_every_number_is_a_fact_or_in_a_gap(database: Database) -> None:
    outbox = Outbox(database, max_bytes=6_000)
    for n in range(80):
        await add(outbox, event() if n % 7 == 0 else metrics())
    seen: list[int] = []
    for fact in await facts(outbox):
        seen += range(fact.body.first, fact.body.last + 1) if isinstance(fact.body, Gap) else [fact.seq]
    assert seen == list(range(1, 81))


async def test_metrics_of_a_former_epoch_make_room_first(database: Database) -> None:
    outbox = Outbox(database, max_bytes=10_000)
    await add(outbox, event(), *(metrics() for _ in range(20)), event())
    former = await outbox.epoch(NOW)
    await database.write(lambda db: begin_epoch(db, former + 1))
    for _ in range(20):
        await add(outbox, metrics())
    seen: list[int] = []
    for fact in await facts(outbox):
        assert fact.epoch == former
        seen += range(fact.body.first, fact.body.last + 1) if isinstance(fact.body, Gap) else [fact.seq]
    assert seen == list(range(1, 23))
    assert (await outbox.size()).bytes <= 10_000
    await outbox.acknowledge(former, 22, NOW)
    kept = await facts(outbox)
    assert kept[-1].seq == 20
    assert all(isinstance(fact.body, Metrics) for fact in kept), "the present ones were dropped for former ones"


async def test_events_are_never_dropped_even_past_the_bound(database: Database) -> None:
    outbox = Outbox(database, max_bytes=1_000)
    await add(outbox, *(event(str(n)) for n in range(50)))
    assert (await outbox.size()).facts == 50
    assert (await outbox.size()).bytes > 1_000


async def test_fact_no_broker_would_carry_is_told_and_holds_up_nothing(database: Database) -> None:
    outbox = Outbox(database)
    lines = LogLines(lines=(random.Random(5).randbytes(MAX_FACT_BYTES).hex(),))  # noise: it does not get smaller
    await outbox.database.write(lambda db: outbox.enqueue(db, lines, NOW))
    await add(outbox, event("next"))
    told, following = await facts(outbox)
    assert isinstance(told.body, Event)
    assert (told.seq, told.body.name, told.body.data["type"]) == (1, "link.fact_too_big", "log")
    assert following.seq == 2


async def test_writes_that_wait_together_share_a_commit_and_fail_alone(database: Database) -> None:
    outbox = Outbox(database)
    commits: list[int] = []
    database.after_commit(lambda: commits.append(1))

    def failing(db: SqliteDatabase) -> None:
        outbox.enqueue(db, event("undone"), NOW)
        raise RuntimeError("this one only")

    def slow(db: SqliteDatabase) -> int:
        time.sleep(0.1)  # the others queue up behind it
        return outbox.enqueue(db, event("first"), NOW)

    first = asyncio.ensure_future(database.write(slow))
    await asyncio.sleep(0.02)
    good = [database.write(lambda db, n=n: outbox.enqueue(db, event(str(n)), NOW)) for n in range(40)]  # type: ignore[misc]
    answers = await asyncio.gather(*good[:20], database.write(failing), *good[20:], return_exceptions=True)
    assert await first == 1
    assert [type(answer) for answer in answers if not isinstance(answer, int)] == [RuntimeError]
    assert sorted(answer for answer in answers if isinstance(answer, int)) == list(range(2, 42))
    assert len(commits) <= 3
    assert len(await facts(outbox)) == 41


async def test_size_follows_every_change(database: Database) -> None:
    outbox = Outbox(database)
    await add(outbox, event(), metrics())
    rows = await outbox.pending(0, 10)
    assert (await outbox.size()).bytes == sum(len(row.body) for row in rows)
    await outbox.acknowledge(await outbox.epoch(NOW), 2, NOW)
    size = await outbox.size()
    assert (size.facts, size.bytes) == (0, 0)


async def test_new_fact_wakes_the_session_once_it_is_on_the_disk(database: Database) -> None:
    outbox = Outbox(database)
    outbox.bind(asyncio.get_running_loop())
    await database.write(lambda db: db.conn.execute("INSERT INTO meta VALUES ('k', 'v')"))
    assert not outbox.wake.is_set()
    await add(outbox, event())
    async with asyncio.timeout(5):
        await outbox.wake.wait()


async def test_box_set_back_to_an_older_copy_begins_a_new_incarnation(database: Database) -> None:
    outbox = Outbox(database)
    await add(outbox, event("a"), event("b"), event("c"))
    epoch = await outbox.epoch(NOW)
    await outbox.acknowledge(epoch, 1, NOW)
    answer = await outbox.acknowledge(epoch, 40, NOW)  # the hub knows 40 facts; this copy made 3
    assert (answer.facts, answer.renumbered) == (0, True)
    waiting = await facts(outbox)
    assert [(fact.seq, fact.body.name) for fact in waiting if isinstance(fact.body, Event)] == [(1, "b"), (2, "c")]
    assert {fact.epoch for fact in waiting} == {await outbox.epoch(NOW)}
    assert await outbox.epoch(NOW) > epoch
    assert await add(outbox, event("d")) == [3]
    size = await outbox.size()
    assert size.facts == 3
