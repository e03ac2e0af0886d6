"""How a device is, in one word and one sentence. Pure.

The worst sign wins: a box that cannot be heard says nothing about its models, and a model that fails matters more
than one whose data has changed.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

SILENCE = timedelta(minutes=5)
_FAILING = frozenset({"failing", "crash_loop", "ROLLBACK_FAILED"})
_DRIFTED = frozenset({"drifted", "quality_lost"})


class Level(StrEnum):
    """From best to worst."""

    HEALTHY = "healthy"
    DRIFT = "drift"
    FAILING = "failing"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Serving:
    """One model on the device: what it runs, its state, and what the newest closed window of that very release
    says (`landreeve.wire.messages.DriftReport.verdict` and its sentence; empty before the first)."""

    model: str
    version: str
    state: str
    reason: str = ""
    window: str = ""
    window_sentence: str = ""


@dataclass(frozen=True, slots=True)
class Signs:
    """What the hub knows of a device. ``last_seen`` is None before its first word; ``incident`` is the sentence
    of an open incident of severity error, or empty."""

    online: bool
    last_seen: datetime | None
    models: tuple[Serving, ...] = ()
    incident: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word and the sentence shown to people."""

    level: Level
    sentence: str


def judge(signs: Signs, now: datetime) -> Verdict:
    """The device's health at a moment.

    A box is offline when its connection is known to be broken, and also when nothing was heard for `SILENCE`: a
    broker that is killed sends no last wills.
    """
    return _offline(signs, now) or _failing(signs) or _drift(signs) or _healthy(signs)


def _offline(signs: Signs, now: datetime) -> Verdict | None:
    if signs.last_seen is None and not signs.online:
        return Verdict(Level.OFFLINE, "Not heard of yet.")
    if not signs.online:
        return Verdict(Level.OFFLINE, f"Offline; last heard {_ago(signs.last_seen, now)}.")
    if signs.last_seen is not None and now - signs.last_seen > SILENCE:
        return Verdict(Level.OFFLINE, f"Silent; last heard {_ago(signs.last_seen, now)}.")
    return None


def _failing(signs: Signs) -> Verdict | None:
    if signs.incident:
        return Verdict(Level.FAILING, signs.incident)
    for model in signs.models:
        if model.state in _FAILING:
            because = f": {model.reason}" if model.reason else ""
            return Verdict(Level.FAILING, f"{model.model} {model.version} does not work{because}.")
    return None


def _drift(signs: Signs) -> Verdict | None:
    for model in signs.models:
        if model.window in _DRIFTED:
            said = model.window_sentence or f"The data of {model.model} has changed."
            return Verdict(Level.DRIFT, said)
    return None


def _healthy(signs: Signs) -> Verdict:
    if not signs.models:
        return Verdict(Level.HEALTHY, "Connected; no model yet.")
    names = ", ".join(f"{model.model} {model.version}" for model in signs.models)
    return Verdict(Level.HEALTHY, f"Serving {names}.")


def _ago(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return "never"
    minutes = int((now - moment).total_seconds() // 60)
    if minutes < 1:
        return "less than a minute ago"
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 2880 else f"{minutes // 1440} days ago"
