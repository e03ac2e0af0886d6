"""What a rollout sees of its devices: outcomes, and from when a device counts as silent. Pure."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from landreeve.wire.schedule import FEATURE, next_open
from msgspec.structs import replace

from landreeve_hub.rollout.holds import schedule_of
from landreeve_hub.rollout.roster import TOUCHED, Back, Member, Outcome
from landreeve_hub.rollout.state import DeviceFact, Fleet, Report, Rollout

FAILED_STAGES = frozenset({"ROLLED_BACK", "ROLLING_BACK", "ROLLBACK_FAILED", "REJECTED"})
CATCH_UP = timedelta(minutes=15)
"""So long, reconnecting and telling what waited, devices may take to be heard after the hub was away."""
_NOT_YET_FETCHED = frozenset({"", "RECEIVED", "VERIFIED", "DOWNLOADING"})
_NOT_YET_ACTIVE = _NOT_YET_FETCHED | {"STAGED", "PREFLIGHT", "ACTIVATING"}


def in_flight(rollout: Rollout) -> tuple[Member, ...]:
    """Ordered, not yet at an outcome, and not given up as silent."""
    return tuple(rollout.members[device] for device in rollout.members.flying)


def in_time(rollout: Rollout, now: datetime) -> Rollout:
    """The rollout without moments that have not come: a clock that was ahead and is right again made them, and nobody
    may wait for them, or be held to them."""
    members = rollout.members.until(now)
    own = {"wave_since": rollout.wave_since, "finished": rollout.finished}
    ahead = [name for name, at in own.items() if at is not None and at > now]
    if members is rollout.members and not ahead:
        return rollout
    return replace(rollout, members=members, **dict.fromkeys(ahead, now))


def observe(
    rollout: Rollout,
    fleet: Fleet,
    now: datetime,
    changed: Collection[str] | None = None,
    listening: datetime | None = None,
) -> Rollout:
    """The rollout with its members brought up to what the fleet reports. Nobody is silent before a hub that was away,
    and is ``listening`` again since then, can have heard what waited for it meanwhile."""
    members = rollout.members
    names: Iterable[str] = members if changed is None else (device for device in changed if device in members)
    news = [new for d in names if (new := _observe(rollout, members[d], fleet.get(d), now)) is not members[d]]
    members = members.put(news)
    late = [
        new
        for device in members.flying
        if (new := _overdue(rollout, members[device], fleet.get(device), now, listening)) is not members[device]
    ]
    members = members.put(late)
    return rollout if members is rollout.members else replace(rollout, members=members)


def _observe(rollout: Rollout, member: Member, fact: DeviceFact | None, now: datetime) -> Member:
    if fact is None:
        return _outcome(member, Outcome.REMOVED, "removed", f"{member.site} no longer belongs to the fleet.")
    if member.back is not Back.NO:  # sent back: what it reports of this release now is our doing, not its failure
        return member
    if rollout.kind == "return":
        return _heard(rollout, _arrived(member, fact), fact.report, now)
    return judged(rollout, _heard(rollout, member, fact.report, now), fact)


def _heard(rollout: Rollout, member: Member, report: Report | None, now: datetime) -> Member:
    if member.outcome not in TOUCHED or report is None or not concerns(report, rollout, member):
        return member
    cause = report.cause
    if cause == "attempts_exhausted" and member.stage == "DOWNLOADING":  # it was never there to be to blame
        cause = "not_fetched"
    if report.told is not None and report.told != member.told:
        member = replace(member, told=report.told)
    if report.state != member.stage:
        member = replace(member, stage=report.state, heard=now)
    return _reported(member, report, cause)


def _reported(member: Member, report: Report, cause: str) -> Member:
    if report.state in FAILED_STAGES:
        return _outcome(member, Outcome.FAILED, cause, report.sentence)
    if report.state == "CANCELLED":  # someone on the site would not have it now: no evidence against the release
        return _outcome(member, Outcome.SILENT, report.cause, report.sentence)
    if report.state == "COMMITTED":
        return _outcome(member, Outcome.COMMITTED, report.cause, report.sentence)
    return member


def _arrived(member: Member, fact: DeviceFact) -> Member:
    """On the way back it is enough that the device obeys the newest document and serves what it should."""
    back = fact.running == member.target and fact.assigned == member.target and fact.generation == fact.desired
    if member.outcome not in {Outcome.ORDERED, Outcome.SILENT} or not back:
        return member
    return _outcome(member, Outcome.COMMITTED, "returned", f"{member.site} serves {member.target_version} again.")


def judged(rollout: Rollout, member: Member, fact: DeviceFact) -> Member:
    """The member with the verdict on its newest window under the release, once it has taken that."""
    quality = fact.quality
    if quality is None or quality.release != rollout.digest or member.outcome is not Outcome.COMMITTED:
        return member
    return member if quality.verdict == member.verdict else replace(member, verdict=quality.verdict)


def order_id(rollout: Rollout, member: Member) -> str:
    """The rollout id in the device's order: a retry is a new order, which a device that refused the first may take."""
    return f"{rollout.id}.{member.attempt}" if member.attempt else rollout.id


