"""Evidence of a probation, read from a real store."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update.directing import Role
from landreeve_agent.update.evidence import Evidence
from landreeve_agent.update.probation import ProbationStats, log_loss

START = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
NOW = START + timedelta(hours=1)
NEW, OLD = "b" * 64, "a" * 64


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "agent.db")
    yield database
    database.close()


async def add(database: Database, number: int, **changes: Any) -> None:
    """A sample answered a number of seconds after the start; with a label when one is given."""
    row = {
        "model": "demo",
        "id": f"s{number}",
        "at": stamp(START),
        "version": "2",
        "release": NEW,
        "row": "{}",
        "p": 0.3,
        "shadow": 0.4,
        "shadow_release": OLD,
        "us": 1000,
        "captured": stamp(START + timedelta(seconds=number)),
    } | changes
    label = row.pop("label", None)

    def write(db: Any) -> None:
        db["samples"].insert(row)
        if label is not None:
            given = {"model": "demo", "id": row["id"], "label": label, "at": stamp(NOW), "received": stamp(NOW)}
            db["labels"].insert(given)

    await database.write(write)


async def look(database: Database, good: str | None = OLD) -> ProbationStats:
    return await Evidence(database)("demo", NEW, stamp(START), good=good, claimed_loss=0.5, now=NOW)


async def test_new_version_is_compared_on_the_rows_both_answered(database: Database) -> None:
    await add(database, 1, label=1.0, p=0.2, shadow=0.6)
    await add(database, 2, label=0.0, p=0.1, shadow=0.3)
    await add(database, 3, label=1.0, p=0.9, shadow=None, shadow_release=None)
    await add(database, 4)
    stats = await look(database)
    expected = [log_loss(0.2, 1) - log_loss(0.6, 1), log_loss(0.1, 0) - log_loss(0.3, 0)]
    assert (stats.rows, stats.difference.n, stats.loss.n) == (4, 2, 3)
    assert stats.difference.mean == pytest.approx(sum(expected) / 2)
    assert (stats.reference, stats.elapsed_s) == ("last_good", 3600.0)


async def test_only_the_candidate_since_its_activation_counts(database: Database) -> None:
    await add(database, 1)
    await add(database, 2, release=OLD)
    await add(database, -5)
    await add(database, 3, model="other")
    assert (await look(database)).rows == 1


async def test_shadow_of_another_version_is_no_reference(database: Database) -> None:
    await add(database, 1, label=1.0, shadow_release="c" * 64)
    assert (await look(database)).difference.n == 0


async def test_errors_and_invalid_answers_are_told_apart(database: Database) -> None:
    await add(database, 1, p=None, err="run failed")
    await add(database, 2, p=None)
    await add(database, 3, p=1.5)
    await add(database, 4, p=0.5)
    stats = await look(database)
    assert (stats.errors, stats.rows, stats.invalid, stats.distinct) == (1, 3, 2, 1)


async def test_first_model_is_compared_with_the_base_rate(database: Database) -> None:
    for number in range(10):
        await add(database, number, p=0.9 if number < 3 else 0.05, label=1.0 if number < 3 else 0.0, shadow=None)
    stats = await look(database, good=None)
    assert (stats.reference, stats.difference.n) == ("base_rate", 10)
    assert stats.difference.mean < -0.4


async def test_latency_is_compared_with_the_time_before(database: Database) -> None:
    await asyncio.gather(*(add(database, -n, release=OLD, us=1000) for n in range(1, 61)))
    await asyncio.gather(*(add(database, n, us=4000) for n in range(1, 61)))
    stats = await look(database)
    assert (stats.p95_ms, stats.p95_ratio) == (4.0, 4.0)


async def test_few_rows_say_nothing_about_latency(database: Database) -> None:
    await add(database, 1)
    stats = await look(database)
    assert (stats.p95_ms, stats.p95_ratio) == (None, None)


async def roles(database: Database, role: Role) -> ProbationStats:
    return await Evidence(database)("demo", NEW, stamp(START), good=OLD, claimed_loss=None, now=NOW, role=role)


async def test_version_that_only_listens_is_judged_by_what_it_would_have_answered(database: Database) -> None:
    heard = {"release": OLD, "version": "1", "shadow_release": NEW}
    await add(database, 1, **heard, p=0.6, shadow=0.2, label=1.0)
    await add(database, 2, **heard, p=0.3, shadow=0.1, label=0.0)
    await add(database, 3, **heard, p=0.3, shadow=None)
    await add(database, 4, release=OLD, version="1", shadow=None, shadow_release=None)
    stats = await roles(database, Role.LISTENS)
    assert (stats.rows, stats.errors, stats.compared) == (2, 1, 2)
    expected = [log_loss(0.2, 1) - log_loss(0.6, 1), log_loss(0.1, 0) - log_loss(0.3, 0)]
    assert stats.difference.mean == pytest.approx(sum(expected) / 2)
    assert await Evidence(database).rows_since("demo", NEW, stamp(START), Role.LISTENS) == 3


async def test_versions_that_share_the_traffic_are_compared_on_as_many_rows_of_each(database: Database) -> None:
    for number, (p, label) in enumerate(((0.9, 1.0), (0.2, 0.0)), start=1):
        await add(database, number, p=p, label=label, shadow=None, shadow_release=None)
    for number, (p, label) in enumerate(((0.5, 1.0), (0.4, 0.0), (0.1, 0.0)), start=11):
        await add(database, number, release=OLD, version="1", p=p, label=label, shadow=None, shadow_release=None)
    stats = await roles(database, Role.SHARES)
    assert (stats.rows, stats.compared, stats.difference.n) == (2, 2, 2)
    expected = [log_loss(0.9, 1) - log_loss(0.5, 1), log_loss(0.2, 0) - log_loss(0.4, 0)]
    assert stats.difference.mean == pytest.approx(sum(expected) / 2)


async def test_version_that_stands_by_has_shown_nothing(database: Database) -> None:
    await add(database, 1, label=1.0)
    assert await roles(database, Role.STANDS_BY) == ProbationStats(elapsed_s=3600)


async def test_answers_that_moved_and_lost_confidence_are_seen_on_the_same_rows(database: Database) -> None:
    for number in range(10):
        await add(database, number, p=0.5, shadow=0.1)
    stats = await look(database)
    assert (stats.shift, stats.compared) == (1.0, 10)
    assert stats.confidence.mean == pytest.approx(-0.8, abs=0.006)


async def test_listening_counts_only_what_the_last_good_version_answered_in_this_stage(database: Database) -> None:
    heard = {"release": OLD, "version": "1", "shadow_release": NEW}
    await add(database, 1, **heard, p=0.6, shadow=0.2)
    await add(database, 2, **heard, p=None, err="run failed", shadow=None)
    await add(database, -5, **heard, p=0.6, shadow=0.2)
    stats = await roles(database, Role.LISTENS)
    assert (stats.rows, stats.errors) == (1, 0), "where both failed, the new one is no worse"


async def test_only_answers_from_before_tell_how_long_the_last_good_version_took(database: Database) -> None:
    await asyncio.gather(*(add(database, -n, release=OLD, us=1000) for n in range(1, 61)))
    await asyncio.gather(*(add(database, -n, release=OLD, us=90_000, p=None, err="late") for n in range(101, 161)))
    await asyncio.gather(*(add(database, n, us=2000) for n in range(1, 61)))
    await asyncio.gather(*(add(database, n, us=90_000, p=None, err="late") for n in range(101, 161)))
    await asyncio.gather(*(add(database, n, release=OLD, us=50_000) for n in range(201, 261)))
    stats = await look(database)
    assert (stats.p95_ms, stats.p95_ratio) == (2.0, 2.0)


async def test_versions_that_share_are_timed_side_by_side(database: Database) -> None:
    await asyncio.gather(*(add(database, n, us=3000) for n in range(1, 61)))
    await asyncio.gather(*(add(database, n, release=OLD, us=1000) for n in range(101, 161)))
    await asyncio.gather(*(add(database, n, release=OLD, us=90_000, p=None, err="late") for n in range(201, 261)))
    assert (await roles(database, Role.SHARES)).p95_ratio == 3.0


async def test_claim_and_the_number_of_answers_before_are_part_of_the_evidence(database: Database) -> None:
    for number, shadow in enumerate((0.4, 0.4, 0.5)):
        await add(database, number, shadow=shadow)
    stats = await look(database)
    assert (stats.distinct, stats.distinct_before, stats.claimed_loss) == (1, 2, 0.5)
