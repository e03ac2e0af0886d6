"""Closing windows over a real store: each exactly once, by event time, with its fact."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from landreeve.release.manifest import Column
from landreeve.wire.codec import decode
from landreeve.wire.messages import DriftReport, Fact
from landreeve_agent.drift.windows import Windows
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp
from landreeve_models.baseline import Baseline
from landreeve_models.definition import Definition, DriftPolicy

# A week that begins where window 2900 begins.
START = datetime.fromtimestamp(2900 * 7 * 86_400, UTC)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
RELEASE = "ab" * 32
DEFINITION = Definition(
    name="m",
    purpose="p",
    label="y",
    columns=(Column(name="n", kind="number"),),
    drift=DriftPolicy(min_rows=50, min_labelled=50, min_excess=0.05),
)


class Box:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = Database(root / "agent.db")
        self.outbox = Outbox(self.database)
        self.windows = Windows(self.database, self.outbox, {"m": DEFINITION}, models=root / "models", clock=lambda: NOW)
        random = np.random.default_rng(0)
        p = random.uniform(0.05, 0.95, 2000)
        rows = [{"n": float(v)} for v in p]
        folder = root / "models" / "m" / RELEASE[:12]
        folder.mkdir(parents=True)
        baseline = Baseline.fit(DEFINITION, rows, p, np.arange(2000) // 250, {"log_loss": 0.5})
        (folder / "baseline.json").write_bytes(baseline.to_bytes())

    async def live(
        self, day: float, days: float, *, flip: bool = False, release: str | None = RELEASE, labels: bool = True
    ) -> None:
        """``days`` of samples from a day on, 60 a day; ``flip`` turns the relation between rows and labels round."""
        random = np.random.default_rng(int(day * 10))
        samples, truths = [], []
        for i in range(int(days * 60)):
            at = stamp(START + timedelta(days=day) + timedelta(minutes=24 * i))
            p = float(random.uniform(0.05, 0.95))
            truth = float(random.random() < (1 - p if flip else p))
            name = f"{day}-{i}"
            samples.append(
                ("m", name, at, "1", release, msgspec.json.encode({"n": p}).decode(), p if release else None, at)
            )
            truths.append(("m", name, truth, at, at))

        def put(db: Any) -> None:
            db.conn.executemany(
                'INSERT INTO samples (model, id, at, version, release, "row", p, captured) VALUES (?,?,?,?,?,?,?,?)',
                samples,
            )
            if labels:
                db.conn.executemany("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", truths)

        await self.database.write(put)

    async def reports(self) -> list[DriftReport]:
        facts = [decode(item.body, Fact).body for item in await self.outbox.pending(0, 1000)]
        return [body for body in facts if isinstance(body, DriftReport)]

    async def verdicts(self) -> list[str]:
        return [report.verdict for report in await self.reports()]


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    made = Box(tmp_path)
    yield made
    made.database.close()


async def test_window_closes_only_after_the_label_delay(box: Box) -> None:
    await box.live(0, 7.9)
    assert await box.windows.advance() == 0
    await box.live(8, 0.1)
    assert await box.windows.advance() == 1
    (report,) = await box.reports()
    assert (report.window, report.rows, report.verdict) == (2900, 420, "stable")
    assert report.first == stamp(START)
    assert report.quality["labelled"] == 420
    assert report.quality["reference_log_loss"] == 0.5


async def test_window_is_reported_once_whoever_asks_and_however_often(box: Box) -> None:
    await box.live(0, 9)
    assert await box.windows.advance() == 1
    assert await box.windows.advance() == 0
    again = Windows(box.database, box.outbox, {"m": DEFINITION}, models=box.root / "models", clock=lambda: NOW)
    assert await again.advance() == 0
    assert len(await box.reports()) == 1


async def test_quality_is_lost_only_in_the_second_window_and_is_an_event(box: Box) -> None:
    await box.live(0, 7)
    await box.live(7, 16, flip=True)
    assert await box.windows.advance() == 3
    assert await box.verdicts() == ["stable", "stable", "quality_lost"]
    events = await box.database.read(
        lambda db: db.conn.execute("SELECT name, severity, sentence FROM events").fetchall()
    )
    assert [(name, severity) for name, severity, _ in events] == [("drift.verdict", "warning")]
    assert "worse than the model believes" in events[0][2]


async def test_new_release_begins_with_a_clean_slate(box: Box) -> None:
    other = "cd" * 32
    (box.root / "models" / "m" / other[:12]).mkdir()
    data = (box.root / "models" / "m" / RELEASE[:12] / "baseline.json").read_bytes()
    (box.root / "models" / "m" / other[:12] / "baseline.json").write_bytes(data)
    await box.live(0, 7, flip=True)
    await box.live(7, 9, flip=True, release=other)
    await box.windows.advance()
    reports = await box.reports()
    assert [(r.release, r.verdict) for r in reports] == [(RELEASE, "stable"), (other, "stable")]


async def test_window_without_a_release_is_kept_but_not_reported(box: Box) -> None:
    await box.live(0, 9, release=None)
    assert await box.windows.advance() == 1
    assert await box.reports() == []
    kept = await box.database.read(lambda db: db.conn.execute("SELECT window, rows FROM windows").fetchall())
    assert kept == [(2900, 0)]


async def test_empty_weeks_are_skipped_and_end_the_row(box: Box) -> None:
    await box.live(0, 7, flip=True)
    await box.live(28, 9, flip=True)
    await box.windows.advance()
    assert [r.window for r in await box.reports()] == [2900, 2904]
    assert await box.verdicts() == ["stable", "stable"]


async def test_baseline_that_is_gone_is_said_and_does_not_stop_the_next_window(box: Box) -> None:
    await box.live(0, 7, release="ef" * 32)
    await box.live(7, 9)
    assert await box.windows.advance() == 2
    assert [r.window for r in await box.reports()] == [2901]


async def test_labels_that_never_came_leave_quality_open(box: Box) -> None:
    await box.live(0, 9, labels=False)
    await box.windows.advance()
    (report,) = await box.reports()
    assert report.quality == {"labelled": 0.0}
    assert report.verdict == "stable"


async def test_no_group_under_ten_rows_leaves_the_site(box: Box) -> None:
    await box.live(0, 9)
    await box.windows.advance()
    (report,) = await box.reports()
    cells = [count for sketch in report.sketches.values() for count in sketch["counts"]]
    assert all(count == 0 or count >= 10 for count in cells)
    assert report.sketches["n"]["withheld"] + sum(report.sketches["n"]["counts"]) == report.rows
