"""The closing table: each site's year with the first model left alone, and with the loop."""

import csv
import json
from calendar import month_abbr
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import replay
from chapters import delivery
from landreeve_models.evaluate import auc, log_loss
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.inference import predict_graph
from loop import ENGINEER
from world import CATALOG, MODEL, SITES, World, say


@dataclass(frozen=True)
class Month:
    month: int
    rows: int
    alone_log_loss: float
    loop_log_loss: float
    alone_auc: float
    loop_auc: float


def first_release(world: World) -> Path:
    """The folder of the very first release, pulled from the hub."""
    folder = world.options.home / "first"
    if not (folder / "model.onnx").exists():
        world.hub("model", "pull", f"{MODEL}@{world.memory.get('first')['version']}", str(folder), by=ENGINEER)
    return folder


def answered(log: Path) -> Iterator[dict[str, str]]:
    """The application's own record of what it was answered."""
    with log.open(newline="") as lines:
        yield from csv.DictReader(lines)


def months(world: World, site: str, folder: Path) -> list[Month]:
    """Per month: the first model left alone against what the site was really answered, on the same rows."""
    log = [r for r in answered(world.options.home / "applications" / f"{site}.csv") if r["probability"] and r["label"]]
    stored = {s["id"]: s["row"] for s in world_rows(world, site)}
    log = [r for r in log if r["id"] in stored]
    pipeline = Pipeline.from_bytes((folder / "features.json").read_bytes())
    x = pipeline.encode([stored[r["id"]] for r in log])
    alone = predict_graph((folder / "model.onnx").read_bytes(), x)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(log):
        groups[datetime.fromisoformat(row["at"]).month].append(index)
    return [_month(m, np.array(i), log, alone) for m, i in sorted(groups.items()) if len(i) >= 50]


def _month(month: int, index: Any, log: list[dict[str, str]], alone: Any) -> Month:
    label = np.array([float(log[i]["label"]) for i in index])
    loop = np.array([float(log[i]["probability"]) for i in index])
    return Month(
        month,
        len(index),
        log_loss(alone[index], label),
        log_loss(loop, label),
        auc(alone[index], label),
        auc(loop, label),
    )


def world_rows(world: World, site: str) -> Iterator[dict[str, Any]]:
    """The departures as the application sent them, made again by the application's own code."""
    for departure in replay.read_departures(site, CATALOG / "data" / f"{site}.csv.gz", world.options.every):
        yield {"id": departure.id, "row": departure.row}


def show(world: World) -> dict[str, Any]:
    """Print the table; everything in it as data."""
    folder = first_release(world)
    books = {b["site"]: b for b in delivery(world)}
    report: dict[str, Any] = {"sites": {}}
    for site in SITES:
        rows = months(world, site, folder)
        status = world.sites[site].status()
        report["sites"][site] = {"months": [vars(r) for r in rows], "status": status, "delivery": books[site]}
        say(f"\n{site}   log loss and AUC a month: first model left alone → the loop")
        for r in rows:
            better = r.alone_log_loss - r.loop_log_loss
            say(
                f"  {month_abbr[r.month]}  {r.rows:6,} rows   {r.alone_log_loss:.4f} → {r.loop_log_loss:.4f}"
                f"  ({better:+.4f})   AUC {r.alone_auc:.3f} → {r.loop_auc:.3f}"
            )
        book = books[site]
        say(
            f"  served {status['predictions_total']:,}   p50 {status['p50_ms']} ms   p95 {status['p95_ms']} ms   "
            f"facts {book['facts']:,} sent, {book['gaps']} lost, {book.get('duplicates_applied', 0)} doubled "
            f"({book['duplicates_suppressed']} repeats recognised)   wire {_bytes(status)}"
        )
    (world.options.home / "report.json").write_text(json.dumps(report, indent=1))
    return report


def _bytes(status: dict[str, Any]) -> str:
    hub = status["hub"]
    return f"{hub.get('bytes_up', 0) / 1e6:.2f} MB up, {hub.get('bytes_down', 0) / 1e6:.2f} MB down"
