"""When to train again. Pure; all times are event times, so a year replayed in an hour is judged like a year."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec


class RetrainPolicy(msgspec.Struct, frozen=True):
    """The part of a definition's ``retrain`` member that the hub judges; the site judges its number of labels."""

    lookback_days: float = 60.0
    cooldown_days: float = 21.0


@dataclass(frozen=True, slots=True)
class WindowSeen:
    """A closed window of one site: event times of its first and last row, and what was concluded."""

    device: str
    release: str
    first: datetime
    last: datetime
    verdict: str
    sentence: str


@dataclass(frozen=True, slots=True)
class RunSeen:
    """An earlier request: ``last`` is the end of the data it was given, in event time."""

    id: str
    device: str
    last: datetime
    open: bool


@dataclass(frozen=True, slots=True)
class Train:
    device: str
    first: datetime
    last: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    words: str


def parse_policy(definition: dict[str, Any]) -> RetrainPolicy:
    """The policy in a model's definition; what it does not say has its default."""
    return msgspec.convert(definition.get("retrain") or {}, RetrainPolicy)


def decide(
    reports: Sequence[WindowSeen], runs: Sequence[RunSeen], policy: RetrainPolicy, serving: dict[str, str]
) -> Train | Wait:
    """Train on the site that lost most recently, or wait, saying why.

    ``reports`` are the newest window of each site, ``runs`` the earlier requests for the model, ``serving`` the
    release each device runs now: a loss under an older release was answered by replacing it. Event time is
    taken from the reports themselves.
    """
    lost = [r for r in reports if r.verdict == "quality_lost" and serving.get(r.device, r.release) == r.release]
    if not lost:
        return Wait("No site has lost quality under the release it runs.")
    still = next((run for run in runs if run.open), None)
    if still is not None:
        return Wait(f"Training {still.id} is still under way.")
    worst = max(lost, key=lambda r: r.last)
    newest = max((run.last for run in runs), default=None)
    if newest is not None and worst.last - newest < timedelta(days=policy.cooldown_days):
        return Wait(f"Trained on data up to {newest:%Y-%m-%d}; the next training waits {policy.cooldown_days:g} days.")
    return Train(worst.device, worst.last - timedelta(days=policy.lookback_days), worst.last, worst.sentence)
