"""Judges the anomaly detector beside naive rules and a linear model, and lists the real days it finds unusual.

    python models/catalog/traffic-anomaly/validate.py

The evidence in README.md comes from here: AUC of each kind of planted fault against the same untouched windows of the
last quarter, for five draws of the faults.
"""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
from landreeve_models.evaluate import auc
from landreeve_models.recipes.autoencoder import CLIP, standardise
from landreeve_models.reference import traffic
from landreeve_models.reference.faults import DELAY, FAULTS, FLIGHTS, RAIN, STEPS, WIND

Array = np.ndarray[Any, Any]
Score = Callable[[Array], Array]
DRAWS = range(5, 10)
COMPONENTS = 16


def main() -> None:
    days = traffic.read_days(traffic.data_file())
    fitted = traffic.fit(days)
    rivals = {"largest jump": jump(days), "largest distance": distance(fitted), "linear (PCA)": linear(days, fitted)}
    table(days, rivals | {"this": fitted.score})
    unusual_days(days, fitted.score)


def jump(days: Array) -> Score:
    """The largest change from one hour to the next, in standard deviations of the channel."""
    spread = traffic.windows_of(days[traffic.FIT])[..., 1:].std(axis=(0, 1))
    return lambda windows: np.abs(np.diff(windows[..., 1:], axis=1) / spread).max(axis=(1, 2))


def distance(fitted: Any) -> Score:
    """The largest distance of a reading from what is usual at its hour, in usual spreads."""
    return lambda windows: np.abs(standardise(windows, fitted.mean, fitted.spread)).max(axis=(1, 2))


def linear(days: Array, fitted: Any) -> Score:
    """What the first principal components leave unexplained, weighted by channel as the autoencoder does."""

    def flat(windows: Array) -> Array:
        return standardise(windows, fitted.mean, fitted.spread).reshape(len(windows), -1)

    def apart(windows: Array) -> Array:
        x = flat(windows) - centre
        rest: Array = x - x @ axes.T @ axes
        return rest.reshape(len(windows), STEPS, -1)

    seen = flat(traffic.windows_of(days[traffic.FIT]))
    centre = seen.mean(axis=0)
    axes = np.linalg.svd(seen - centre, full_matrices=False)[2][:COMPONENTS]
    usual = np.sqrt((apart(traffic.windows_of(days[traffic.SCALE])) ** 2).mean(axis=(0, 1)))
    return lambda windows: (np.clip(apart(windows) / usual, -CLIP, CLIP) ** 2).mean(axis=(1, 2))


def table(days: Array, scores: dict[str, Score]) -> None:
    draws = [traffic.judged(days, tuple(FAULTS), seed) for seed in DRAWS]
    print(f"{'AUC':16s}" + "".join(f"{name:>20s}" for name in scores))
    for row in (*FAULTS, "the first four"):
        kinds = traffic.KNOWN_FAULTS if row == "the first four" else (row,)
        cells = [[one(judged, score, kinds) for judged in draws] for score in scores.values()]
        print(f"{row:16s}" + "".join(f"{np.mean(cell):14.3f} ± {np.std(cell):.2f}" for cell in cells))


def one(judged: traffic.Judged, score: Score, kinds: tuple[str, ...]) -> float:
    chosen = np.array([kind in ("", *kinds) for kind in judged.kinds])
    return auc(score(judged.windows[chosen]), judged.faulty[chosen])


def unusual_days(days: Array, score: Score) -> None:
    """The ten real days of the last quarter with the highest mean score."""
    print("\nday          score  flights  mean delay  late hours  rain in  wind mph")
    first = traffic.JUDGE.start
    scores = [float(score(traffic.windows_of(day[None])).mean()) for day in days[traffic.JUDGE]]
    for i in np.argsort(scores)[::-1][:10]:
        day = days[first + i]
        when = date(2013, 1, 1) + timedelta(days=int(first + i))
        late = int((day[:, DELAY] > 30).sum())
        print(
            f"{when:%a %d %b}  {scores[i]:6.2f}  {day[:, FLIGHTS].sum():7.0f}  {day[:, DELAY].mean():10.1f}  {late:10d}"
            f"  {day[:, RAIN].sum():7.2f}  {day[:, WIND].max():8.1f}"
        )
    flights = np.median(days[first:, :, FLIGHTS].sum(axis=1))
    print(f"median of the quarter: score {np.median(scores):.2f}, {flights:.0f} flights")


if __name__ == "__main__":
    main()
