"""When a site may be disturbed: daily windows in the site's own time zone, the same arithmetic on hub and device.

A device may fetch only inside a download window and switch versions only inside an activation window; no window of a
kind means that kind is never held back. Windows hold orders back, never a return to the last good version.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

import msgspec

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_WINDOWS = 21
FEATURE = "schedule/1"
"""What a device says in `Birth.features` when it keeps to a schedule by itself."""
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


class DayWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A span of local time on some days. ``start`` and ``end`` are ``HH:MM``; an end at or before the start lies on the
    next day, and equal times are a whole day. ``days`` are those on which it starts; none means every day."""

    start: str
    end: str
    days: tuple[str, ...] = ()


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The windows of one device. ``zone`` is an IANA name, so summer time is the zone's matter."""

    zone: str = "UTC"
    download: tuple[DayWindow, ...] = ()
    activate: tuple[DayWindow, ...] = ()


class LineRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a site's line may carry of artifacts, both ways: ``bytes_per_hour`` in an hour of the clock (0 sets no
    bound), and only inside ``windows``. An empty ``zone`` is the site's own."""

    bytes_per_hour: int = 0
    windows: tuple[DayWindow, ...] = ()
    zone: str = ""


def parse_window(text: str) -> DayWindow:
    """A window as people write it; `ValueError` when it is none.

    >>> parse_window("mon-fri 22:00-06:00")
    DayWindow(start='22:00', end='06:00', days=('mon', 'tue', 'wed', 'thu', 'fri'))
    """
    days, _, span = text.strip().lower().rpartition(" ")
    start, _, end = span.partition("-")
    window = DayWindow(start=start, end=end, days=tuple(_days(days)) if days else ())
    if fault := fault_of_windows([window]):
        raise ValueError(f"window {text[:60]!r}: {fault.partition(': ')[2] or fault}")
    return window


def _days(text: str) -> Iterator[str]:
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first not in DAYS or (last and last not in DAYS):
            raise ValueError(f"{part[:20]!r} is no day; use {' '.join(DAYS)}, also as mon-fri or sat,sun")
        begin, count = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7
        yield from (DAYS[(begin + i) % 7] for i in range(count + 1))


def fault_of_zone(zone: str) -> str:
    """Why this is no time zone; empty when it is one.

    >>> fault_of_zone("Europe/Berlin"), fault_of_zone("Mars/Base")
    ('', "'Mars/Base' is no IANA time zone (write it like Europe/Berlin)")
    """
    try:
        place_of(zone)
    except (OSError, ValueError, LookupError):
        if not available_timezones():
            return f"{zone[:40]!r} cannot be looked up: this machine has no time zone data (install tzdata)"
        return f"{zone[:40]!r} is no IANA time zone (write it like Europe/Berlin)"
    return ""


def place_of(zone: str) -> tzinfo:
    """The zone of that name; UTC needs no data of the machine. Errors as `ZoneInfo`."""
    return UTC if zone == "UTC" else ZoneInfo(zone)


def fault_of_windows(windows: Sequence[DayWindow]) -> str:
    """What is wrong with windows, naming the place; empty when they can be kept."""
    if len(windows) > MOST_WINDOWS:
        return f"{len(windows)} windows; at most {MOST_WINDOWS}"
    for number, window in enumerate(windows):
        for name, text in (("start", window.start), ("end", window.end)):
            if not _TIME.fullmatch(text):
                return f"[{number}].{name}: {text[:20]!r} is no time of day; write it as HH:MM"
        wrong = next((day for day in window.days if day not in DAYS), None)
        if wrong is not None:
            return f"[{number}].days: {wrong[:20]!r} is no day; use {' '.join(DAYS)}"
    return ""


def fault_of_schedule(schedule: Schedule) -> str:
    """What is wrong with a schedule, naming the place; empty when it can be kept."""
    kinds = (("download", schedule.download), ("activate", schedule.activate))
    faults = (f"{name}{fault}" for name, windows in kinds if (fault := fault_of_windows(windows)))
    return fault_of_zone(schedule.zone) or next(faults, "")


def is_open(windows: Sequence[DayWindow], zone: str, now: datetime) -> bool:
    """Whether a moment lies in one of the windows; always without any.

    >>> is_open([DayWindow(start="22:00", end="04:00")], "Asia/Dubai", datetime(2026, 3, 1, 19, tzinfo=UTC))
    True
    """
    return not windows or any(start <= now < end for start, end in _spans(windows, zone, now))


def next_open(windows: Sequence[DayWindow], zone: str, now: datetime) -> datetime:
    """The first moment from now on that lies in a window (UTC).

    >>> night = [DayWindow(start="22:00", end="04:00")]
    >>> next_open(night, "Europe/Berlin", datetime(2026, 7, 1, 12, tzinfo=UTC)).isoformat()
    '2026-07-01T20:00:00+00:00'
    """
    if is_open(windows, zone, now):
        return now
    return min(start for start, _ in _spans(windows, zone, now) if start > now)


def both_open(schedule: Schedule, now: datetime) -> bool:
    """Whether a device that knows no windows may be ordered now: it fetches and activates at once."""
    return is_open(schedule.download, schedule.zone, now) and is_open(schedule.activate, schedule.zone, now)


def next_both_open(schedule: Schedule, now: datetime) -> datetime | None:
    """The first moment at which both kinds of window are open; None when that does not happen within nine days."""
    moment = now
    while moment < now + timedelta(days=9):
        if both_open(schedule, moment):
            return moment
        kinds = (schedule.download, schedule.activate)
        moment = max(next_open(kind, schedule.zone, moment) for kind in kinds)
    return None


def _spans(windows: Sequence[DayWindow], zone: str, now: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Every window of the days around a moment as a span of UTC; a week ahead, since any may be weekly."""
    place = place_of(zone)
    today = now.astimezone(place).date()
    for ahead in range(-2, 9):
        day = today + timedelta(days=ahead)
        for window in windows:
            if not window.days or DAYS[day.weekday()] in window.days:
                yield _span(window, day, place)


def _span(window: DayWindow, day: date, place: tzinfo) -> tuple[datetime, datetime]:
    """Local times that do not exist (clocks go forward) mean the moment as far after the gap; of those that come twice
    (clocks go back) the first counts: PEP 495, fold=0.

    A start that is moved so past an end that exists is the end of the gap instead, so that nothing is done after that
    end; of a window that lies in the gap with the whole of its length, all of it is moved.
    """
    start, end = time.fromisoformat(window.start), time.fromisoformat(window.end)
    last = day if end > start else day + timedelta(days=1)
    first = datetime.combine(day, start, place)
    begins, ends = first.astimezone(UTC), datetime.combine(last, end, place).astimezone(UTC)
    if begins < ends:
        return begins, ends
    turn, gap = _turn(first)
    return (turn, ends) if turn < ends else (begins, ends + gap)


def _turn(skipped: datetime) -> tuple[datetime, timedelta]:
    """When clocks go forward past a local time that does not exist (UTC, to the minute), and how far."""
    before, after = (skipped.replace(fold=fold).utcoffset() or timedelta() for fold in (0, 1))
    moment = skipped.replace(tzinfo=UTC) - before  # as far after the turn as the time lies within the gap
    while (moment - timedelta(minutes=1)).astimezone(skipped.tzinfo).utcoffset() == after:
        moment -= timedelta(minutes=1)
    return moment, after - before
