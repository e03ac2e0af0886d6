"""What a rollout waits for: typed, and in words for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never


@dataclass(frozen=True, slots=True)
class ForApproval:
    version: str


@dataclass(frozen=True, slots=True)
class ForPerson:
    """Paused: only a person moves it on."""

    sentence: str


@dataclass(frozen=True, slots=True)
class ForDevices:
    """Devices at one stage of their update. ``rows`` of ``of`` is the slowest one's progress in probation."""

    stage: str
    sites: tuple[str, ...]
    version: str
    rows: int | None = None
    of: int | None = None


@dataclass(frozen=True, slots=True)
class ForOffline:
    """Ordered devices that are not connected; ``since`` is the earliest last contact."""

    sites: tuple[str, ...]
    since: datetime | None


@dataclass(frozen=True, slots=True)
class ForSoak:
    wave: int
    until: datetime


@dataclass(frozen=True, slots=True)
class ForSlot:
    """More devices are due than may be in flight at once."""

    count: int
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class ForReturn:
    sites: tuple[str, ...]


Waiting = ForApproval | ForPerson | ForDevices | ForOffline | ForSoak | ForSlot | ForReturn

_DOING = {
    "": "been told of {v} and not answered yet",
    "RECEIVED": "received the order for {v}",
    "VERIFIED": "verified the order for {v}",
    "DOWNLOADING": "fetching {v}",
    "STAGED": "holding {v} ready",
    "PREFLIGHT": "checking {v} on their own hardware",
    "ACTIVATING": "switching to {v}",
    "PROBATION": "proving {v} on real traffic",
    "ROLLING_BACK": "going back from {v}",
}
_DONE = frozenset({"", "RECEIVED", "VERIFIED"})


def words(waiting: Waiting) -> str:
    """One plain sentence, without the word "waiting" in front.

    >>> words(ForDevices("PROBATION", ("JFK", "LGA"), "v2", 412, 500))
    'JFK and LGA are proving v2 on real traffic (412 of 500 rows)'
    """
    match waiting:
        case ForApproval(version):
            return f"someone other than the proposer must approve {version}"
        case ForPerson(sentence):
            return f"a person must decide: {sentence}"
        case ForDevices():
            return _devices(waiting)
        case ForOffline(sites, since):
            seen = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
            return f"{_are(sites)} offline{seen}"
        case ForSoak(wave, until):
            return f"wave {wave + 1} is watched until {until:%Y-%m-%d %H:%M} UTC"
        case ForSlot(count, limit):
            return f"{count} more {'is' if count == 1 else 'are'} due, at most {limit} update at the same time"
        case ForReturn(sites):
            return f"{_are(sites)} going back to the last good version"
        case _:
            assert_never(waiting)


def _devices(waiting: ForDevices) -> str:
    doing = _DOING.get(waiting.stage, f"at {waiting.stage.lower().replace('_', ' ')} with {{v}}").format(
        v=waiting.version
    )
    if len(waiting.sites) == 1:
        doing = doing.replace("their own", "its own")
    verb = _have(waiting.sites) if waiting.stage in _DONE else _are(waiting.sites)
    return f"{verb} {doing}{_progress(waiting.rows, waiting.of)}"


def _progress(rows: int | None, of: int | None) -> str:
    if rows is None or not of:
        return ""
    return f" ({rows} of {of} rows)" if rows < of else f" ({rows} rows answered; the evidence is not conclusive yet)"


def _are(sites: Sequence[str]) -> str:
    return f"{named(sites)} {'is' if len(sites) == 1 else 'are'}"


def _have(sites: Sequence[str]) -> str:
    return f"{named(sites)} {'has' if len(sites) == 1 else 'have'}"


def named(sites: Sequence[str], most: int = 4) -> str:
    """Names joined for a sentence.

    >>> named(["a", "b", "c"])
    'a, b and c'
    """
    if len(sites) > most:
        return f"{', '.join(sites[: most - 1])} and {len(sites) - most + 1} more"
    if len(sites) > 1:
        return f"{', '.join(sites[:-1])} and {sites[-1]}"
    return sites[0] if sites else "nobody"
