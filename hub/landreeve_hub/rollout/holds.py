"""Why a device whose wave has begun is not ordered yet. Pure."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from landreeve.wire.schedule import FEATURE, Schedule, fault_of_zone, next_both_open, next_open

from landreeve_hub.rollout.policy import Windows
from landreeve_hub.rollout.precedence import Before, Never, before
from landreeve_hub.rollout.roster import Member
from landreeve_hub.rollout.state import Around, DeviceFact, Rollout
from landreeve_hub.rollout.waiting import (
    ForConflict,
    ForConnection,
    ForFirst,
    ForSite,
    ForStagger,
    ForTrust,
    ForWindow,
    ForZone,
    Waiting,
)


class Why(StrEnum):
    """What holds a device back; the first that applies counts."""

    CONFLICT = "conflict"
    TRUST = "trust"
    OFFLINE = "offline"
    STAGGER = "stagger"
    ZONE = "zone"
    WINDOW = "window"
    SITE = "site"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Held:
    """``until`` is when time alone ends it; None when something else must."""

    member: Member
    why: Why
    until: datetime | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Excluded:
    """The device is left out of the rollout."""

    cause: str
    sentence: str


def hold(rollout: Rollout, member: Member, fact: DeviceFact, around: Around, now: datetime) -> Held | Excluded | None:
    """What stands against ordering the device now. A way back is held by nothing but a conflict: the order is retained
    and a site in trouble needs it whenever it comes. It is over for a device that was ordered something else since."""
    if fact.conflict:
        return Held(member, Why.CONFLICT)
    if rollout.kind == "return":
        return _superseded(rollout, member, fact)
    if rollout.kind == "late" and (by := fact.assigned_by.partition(".")[0]) > rollout.id and by.startswith("r-"):
        return Excluded("superseded", f"{member.site} was ordered something newer since ({by}) and keeps to that.")
    if fact.suspect:
        return Held(member, Why.TRUST, text=fact.suspect)
    if fact.returns >= rollout.plan.ping_pong.max_returns:
        days = rollout.plan.ping_pong.window_s / 86_400
        text = (
            f"{member.site} is left alone: {rollout.version} went back there {fact.returns} times within "
            f"{days:g} days. Someone must find out why; "
            "a new rollout with a larger plan.ping_pong.max_returns tries it again."
        )
        return Excluded("ping_pong", text)
    match before(rollout, member, fact, around):
        case Never(sentence):
            return Excluded("not_in_order", sentence)
        case Before(names):
            return Held(member, Why.FIRST, text=names)
        case None:
            pass
    return _offline(rollout, member, fact, now) or _later(rollout, member, fact, now) or _site(member, around)


def _superseded(rollout: Rollout, member: Member, fact: DeviceFact) -> Excluded | None:
    """The order to be taken back is no longer the device's: what came after it counts."""
    by = fact.assigned_by
    if not by or by == rollout.of or by.startswith((f"{rollout.of}.", rollout.id)):
        return None
    return Excluded("superseded", f"{member.site} was ordered something else since ({by}) and keeps to that.")


def _offline(rollout: Rollout, member: Member, fact: DeviceFact, now: datetime) -> Held | Excluded | None:
    policy = rollout.plan.offline
    if fact.online or policy.policy == "order":
        return None
    if policy.policy == "wait":
        return Held(member, Why.OFFLINE)
    until = begun(rollout, member, now) + timedelta(seconds=policy.after_s)
    if now >= until:
        return Excluded("offline", f"{member.site} was not connected and was left out.")
    return Held(member, Why.OFFLINE, until)


def _later(rollout: Rollout, member: Member, fact: DeviceFact, now: datetime) -> Held | None:
    due = begun(rollout, member, now) + timedelta(seconds=rollout.plan.jitter_s * place_of(rollout.id, member.device))
    if now < due:
        return Held(member, Why.STAGGER, due)
    windows = rollout.plan.windows
    if not windows.download and not windows.activate:
        return None
    schedule = schedule_of(windows, fact)
    if schedule is None:
        return Held(member, Why.ZONE, text=windows.zone_label)
    until = opens(schedule, FEATURE in fact.features, now)
    return None if until is not None and until <= now else Held(member, Why.WINDOW, until)


def _site(member: Member, around: Around) -> Held | None:
    other = around.busy.get(member.where)
    return Held(member, Why.SITE, text=other) if other is not None else None


def begun(rollout: Rollout, member: Member, now: datetime) -> datetime:
    """When the member became due: with its wave (or one begun early after it), when it joined or was tried again. Who
    joined before its wave began is due with it."""
    wave, own = rollout.wave_since or now, member.due_since
    if own is None or (member.wave == rollout.wave and rollout.kind != "late"):
        return wave if own is None else max(wave, own)
    return own


def place_of(rollout: str, device: str) -> float:
    """Where in a wave's spread the device stands, from 0 to below 1: always the same, so a history can be replayed.

    >>> place_of("r-000001", "d-1") == place_of("r-000001", "d-1") != place_of("r-000001", "d-2")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{rollout}\0{device}".encode()).digest()[:6], "big") / 2**48


def schedule_of(windows: Windows, fact: DeviceFact) -> Schedule | None:
    """The windows in the device's own time zone; None when its label names none."""
    zone = fact.labels.get(windows.zone_label) or windows.zone
    if fault_of_zone(zone):
        return None
    return Schedule(zone=zone, download=windows.download, activate=windows.activate)


@lru_cache(maxsize=512)  # the devices of one time zone ask the same at each look
def opens(schedule: Schedule, keeps: bool, now: datetime) -> datetime | None:
    """When a device may be ordered: in a download window; one whose agent ``keeps`` to no schedule fetches and
    activates at once, so both kinds must be open. None when that never happens."""
    if keeps:
        return next_open(schedule.download, schedule.zone, now)
    return next_both_open(schedule, now)


def waiting_of(held: Iterable[Held]) -> list[Waiting]:
    """The same for people: devices held by the same reason in one sentence."""
    groups: dict[tuple[Why, str], list[Held]] = {}
    for one in held:
        text = one.text if one.why in {Why.TRUST, Why.ZONE, Why.FIRST} else ""
        never = one.why in {Why.WINDOW, Why.OFFLINE} and one.until is None
        groups.setdefault((one.why, text + ("!" if never else "")), []).append(one)
    return [_words(why, group) for (why, _), group in groups.items()]


def _words(why: Why, group: list[Held]) -> Waiting:
    sites = tuple(one.member.site for one in group)
    until = min((one.until for one in group if one.until), default=None)
    match why:
        case Why.CONFLICT:
            return ForConflict(sites)
        case Why.TRUST:
            return ForTrust(sites, group[0].text)
        case Why.OFFLINE:
            return ForConnection(sites, until)
        case Why.STAGGER if until is not None:
            return ForStagger(sites, until)
        case Why.ZONE:
            return ForZone(sites, group[0].text)
        case Why.FIRST:
            return ForFirst(sites, group[0].text)
        case Why.SITE:
            return ForSite(sites, tuple(dict.fromkeys(one.text for one in group if one.text)))
        case _:
            return ForWindow(sites, until)
