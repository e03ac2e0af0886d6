"""Faults as feeds and meters have them, planted into real windows of hourly traffic: a detector is judged by them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Random = np.random.Generator
Fault = Callable[[Floats, Random], None]
HOUR, FLIGHTS, DELAY, LATE, TEMPERATURE, DEW_POINT, WIND, VISIBILITY, RAIN = range(9)
WEATHER = slice(TEMPERATURE, RAIN + 1)
STEPS = 12


def plant(windows: Floats, kind: str, random: Random) -> Floats:
    """Copies of windows float32 (n, 12, 9) with one fault of the kind in each."""
    spoilt = windows.copy()
    for window in spoilt:
        FAULTS[kind](window, random)
    return spoilt


def _wrong_unit(window: Floats, random: Random) -> None:
    """Temperature or dew point comes in degrees Celsius for some hours, where Fahrenheit is due."""
    channel = int(random.choice([TEMPERATURE, DEW_POINT]))
    hours = _hours(random, 5, 8)
    window[hours, channel] = (window[hours, channel] - 32) / 1.8


def _lost_flights(window: Floats, random: Random) -> None:
    """Most departures of some hours are missing from the feed."""
    window[_hours(random, 5, 8), FLIGHTS] *= random.uniform(0, 0.3)


def _wrong_clock(window: Floats, random: Random) -> None:
    """The departures are some hours early or late: a time zone, a change to summer time done twice."""
    window[:, FLIGHTS] = np.roll(window[:, FLIGHTS], int(random.choice([-3, -2, 2, 3])))


def _spike(window: Floats, random: Random) -> None:
    """One reading of the weather station is off by 25 to 60 (°F or mph)."""
    channel = int(random.choice([TEMPERATURE, DEW_POINT, WIND]))
    window[int(random.integers(0, STEPS)), channel] += float(random.choice([-1, 1]) * random.uniform(25, 60))


def _standing_still(window: Floats, random: Random) -> None:
    """The whole weather station repeats one reading for eight hours or more."""
    hours = _hours(random, 8, 12)
    window[hours, WEATHER] = window[hours.start, WEATHER].copy()


def _other_day(window: Floats, random: Random) -> None:
    """Delays and late shares stand in the wrong order of hours."""
    order = random.permutation(STEPS)
    window[:, [DELAY, LATE]] = window[order][:, [DELAY, LATE]]


def _hours(random: Random, least: int, most: int) -> slice:
    length = int(random.integers(least, most + 1))
    first = int(random.integers(0, STEPS - length + 1))
    return slice(first, first + length)


FAULTS: Mapping[str, Fault] = {
    "wrong unit": _wrong_unit,
    "lost flights": _lost_flights,
    "wrong clock": _wrong_clock,
    "spike": _spike,
    "standing still": _standing_still,
    "other order": _other_day,
}
