"""What a site's line may carry of artifacts now: a budget for each hour of the clock, and windows. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from landreeve.wire.schedule import LineRules, is_open, next_open, place_of


@dataclass(frozen=True, slots=True)
class Spent:
    """Bytes charged in the hour that began at ``hour`` (unix seconds)."""

    hour: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Go:
    """So many bytes may travel now."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing may until then; the sentence says why, in the site's own time."""

    until: datetime
    sentence: str


def is_limited(rules: LineRules) -> bool:
    return bool(rules.bytes_per_hour or rules.windows)


def allowed_by(all_of: Sequence[LineRules], zone: str, spent: Spent, wanted: int, now: datetime) -> Go | Held:
    """What every one of several rules allows: the least of them, or the wait that ends last.

    >>> own, hub = LineRules(bytes_per_hour=3_000_000), LineRules(bytes_per_hour=1_000_000)
    >>> allowed_by([own, hub], "UTC", Spent(), 5_000_000, datetime(2026, 3, 1, tzinfo=UTC))
    Go(bytes=1000000)
    """
    verdicts = [allowed(rules, zone, spent, wanted, now) for rules in all_of]
    held = [verdict for verdict in verdicts if isinstance(verdict, Held)]
    if held:
        return max(held, key=lambda one: one.until)
    return Go(min((verdict.bytes for verdict in verdicts if isinstance(verdict, Go)), default=wanted))


def allowed(rules: LineRules, zone: str, spent: Spent, wanted: int, now: datetime) -> Go | Held:
    """Whether, and how many of the wanted bytes. ``zone`` counts where the rules name none.

    An hour's budget that is used up to the last few bytes is used up: at least 64 KiB or all of it go at once.
    """
    place = rules.zone or zone
    if not is_open(rules.windows, place, now):
        opens = next_open(rules.windows, place, now)
        return Held(opens, f"Transfers wait for the site's window and go on {_said(opens, place)}.")
    if not rules.bytes_per_hour:
        return Go(wanted)
    left = rules.bytes_per_hour - spent_in(spent, now).bytes
    if left >= min(wanted, rules.bytes_per_hour, SMALLEST_BYTES):
        return Go(min(wanted, left))
    until = datetime.fromtimestamp(hour_of(now) + 3600, UTC)
    budget = f"{rules.bytes_per_hour / 1e6:g} MB an hour"
    return Held(until, f"The line's budget of {budget} is used up; transfers go on {_said(until, place)}.")


SMALLEST_BYTES = 64 * 1024


def charged(spent: Spent, count: int, now: datetime) -> Spent:
    """After so many more bytes."""
    before = spent_in(spent, now)
    return Spent(before.hour, before.bytes + count)


def spent_in(spent: Spent, now: datetime) -> Spent:
    """What counts in the present hour."""
    return spent if spent.hour == hour_of(now) else Spent(hour_of(now))


def hour_of(now: datetime) -> int:
    return int(now.timestamp()) // 3600 * 3600


def _said(moment: datetime, zone: str) -> str:
    local = moment.astimezone(place_of(zone))
    return f"{local:%a %H:%M} ({zone})"


def soonest(moment: datetime, now: datetime, at_most_s: float) -> float:
    """Seconds to sleep before asking again: rules may change meanwhile."""
    return max(0.05, min(at_most_s, (moment - now) / timedelta(seconds=1)))
