"""What a rollout waits for: typed, and in words for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import assert_never

PROBATION = "PROBATION"


class TrialAt(StrEnum):
    """The stages of probation as people read them, in the order in which a version goes through them."""

    SHADOW = "shadow"
    STANDBY = "standby"
    SHARE = "share"
    ALL = "probation"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a version on probation does on a device: ``share`` is its part of the traffic where it has one (0 to 1),
    ``key`` by what the requests are split in an A/B comparison."""

    at: TrialAt = TrialAt.ALL
    share: float = 0.0
    key: str = ""


@dataclass(frozen=True, slots=True)
class ForApproval:
    version: str


@dataclass(frozen=True, slots=True)
class ForPerson:
    """Paused: only a person moves it on."""

    sentence: str


@dataclass(frozen=True, slots=True)
class ForDevices:
    """Devices at one stage of their update. ``rows`` of ``of`` is the slowest one's progress in probation, ``trial``
    where probation is in its strategy."""

    stage: str
    sites: tuple[str, ...]
    version: str
    rows: int | None = None
    of: int | None = None
    trial: Trial = Trial()


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


@dataclass(frozen=True, slots=True)
class ForConnection:
    """Devices not ordered because they are not connected; from ``until`` on they are left out, None is never."""

    sites: tuple[str, ...]
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ForWindow:
    """Devices outside their maintenance windows; ``until`` is when the first one opens, None when none ever does."""

    sites: tuple[str, ...]
    until: datetime | None


@dataclass(frozen=True, slots=True)
class ForZone:
    """Devices whose label names no time zone: their windows are unknown."""

    sites: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class ForStagger:
    """Devices whose place in the spread of their wave has not come yet."""

    sites: tuple[str, ...]
    until: datetime


@dataclass(frozen=True, slots=True)
class ForSite:
    """Devices at a site where another one is under way; ``rollouts`` are the other rollouts, if it is not this one."""

    sites: tuple[str, ...]
    rollouts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ForConflict:
    """Devices that obey a newer document than this hub ever made."""

    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForTrust:
    """Devices that someone must look at first, with the reason of the first."""

    sites: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ForEarlier:
    """An older rollout of the same model goes first."""

    rollout: str


@dataclass(frozen=True, slots=True)
class ForFirst:
    """Devices on which another component comes first: ``what`` names it and its rollout."""

    sites: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class ForFigures:
    """A gate asks for figures that have not been told; without them nothing passes."""

    wave: int
    missing: str
    until: datetime


@dataclass(frozen=True, slots=True)
class ForWatch:
    """Finished, and still watched."""

    until: datetime


Waiting = (
    ForApproval | ForPerson | ForDevices | ForOffline | ForSoak | ForSlot | ForReturn | ForConnection | ForWindow
    | ForZone | ForStagger | ForSite | ForFirst | ForConflict | ForTrust | ForEarlier | ForFigures | ForWatch
)  # fmt: skip

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
        case ForEarlier(rollout):
            return f"rollout {rollout} of the same model goes first"
        case ForSoak(wave, until):
            return f"wave {wave + 1} is watched until {_at(until)}"
        case ForWatch(until):
            return f"the fleet is watched for drift and lost accuracy until {_at(until)}"
        case ForFigures(wave, missing, until):
            return f"wave {wave + 1} has no proof yet: {missing}; without it the rollout is held at {_at(until)}"
        case ForSlot(count, limit):
            return f"{count} more {'is' if count == 1 else 'are'} due, at most {limit} update at the same time"
        case ForDevices():
            return _devices(waiting)
        case _:
            return _held(waiting)


_Held = (
    ForOffline | ForReturn | ForConnection | ForWindow | ForZone | ForStagger | ForSite | ForFirst | ForConflict
    | ForTrust
)  # fmt: skip


def _held(waiting: _Held) -> str:
    match waiting:
        case ForOffline(sites, since):
            return f"{_are(sites)} offline{f' since {_at(since)}' if since else ''}"
        case ForReturn(sites):
            return f"{_are(sites)} going back to the last good version"
        case ForConnection(sites, until):
            return (
                f"{_are(sites)} not connected{f' and left out at {_at(until)}' if until else ' and ordered once back'}"
            )
        case ForWindow(sites, None):
            return f"{named(sites)}: no window for downloads meets one for activation, and the agent there needs both"
        case ForWindow(sites, until):
            return f"{_are(sites)} outside the maintenance windows; the next opens at {_at(until)}"
        case ForZone(sites, label):
            return f"{named(sites)}: the label {label} names no IANA time zone, so the maintenance window is unknown"
        case ForStagger(sites, until):
            return f"{_are(sites)} spread over the wave; the next is due at {_at(until)}"
        case ForSite(sites, rollouts):
            other = f" (rollout {named(rollouts)})" if rollouts else ""
            return f"{named(sites)}: another device of the site is updating{other}, never two at once"
        case ForFirst(sites, what):
            return f"{named(sites)}: {what} comes first"
        case ForConflict(sites):
            return f"{_have(sites)} newer orders than this hub ever gave; resolve it (device resolve)"
        case ForTrust(sites, reason):
            return f"{_are(sites)} left alone: {reason}"
        case _:
            assert_never(waiting)


def _at(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "never"


def _devices(waiting: ForDevices) -> str:
    doing = _trying(waiting.trial) or _DOING.get(
        waiting.stage, f"at {waiting.stage.lower().replace('_', ' ')} with {{v}}"
    )
    doing = doing.format(v=waiting.version)
    if len(waiting.sites) == 1:
        doing = doing.replace("their own", "its own")
    verb = _have(waiting.sites) if waiting.stage in _DONE else _are(waiting.sites)
    return f"{verb} {doing}{_progress(waiting.rows, waiting.of)}"


def _trying(trial: Trial) -> str:
    """What is done at a stage of the strategy; empty for probation as everybody knows it."""
    match trial.at:
        case TrialAt.SHADOW:
            return "comparing {v} in the shadow of the version before"
        case TrialAt.STANDBY:
            return "keeping {v} loaded beside the version before"
        case TrialAt.SHARE:
            split = f", split by {trial.key}" if trial.key else ""
            return f"answering {percent(trial.share)} of the requests with {{v}}{split}"
        case TrialAt.ALL:
            return ""


def percent(share: float) -> str:
    """A part of 1 in percent, with the digits that matter.

    >>> percent(0.1), percent(0.005), percent(1 / 3)
    ('10%', '0.5%', '33.3%')
    """
    return f"{100 * share:.3g}%"


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