def concerns(report: Report, rollout: Rollout, member: Member) -> bool:
    """A report of an older rollout, or of the way back, says nothing about this release."""
    return report.rollout == order_id(rollout, member) and report.release == (member.target or rollout.digest)


_RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}


def _outcome(member: Member, outcome: Outcome, cause: str, sentence: str) -> Member:
    if _RANK[outcome] <= _RANK[member.outcome]:
        return member
    return replace(member, outcome=outcome, cause=cause, sentence=sentence)


def silent_from(
    rollout: Rollout, member: Member, fact: DeviceFact | None, listening: datetime | None = None
) -> datetime | None:
    """When an ordered device counts as silent; None while that is not its own doing."""
    since = member.heard or member.ordered_at
    if member.outcome is not Outcome.ORDERED or since is None or (fact is not None and fact.conflict):
        return None
    allowed = rollout.plan.gate.deadline_s
    if member.stage == "PROBATION":  # the device itself bounds its probation; silence begins after that
        allowed += rollout.plan.probation.max_s
    due = _held_on_site(rollout, member, fact, since) + timedelta(seconds=allowed)
    return due if listening is None else max(due, listening + min(CATCH_UP, timedelta(seconds=allowed)))


def _held_on_site(rollout: Rollout, member: Member, fact: DeviceFact | None, since: datetime) -> datetime:
    """A device that keeps to its windows makes no progress outside them: its time begins when the next one opens, for
    switching, and before that for fetching where it has not fetched yet."""
    windows = rollout.plan.windows
    if fact is None or FEATURE not in fact.features or member.stage not in _NOT_YET_ACTIVE:
        return since
    schedule = schedule_of(windows, fact)
    if schedule is None:
        return since
    if member.stage in _NOT_YET_FETCHED:
        since = next_open(schedule.download, schedule.zone, since)
    return next_open(schedule.activate, schedule.zone, since)


def held_until(rollout: Rollout, member: Member, fact: DeviceFact, now: datetime) -> datetime | None:
    """When the window opens until which a device under way holds its update back by itself; None when none does. What
    began within a window goes on after its end."""
    kept = {"DOWNLOADING": rollout.plan.windows.download, "ACTIVATING": rollout.plan.windows.activate}
    windows = kept.get(member.stage, ())
    if not windows or rollout.kind == "return" or FEATURE not in fact.features:
        return None
    schedule = schedule_of(rollout.plan.windows, fact)
    if schedule is None:
        return None
    opens = next_open(windows, schedule.zone, member.heard or now)
    return opens if opens > now else None


def next_silent(rollout: Rollout, fleet: Fleet, listening: datetime | None = None) -> datetime | None:
    """When the next device under way falls silent."""
    late = (silent_from(rollout, member, fleet.get(member.device), listening) for member in in_flight(rollout))
    return min((moment for moment in late if moment is not None), default=None)


def _overdue(
    rollout: Rollout, member: Member, fact: DeviceFact | None, now: datetime, listening: datetime | None
) -> Member:
    due = silent_from(rollout, member, fact, listening)
    if due is None or now <= due:
        return member
    since = member.heard or member.ordered_at or due
    text = f"{member.site} has made no progress since {since:%Y-%m-%d %H:%M} UTC."
    return _outcome(member, Outcome.SILENT, "silent", text)
