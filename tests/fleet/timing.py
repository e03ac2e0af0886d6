"""Two rules about time, for both simulators: nobody is called silent before their time, and a wave that is through goes
on. Both keep books of their own, so that a hub that notes its times wrongly is seen too.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from landreeve.wire.schedule import FEATURE
from landreeve_hub.rollout.roster import Member, Outcome
from landreeve_hub.rollout.state import DeviceFact, Rollout, State

PATIENCE = "nobody is called silent before their time"
PROGRESS = "a wave that is through goes on"
GRACE = timedelta(minutes=15)
TO_DOWNLOAD = frozenset({"", "RECEIVED", "VERIFIED", "DOWNLOADING"})
TO_ACTIVATE = TO_DOWNLOAD | {"STAGED", "PREFLIGHT", "ACTIVATING"}
OPEN = (Outcome.WAITING, Outcome.ORDERED)
_Key = tuple[str, str, int]
_Print = tuple[object, ...]


class Patience:
    """When each device was last heard to have moved, by the hub's clock at the decision that saw it."""

    def __init__(self) -> None:
        self._moved: dict[_Key, datetime] = {}
        self._pending: dict[_Key, datetime] = {}

    def forget(self) -> None:
        """The hub is another one, which has forgotten some of it."""
        self._moved.clear()
        self._pending.clear()

    def rewind(self, now: datetime) -> None:
        """The hub's clock is another one: what it noted ahead of that counts as now."""
        self._moved = {key: min(at, now) for key, at in self._moved.items()}

    def kept(self, *, whole: bool) -> None:
        if whole:
            self._moved |= self._pending
        self._pending.clear()

    def hasty(
        self, before: Rollout, after: Rollout, fleet: Mapping[str, DeviceFact], now: datetime, back: datetime | None
    ) -> str:
        """Who has just been called silent with time left, and until when; empty when nobody has. ``back`` is since when
        the hub listens again."""
        for device in after.members.delta:
            old, new = before.members.get(device), after.members[device]
            key = (before.id, device, new.attempt)
            if old is None or new.stage != old.stage or (new.outcome is Outcome.ORDERED and not old.flying):
                self._pending[key] = now
            called = new.outcome is Outcome.SILENT and new.cause == "silent"
            if old is None or not called or old.outcome is Outcome.SILENT:
                continue
            since = self._pending.get(key) or self._moved.get(key) or old.heard or old.ordered_at
            due = self._due(before, new, fleet.get(device), since or now, back)
            if due is None or now <= due:
                return f"{before.id} {device} at {new.stage or 'nothing'} since {since}, had until {due}"
        return ""

    @staticmethod
    def _due(
        rollout: Rollout, member: Member, fact: DeviceFact | None, since: datetime, back: datetime | None
    ) -> datetime | None:
        """Until when it may be quiet; None while it may be for ever: it obeys what this hub never ordered."""
        if fact is not None and fact.conflict:
            return None
        plan = rollout.plan
        allowed = timedelta(seconds=plan.gate.deadline_s)
        if member.stage == "PROBATION":
            allowed += timedelta(seconds=plan.probation.max_s)
        if fact is not None and FEATURE in fact.features:
            zone = ZoneInfo(fact.labels[plan.windows.zone_label])
            if plan.windows.download and member.stage in TO_DOWNLOAD:
                since = _night(zone, since)
            if plan.windows.activate and member.stage in TO_ACTIVATE:
                since = _night(zone, since)
        return since + allowed if back is None else max(since + allowed, back + min(GRACE, allowed))


def is_night(zone: ZoneInfo, moment: datetime) -> bool:
    """Whether the windows of every simulated plan that has any (20:00 to 06:00) are open."""
    hour = moment.astimezone(zone).hour
    return hour >= 20 or hour < 6


def _night(zone: ZoneInfo, moment: datetime) -> datetime:
    while not is_night(zone, moment):
        moment += timedelta(minutes=1)
    return moment.replace(second=0, microsecond=0) if not is_night(zone, moment - timedelta(minutes=1)) else moment


class Progress:
    """Since when each wave under way has been through: every device of it has come to an outcome."""

    def __init__(self) -> None:
        self._through: dict[str, tuple[_Print, datetime]] = {}

    def forget(self) -> None:
        """The hub was away, or its clock jumped: time that passed so is not counted."""
        self._through.clear()

    def dragged(self, running: Iterable[Rollout], now: datetime, tick: timedelta) -> str:
        """A rollout whose wave should have gone on; empty when none is. ``tick`` is how often the hub looks.

        A gate that does not hold pauses the rollout or leads it back, so one that runs has its soak to wait for,
        and figures that were not told for as long as a device may be silent.
        """
        seen: dict[str, tuple[_Print, datetime]] = {}
        late = ""
        for rollout in running:
            if not is_through(rollout):
                continue
            known, print_ = self._through.get(rollout.id), _print_of(rollout)
            since = known[1] if known is not None and known[0] == print_ else now
            seen[rollout.id] = (print_, since)
            gate = rollout.plan.gate
            asks = gate.figures != type(gate.figures)()
            allowed = timedelta(seconds=gate.soak_s + (gate.deadline_s if asks else 0))
            if now > since + allowed + tick:
                late = f"{rollout.id} stands at wave {rollout.wave + 1}, which was through at {since}, until {now}"
        self._through = seen
        return late


def is_through(rollout: Rollout) -> bool:
    """Whether every device of the waves reached has come to an outcome, and the rollout runs on."""
    if rollout.state is not State.RUNNING:
        return False
    return not any(rollout.members.group(wave, one) for wave in range(rollout.wave + 1) for one in OPEN)


def _print_of(rollout: Rollout) -> _Print:
    """What a wave's soak begins anew with: whatever is heard of its devices."""
    told = tuple((m.device, m.outcome, m.stage, m.verdict, m.told, m.attempt) for m in rollout.members.values())
    return (rollout.wave, rollout.wave_since, told)
