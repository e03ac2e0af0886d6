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
from world import CATALOG, MODEL, SITES, World

YEAR = 0
ENOUGH = 50


@dataclass(frozen=True)
class Month:
    """One month of a site, or with ``month`` 0 all of them."""

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
        groups[datetime.fromisoformat(row["at"]).astimezone(replay.LOCAL).month].append(index)
    scored = [_month(m, np.array(i), log, alone) for m, i in sorted(groups.items()) if len(i) >= ENOUGH]
    return [*scored, _month(YEAR, np.arange(len(log)), log, alone)] if scored else []


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
    """Print the table; everything in it as data, also in report.json."""
    with world.tell.doing("scoring the year: the first model left alone against what the sites were answered"):
        folder = first_release(world)
        books = {b["site"]: b for b in delivery(world)}
        report: dict[str, Any] = {"sites": {}}
        scores = {site: months(world, site, folder) for site in SITES}
    statuses = {site: world.sites[site].status() for site in SITES}
    for site in SITES:
        rows = [vars(r) for r in scores[site]]
        report["sites"][site] = {"months": rows, "status": statuses[site], "delivery": books[site]}
    (world.options.home / "report.json").write_text(json.dumps(report, indent=1))
    for line in (*_quality(scores), "", *_service(statuses, books)):
        world.tell.plain(f"   {line}".rstrip())
    return report


def _quality(scores: dict[str, list[Month]]) -> Iterator[str]:
    """Months down, sites across."""
    yield ""
    yield "The first model left alone → with the loop: log loss (less is better), AUC (more is better)"
    yield "".join(f"{'':6}{site:30}" for site in scores)
    cells = {site: {r.month: r for r in rows} for site, rows in scores.items()}
    found = {month for rows in cells.values() for month in rows}
    for month in (*sorted(found - {YEAR}), *sorted(found & {YEAR})):
        name = month_abbr[month] if month else "year"
        yield f"{name:6}" + "".join(f"{_cell(cells[site].get(month)):36}" for site in scores)


def _cell(row: Month | None) -> str:
    if row is None:
        return "-"
    return f"{row.alone_log_loss:.4f} → {row.loop_log_loss:.4f}  {row.alone_auc:.3f} → {row.loop_auc:.3f}"


def _service(statuses: dict[str, Any], books: dict[str, Any]) -> Iterator[str]:
    """A line for each site. Facts are numbered on the site without holes, and the hub counts each number's effect
    once: fewer effects than numbers are lost, more are doubled."""
    heads = ("answered", "p50", "p95", "facts", "lost", "doubled", "repeats stopped", "up", "down")
    widths = (9, 9, 9, 8, 6, 9, 17, 10, 10)
    yield f"{'':6}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    for site, status in statuses.items():
        book, hub = books[site], status["hub"]
        surplus = book["facts"] - book["highwater"]
        cells = (
            f"{status['predictions_total']:,}", _milliseconds(status, "p50"), _milliseconds(status, "p95"),
            f"{book['facts']:,}", str(max(0, -surplus)), str(max(0, surplus)), str(book["duplicates_suppressed"]),
            _megabytes(hub["bytes_up"]), _megabytes(hub["bytes_down"]),
        )  # fmt: skip
        yield f"{site:6}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _milliseconds(status: dict[str, Any], which: str) -> str:
    """Of the last minute, or of the last time somebody asked."""
    value = status[f"{which}_ms"]
    if value is None:
        value = next((v for v in reversed(status["series"][which]) if v is not None), None)
    return "-" if value is None else f"{value:.2f} ms"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
