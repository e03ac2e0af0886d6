"""The drift of a model over a fleet as the API answers it, beside reading every window it ever told, in one run.

    .venv/bin/python tests/bench/bench_drift_views.py [--devices 5000] [--windows 12]

The hub's own SQLite store, windows as the ingest keeps them: ten columns of twenty cells each. Times are CPU of this
process. ``all windows`` is what the view did before: each report is loaded with its sketches to keep the newest of a
site. Writes build/bench/drift_views.json.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landreeve.sketch.document import merge
from landreeve_hub.api import drift_views
from landreeve_hub.api.views import window_row
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import Connection, insert, select

ROOT = Path(__file__).resolve().parents[2]
MODEL, RELEASE = "delay", "1" * 64
COLUMNS = [f"column_{n}" for n in range(10)]
EDGES = [float(n) for n in range(19)]
PIECE = 10_000
BAR = 2.0


def report(draw: random.Random, number: int) -> dict[str, Any]:
    """One closed window, as a device tells it."""
    counts = [draw.randrange(500) for _ in range(20)]
    return {
        "model": MODEL, "release": RELEASE, "version": "v1", "window": number, "rows": 5_000, "verdict": "stable",
        "first": f"2026-01-{number % 28 + 1:02d}T00:00:00Z", "last": f"2026-02-{number % 28 + 1:02d}T00:00:00Z",
        "scores": {column: draw.random() / 4 for column in COLUMNS}, "thresholds": dict.fromkeys(COLUMNS, 0.2),
        "drifted": [], "sentence": "No input changed beyond its limit.",
        "sketches": {c: {"kind": "histogram", "edges": EDGES, "counts": counts, "missing": 0} for c in COLUMNS},
        "quality": {"log_loss": 0.4 + draw.random() / 10, "labelled": 4_000, "reference_log_loss": 0.44},
    }  # fmt: skip


def fill(connection: Connection, devices: int, windows: int) -> None:
    draw = random.Random(3)
    names = [f"d-{n:05d}" for n in range(devices)]
    connection.execute(insert(tables.devices), [{"id": d, "fleet": "demo", "site": f"s{d}"} for d in names])
    rows: list[dict[str, Any]] = []
    for number in range(1, windows + 1):
        for device in names:
            told = report(draw, number)
            own = {name: told[name] for name in ("model", "window", "release", "version", "first", "last", "rows")}
            rows.append({"device": device, **own, "report": told})
            if len(rows) == PIECE:
                connection.execute(insert(tables.windows), rows)
                rows.clear()
    if rows:
        connection.execute(insert(tables.windows), rows)


def all_windows(connection: Connection) -> dict[str, Any]:
    """Every report of the model with all it holds."""
    windows, devices = tables.windows, tables.devices
    query = select(windows, devices.c.site).join(devices, devices.c.id == windows.c.device)
    rows = connection.execute(query.where(windows.c.model == MODEL).order_by(windows.c.window)).all()
    newest = {row.site: row for row in rows}
    merged: dict[str, Any] = {}
    for row in newest.values():
        for column, sketch in row.report["sketches"].items():
            merged[column] = merge(merged[column], sketch) if column in merged else sketch
    listed = [{**window_row(row), "site": row.site} for row in rows]
    return {"sites": sorted(newest), "merged": {"sketches": merged}, "windows": listed}


async def timed(store: Store, work: Callable[[Connection], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    begun = time.process_time()
    found = await store.read(work)
    return time.process_time() - begun, found


async def measure(folder: Path, devices: int, windows: int) -> list[dict[str, Any]]:
    store = Store(folder / "hub.db")
    await store.write(lambda c: fill(c, devices, windows))
    before_s, before = await timed(store, all_windows)
    size = len(json.dumps(before))
    kept = {"sites": before["sites"], "merged": before["merged"]["sketches"]}
    del before
    after_s, after = await timed(store, lambda c: drift_views.drift(c, MODEL))
    store.close()
    same = kept == {"sites": after["sites"], "merged": after["merged"]["sketches"]}
    told = round(len(json.dumps(after)) / 1e6, 1)
    fleet = f"{devices} devices, {windows} windows each"
    return [
        {"what": f"all windows, {fleet}", "value": round(before_s, 2), "unit": "s CPU", "bar": None, "holds": True},
        {"what": f"the view, {fleet}", "value": round(after_s, 2), "unit": "s CPU", "bar": None, "holds": True},
        row("all windows by the view", round(before_s / after_s, 1), "ratio", BAR, before_s >= BAR * after_s),
        {"what": "answer of all windows", "value": round(size / 1e6, 1), "unit": "MB", "bar": None, "holds": True},
        {"what": "answer of the view", "value": told, "unit": "MB", "bar": None, "holds": True},
        row("the same sites and merged sketches", int(same), "yes", 1, same),
    ]


def row(what: str, value: float, unit: str, bar: float, holds: bool) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "bar": bar, "holds": holds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=5_000)
    parser.add_argument("--windows", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), asked.devices, asked.windows))
    for one in found:
        print(f"{one['what']:<48} {one['value']:>10} {one['unit']:<6} {one['bar'] or '':>5} {one['holds']}")
    out = ROOT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "drift_views.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if all(one["holds"] for one in found) else 3)


if __name__ == "__main__":
    main()
