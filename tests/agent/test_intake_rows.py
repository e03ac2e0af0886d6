"""Samples and labels from applications: a clear refusal naming the field, nothing lost, repeats harmless."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve.release.manifest import Column
from landreeve_agent.intake.definitions import Definitions
from landreeve_agent.intake.intake import Accepted, Intake, Refused, UnknownModel
from landreeve_agent.intake.retention import Retention
from landreeve_agent.intake.rows import Label, Sample
from landreeve_agent.store.database import Database
from landreeve_agent.store.watermark import watermark
from landreeve_models.definition import Definition

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DEFINITION = Definition(
    name="m",
    purpose="a test",
    label="late",
    columns=(Column(name="x", kind="number", low=0), Column(name="c", kind="category", required=False)),
)


@pytest.fixture
def database(tmp_path: Path):
    database = Database(tmp_path / "agent.db")
    yield database
    database.close()


@pytest.fixture
def intake(database: Database) -> Intake:
    return Intake(database, {"m": DEFINITION})


def sample(name: str = "a", at: str = "2026-02-01T00:00:00Z", **row: Any) -> Sample:
    return Sample(id=name, at=at, row=row or {"x": 1.0})


async def count(database: Database, table: str) -> int:
    return await database.read(lambda tables: tables[table].count)


async def test_known_ids_are_repeats_and_the_first_stays(intake: Intake, database: Database) -> None:
    assert await intake.samples("m", [sample("a", x=1), sample("b")], NOW) == Accepted(2, 0)
    assert await intake.samples("m", [sample("a", x=2), sample("c"), sample("c")], NOW) == Accepted(1, 2)
    assert await count(database, "samples") == 3
    row = await database.read(lambda t: t.conn.execute("SELECT row FROM samples WHERE id = 'a'").fetchone()[0])
    assert row == '{"x":1}'


@pytest.mark.parametrize(
    ("bad", "where", "words"),
    [
        (sample(x=-1), "row.x", "below the lowest"),
        (sample(x="1"), "row.x", "expected a number"),
        (sample(x=1, y=2), "row.y", "not a column"),
        (sample(c="k"), "row.x", "required"),
        (sample(at="2026-02-01T00:00:00"), "at", "time zone"),
        (sample(at="yesterday"), "at", "RFC 3339"),
        (sample(at="2027-01-01T00:00:00Z"), "at", "ahead"),
        (sample(name=""), "id", "1 to 128"),
    ],
)
async def test_one_bad_row_refuses_the_request_by_index_and_field(
    intake: Intake, database: Database, bad: Sample, where: str, words: str
) -> None:
    answer = await intake.samples("m", [sample("good"), bad], NOW)
    assert isinstance(answer, Refused)
    assert [(fault.index, fault.field) for fault in answer.faults] == [(1, where)]
    assert words in answer.faults[0].reason
    assert await count(database, "samples") == 0


async def test_a_label_is_zero_or_one_and_may_come_before_its_sample(intake: Intake, database: Database) -> None:
    at = "2026-02-01T00:00:00Z"
    assert await intake.labels("m", [Label(id="a", label=1, at=at)], NOW) == Accepted(1, 0)
    assert await intake.labels("m", [Label(id="a", label=0, at=at)], NOW) == Accepted(0, 1)
    refused = await intake.labels("m", [Label(id="b", label=0.5, at=at)], NOW)
    assert isinstance(refused, Refused)
    assert str(refused.faults[0]).startswith("[0].label: a label is 0 or 1")
    assert await count(database, "labels") == 1


async def test_unknown_model_names_the_known_ones(intake: Intake) -> None:
    assert await intake.samples("other", [sample()], NOW) == UnknownModel(("m",))


async def test_times_of_any_offset_are_ordered_as_moments(intake: Intake, database: Database) -> None:
    await intake.samples("m", [sample("b", at="2026-02-01T01:00:00+03:00"), sample("a", at="2026-01-31T23:00Z")], NOW)
    ids = await database.read(lambda t: t.conn.execute("SELECT id FROM samples ORDER BY at").fetchall())
    assert ids == [("b",), ("a",)]


async def test_retention_measures_age_from_the_newest_samples(intake: Intake, database: Database) -> None:
    year = datetime(2013, 1, 1, tzinfo=UTC)
    days = [year + timedelta(days=n) for n in range(15)]
    await intake.samples("m", [sample(str(n), at=day.isoformat()) for n, day in enumerate(days)], NOW)
    await intake.labels("m", [Label(id="0", label=1, at=days[0].isoformat())], NOW)
    assert await Retention(database, keep_days=0).run(NOW) == 0
    assert await Retention(database, keep_days=4).run(NOW) == 6
    assert await count(database, "samples") == 10
    assert await count(database, "labels") == 0


async def test_a_clock_in_2090_forgets_nothing_of_what_the_box_has(intake: Intake, database: Database) -> None:
    days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(60)]
    await intake.samples("m", [sample(str(n), at=day.isoformat()) for n, day in enumerate(days)], days[-1])
    uptime = [0.0]
    keep = Retention(database, keep_days=90, monotonic=lambda: uptime[0])
    assert await keep.run(days[-1]) == 0
    far = datetime(2090, 1, 1, tzinfo=UTC)
    for hour in range(1, 11):
        rows = [sample(f"far-{hour}-{n}", at=(far + timedelta(hours=hour)).isoformat()) for n in range(9)]
        await intake.samples("m", rows, far + timedelta(hours=hour))
        uptime[0] += 3600.0
        assert await keep.run(far + timedelta(hours=hour)) == 0
    assert await count(database, "samples") == 60 + 90
    again = Retention(database, keep_days=90, monotonic=lambda: uptime[0])  # nor after a restart of the agent
    assert await again.run(far) == 0
    assert await Retention(database, keep_days=30).run(days[-1]) == 24  # set right, and the setting counts at once


async def test_retention_keeps_up_with_a_box_that_was_away(intake: Intake, database: Database) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    await intake.samples("m", [sample(f"old-{n}", at=start.isoformat()) for n in range(9)], start)
    uptime = [0.0]
    keep = Retention(database, keep_days=20, monotonic=lambda: uptime[0])
    assert await keep.run(start) == 0
    later = start + timedelta(days=60)  # off for two months
    await intake.samples("m", [sample(f"new-{n}", at=later.isoformat()) for n in range(9)], later)
    gone = []
    for _ in range(24):  # a day
        uptime[0] += 3600.0
        gone.append(await keep.run(later))
    assert sum(gone) == 9


async def test_stray_sample_of_today_in_a_replay_of_last_year_deletes_nothing(
    intake: Intake, database: Database
) -> None:
    year = datetime(2013, 1, 1, tzinfo=UTC)
    await intake.samples("m", [sample(str(n), at=(year + timedelta(hours=n)).isoformat()) for n in range(15)], NOW)
    await intake.samples("m", [sample("stray", at=NOW.isoformat())], NOW)
    assert await database.read(lambda db: watermark(db, "m")) == "2013-01-01T10:00:00.000000Z"
    assert await Retention(database, keep_days=4).run(NOW) == 0


def test_damaged_definition_is_named_and_hides_no_other(tmp_path: Path) -> None:
    definitions = Definitions(tmp_path)
    definitions.put(DEFINITION)
    (tmp_path / "bad.json").write_text('{"name": "bad"')
    assert list(definitions) == ["m"]
    assert "bad" in definitions.problems
    assert definitions.get("../m") is None
    (tmp_path / "m.json").unlink()
    assert "m" not in definitions
