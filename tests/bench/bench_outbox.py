"""What group commit gains the outbox, and what a fact costs on the wire. Writes build/bench/outbox.json.

Facts are made as the rooms make them: each in a write of its own, many at a time. Before: one fsync for each write
(``GROUP_LIMIT`` 1). After: the writes that wait share one. Fsyncs are counted by the commits of the writer thread.
"""

import asyncio
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.codec import encode  # noqa: E402 - needs the path above
from landreeve.wire.messages import Event, Fact, Metrics  # noqa: E402
from landreeve_agent.link.outbox import Outbox  # noqa: E402
from landreeve_agent.store import database as store  # noqa: E402

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
FACTS = 3000
RATIO_BAR = 5.0


def event(n: int) -> Event:
    return Event(name="update.transition", subject=f"model-{n}", cause="verified", sentence="It was verified.")


async def rate(root: Path, group: int, at_once: int, facts: int = FACTS) -> tuple[float, int]:
    """Facts a second, and commits, with so many writers of which each waits for its own fact to be on the disk."""
    store.GROUP_LIMIT = group
    database = store.Database(root / f"{group}-{at_once}.db")
    outbox = Outbox(database)
    commits = 0

    def committed() -> None:
        nonlocal commits
        commits += 1

    database.after_commit(committed)
    numbers = iter(range(facts))

    async def writer() -> None:
        for n in numbers:
            await database.write(lambda db, n=n: outbox.enqueue(db, event(n), NOW))  # type: ignore[misc]

    await database.write(lambda db: outbox.enqueue(db, event(0), NOW))
    began = time.perf_counter()
    await asyncio.gather(*(writer() for _ in range(at_once)))
    took = time.perf_counter() - began
    stored = (await outbox.size()).facts
    database.close()
    assert stored == facts + 1, stored
    return facts / took, commits


def row(what: str, value: float, unit: str, bar: float | None = None, *, holds: bool = True) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "bar": bar, "holds": holds}


def wire() -> list[dict[str, Any]]:
    """One minute of 50 metrics with names in each message and in columns; an hour of it plain and compressed."""
    names = [f"worker_metric_number_{n}_per_second" for n in range(50)]
    values = [round(n * 1.371, 3) for n in range(50)]
    points = [{"name": n, "value": v, "unit": "1", "at": 1.0} for n, v in zip(names, values, strict=True)]
    named = len(msgspec.json.encode(points))
    columns = len(encode(fact(Metrics(metric_set=1, rows=((1.0, *values),)))))
    hour = Metrics(metric_set=1, rows=tuple((60.0 * m, *(round(v + m % 7, 3) for v in values)) for m in range(60)))
    plain, packed = len(msgspec.json.encode(fact(hour))), len(encode(fact(hour)))
    return [
        row("50 metrics with their names", named, "bytes"),
        row("50 metrics in columns", columns, "bytes", named / 5, holds=columns <= named / 5),
        row("an hour of them, plain", plain, "bytes"),
        row("an hour of them, zstd", packed, "bytes", plain, holds=packed < plain),
    ]


def fact(body: Metrics) -> Fact:
    return Fact(epoch=1, seq=1, at="2026-11-23T06:00:00Z", body=body)


async def measure() -> list[dict[str, Any]]:
    limit = store.GROUP_LIMIT
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        for at_once in (1, 8, 64):
            before, commits_before = await rate(Path(folder), 1, at_once, FACTS // 5)
            after, commits_after = await rate(Path(folder), limit, at_once)
            assert commits_before >= FACTS // 5
            bar = RATIO_BAR if at_once == 64 else None
            gain = round(after / before, 2)
            rows += [
                row(f"{at_once} writers: a commit each", round(before), "facts/s"),
                row(f"{at_once} writers: group commit", round(after), "facts/s"),
                row(f"{at_once} writers: facts per commit", round(FACTS / commits_after, 1), "facts"),
                row(f"{at_once} writers: gain", gain, "ratio", bar, holds=bar is None or gain >= bar),
            ]
    return rows + wire()


def main() -> int:
    out = ROOT / "build" / "bench" / "outbox.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = asyncio.run(measure())
    for one in rows:
        held = "" if one["bar"] is None else f"  (bar {one['bar']:g}: {'held' if one['holds'] else 'MISSED'})"
        print(f"{one['what']:<40} {one['value']:>10,} {one['unit']}{held}")
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["holds"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
