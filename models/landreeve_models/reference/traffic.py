"""The reference anomaly detector: an airport's hours, rebuilt by an autoencoder.

The series is real: every departure from Newark in 2013 with that hour's weather, of the catalog's flight-delay data
(CC0), made into one row an hour. Faults are planted into windows of the last quarter, which training never saw.
"""

import csv
import gzip
import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
from landreeve.release.manifest import Lineage
from numpy.typing import NDArray

from landreeve_models.assemble import TensorParts, check_parity
from landreeve_models.papers import Material
from landreeve_models.recipes import autoencoder
from landreeve_models.reference.catalog import catalog_definition, catalog_folder
from landreeve_models.reference.faults import STEPS, plant

NAME = "traffic-anomaly"
SITE = "EWR"
FIRST_HOUR, LAST_HOUR = 5, 22
READINGS = ("temp", "dewp", "wind_speed", "visib", "precip")
CHANNELS = ("hour", "flights", "delay", "late", *READINGS)
DAYS = 365
# Day numbers: fitted on January to August, scaled on September, judged on October to December.
FIT, SCALE, JUDGE = slice(0, 243), slice(243, 273), slice(273, 365)
KNOWN_FAULTS = ("wrong unit", "lost flights", "wrong clock", "spike")
GOOD_ROWS, FAULT_ROWS, CALIBRATION_ROWS = 400, 60, 256
SEED = 5
LATE_MINUTES = 15

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Judged:
    """Windows float32 (n, 12, 9), whether each has a fault (n,), and which kind ("" for none)."""

    windows: Floats
    faulty: NDArray[np.float32]
    kinds: tuple[str, ...]


def read_days(path: Path) -> Floats:
    """One row an hour, float32 (365, 18, 9) from 5 to 22 o'clock: `CHANNELS`.

    An hour without a departure has no delay and no weather of its own: they are drawn straight between its neighbours.
    """
    days = np.full((DAYS, LAST_HOUR - FIRST_HOUR + 1, len(CHANNELS)), np.nan)
    days[..., 0] = np.arange(FIRST_HOUR, LAST_HOUR + 1)
    days[..., 1] = 0
    for (day, hour), flights in _by_hour(path).items():
        delay = np.array([float(flight["dep_delay"]) for flight in flights])
        weather = [float(flights[0][name]) if flights[0][name] else np.nan for name in READINGS]
        days[day, hour, 1:] = [len(flights), delay.mean(), (delay >= LATE_MINUTES).mean(), *weather]
    flat = days.reshape(-1, len(CHANNELS))
    places = np.arange(len(flat))
    for channel in flat.T:
        known = ~np.isnan(channel)
        channel[:] = np.interp(places, places[known], channel[known])
    return days.astype(np.float32)


def _by_hour(path: Path) -> dict[tuple[int, int], list[dict[str, str]]]:
    found: dict[tuple[int, int], list[dict[str, str]]] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for flight in csv.DictReader(lines):
            hour = int(flight["scheduled"][11:13])
            if FIRST_HOUR <= hour <= LAST_HOUR:
                day = date.fromisoformat(flight["scheduled"][:10]).timetuple().tm_yday - 1
                found.setdefault((day, hour - FIRST_HOUR), []).append(flight)
    return found


def windows_of(days: Floats) -> Floats:
    """Every twelve hours in a row within each day, float32 (n, 12, 9), in order of time."""
    starts = range(days.shape[1] - STEPS + 1)
    return np.ascontiguousarray([day[start : start + STEPS] for day in days for start in starts], np.float32)


def data_file() -> Path:
    """The departures the series is made of."""
    return catalog_folder("flight-delay") / "data" / f"{SITE}.csv.gz"


def fit(days: Floats) -> autoencoder.FittedAutoencoder:
    """The detector, fitted on January to August."""
    return autoencoder.fit(windows_of(days[FIT]), windows_of(days[SCALE]), {}, lambda share, words: None)


def judged(days: Floats, kinds: tuple[str, ...] = KNOWN_FAULTS, seed: int = SEED) -> Judged:
    """Untouched windows of the last quarter, and others of it with a fault planted in each, in no order: any part of
    them has both."""
    windows, random = windows_of(days[JUDGE]), np.random.default_rng(seed)
    order = random.permutation(len(windows))
    parts, names = [windows[order[:GOOD_ROWS]]], [""] * GOOD_ROWS
    for kind in kinds:
        parts.append(plant(windows[random.choice(order[GOOD_ROWS:], FAULT_ROWS)], kind, random))
        names += [kind] * FAULT_ROWS
    mixed = random.permutation(len(names))
    shuffled = tuple(names[i] for i in mixed)
    faulty = np.array([float(name != "") for name in shuffled], np.float32)
    return Judged(np.concatenate(parts)[mixed], faulty, shuffled)


def parts(source: Path | None, created: str, code: str) -> TensorParts:
    """The release's parts; ``source`` may name another file of departures of the same form."""
    path = source or data_file()
    days = read_days(path)
    fitted = fit(days)
    graph = fitted.export_onnx()
    golden, seen = judged(days), windows_of(days[FIT])
    check_parity(fitted.score(golden.windows), graph, golden.windows)
    sample = np.sort(np.random.default_rng(SEED).permutation(len(seen))[:CALIBRATION_ROWS])
    return TensorParts(
        definition=catalog_definition(NAME),
        graph=graph,
        calibration=(seen[sample],),
        golden=(golden.windows,),
        golden_labels=golden.faulty,
        reference=(seen,),
        lineage=Lineage(
            site=SITE,
            run=f"{NAME}-{SEED}",
            dataset=hashlib.sha256(path.read_bytes()).hexdigest(),
            dataset_rows=len(seen),
            dataset_first="2013-01-01",
            dataset_last="2013-08-31",
            recipe="autoencoder",
            code=code,
            configuration=msgspec.structs.asdict(autoencoder.Config()),
            reason="reference model",
        ),
        created=created,
        data=(
            Material(
                name="flights and weather of New York 2013",
                version="nycflights13",
                licence="CC0-1.0",
                author="US Bureau of Transportation Statistics and NOAA",
            ),
        ),
        notes=(
            f"Twelve hours in a row of {', '.join(CHANNELS)}:",
            "hour of the day, departures, their mean delay (min) and share late by 15 minutes, °F, °F, mph, mi, in/h.",
            "The higher the score, the more unusual; about 1 is usual.",
            f"Golden faults are planted: {', '.join(KNOWN_FAULTS)}.",
        ),
    )
