"""Windows of a site across the hours that clocks skip and repeat: held against the local time of every minute."""

import sys
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from landreeve.wire.schedule import (
    DayWindow,
    Schedule,
    fault_of_zone,
    is_open,
    next_both_open,
    next_open,
)

BERLIN, NEW_YORK, DUBAI, LORD_HOWE = "Europe/Berlin", "America/New_York", "Asia/Dubai", "Australia/Lord_Howe"
SPRING = {BERLIN: date(2026, 3, 29), NEW_YORK: date(2026, 3, 8), LORD_HOWE: date(2026, 10, 4)}
AUTUMN = {BERLIN: date(2026, 10, 25), NEW_YORK: date(2026, 11, 1), LORD_HOWE: date(2026, 4, 5)}
MINUTE = timedelta(minutes=1)


def window(span: str, *days: str) -> tuple[DayWindow, ...]:
    start, end = span.split("-")
    return (DayWindow(start=start, end=end, days=days),)


def open_minutes(windows: tuple[DayWindow, ...], zone: str, day: date) -> list[str]:
    """The local times of that night and morning, 00:00 to 12:00, at which the windows are open, each minute of it."""
    moment = datetime.combine(day, time(0), ZoneInfo(zone)).astimezone(UTC)
    end = datetime.combine(day, time(12), ZoneInfo(zone)).astimezone(UTC)
    found = []
    while moment < end:
        if is_open(windows, zone, moment):
            found.append(f"{moment.astimezone(ZoneInfo(zone)):%H:%M}")
        moment += MINUTE
    return found


def spans(minutes: list[str]) -> list[str]:
    """Minutes in a row as spans of local time."""
    found: list[list[str]] = []
    for text in minutes:
        at = datetime.strptime(text, "%H:%M")  # noqa: DTZ007  a time of day
        if found and datetime.strptime(found[-1][1], "%H:%M") == at:  # noqa: DTZ007
            found[-1][1] = f"{at + MINUTE:%H:%M}"
        else:
            found.append([text, f"{at + MINUTE:%H:%M}"])
    return ["-".join(one) for one in found]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("02:15-02:45", ["03:15-03:45"]),  # nothing of it exists: as far after the gap
        ("02:00-03:00", ["03:00-04:00"]),
        ("02:30-03:00", ["03:30-04:00"]),
        ("02:30-03:15", ["03:00-03:15"]),  # its end exists, and is never passed
        ("01:45-02:15", ["01:45-02:00", "03:00-03:15"]),
        ("01:30-03:30", ["01:30-02:00", "03:00-03:30"]),
        ("02:30-06:00", ["03:30-06:00"]),
        ("03:00-04:00", ["03:00-04:00"]),
        ("22:00-02:30", ["00:00-02:00", "03:00-03:30"]),
    ],
)
def test_a_window_in_the_hour_that_is_skipped_is_kept_that_night_and_is_itself_the_next(
    wanted: str, kept: list[str]
) -> None:
    for zone in (BERLIN, NEW_YORK):
        assert spans(open_minutes(window(wanted), zone, SPRING[zone])) == kept
    night = spans(open_minutes(window(wanted), BERLIN, SPRING[BERLIN] + timedelta(days=1)))
    start, end = wanted.split("-")
    assert night == [f"{start if start < end else '00:00'}-{end}"]


def test_a_window_in_the_hour_that_comes_twice_is_kept_once() -> None:
    for zone, span in ((BERLIN, "02:15-02:45"), (NEW_YORK, "01:15-01:45")):
        minutes = open_minutes(window(span), zone, AUTUMN[zone])
        assert (len(minutes), spans(minutes)) == (30, [span])
    # From the first of the two 02:30 to the only 03:15: the hour between belongs to it.
    assert len(open_minutes(window("02:30-03:15"), BERLIN, AUTUMN[BERLIN])) == 105
    assert len(open_minutes(window("01:00-02:30"), BERLIN, AUTUMN[BERLIN])) == 90


def test_half_an_hour_is_skipped_and_repeated_where_clocks_do_so() -> None:
    assert spans(open_minutes(window("02:05-02:25"), LORD_HOWE, SPRING[LORD_HOWE])) == ["02:35-02:55"]
    assert len(open_minutes(window("01:35-01:50"), LORD_HOWE, AUTUMN[LORD_HOWE])) == 15


@pytest.mark.parametrize("day", [*SPRING.values(), *AUTUMN.values()])
def test_a_zone_whose_clocks_never_change_keeps_its_windows_every_night(day: date) -> None:
    assert spans(open_minutes(window("02:15-02:45"), DUBAI, day)) == ["02:15-02:45"]
    assert is_open(window("22:00-04:00"), DUBAI, datetime(2026, 3, 28, 18, tzinfo=UTC))


def test_a_weekly_window_of_which_nothing_exists_on_its_only_day_is_not_skipped_for_a_week() -> None:
    monday = datetime(2026, 3, 23, 12, tzinfo=UTC)
    opens = next_open(window("02:15-02:45", "sun"), BERLIN, monday)
    assert opens.astimezone(ZoneInfo(BERLIN)).isoformat() == "2026-03-29T03:15:00+02:00"


def moments() -> Iterator[datetime]:
    """Around every change of the clocks, and on days like any other."""
    for day in (*SPRING.values(), *AUTUMN.values(), date(2026, 6, 3)):
        yield from (datetime.combine(day, time(hour), UTC) for hour in (0, 1, 2, 3, 15, 16))


clock = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.sampled_from([0, 15, 30, 45, 59]))
days = st.lists(st.sampled_from(["mon", "sat", "sun"]), max_size=2, unique=True)
windows = st.lists(
    st.builds(lambda start, end, on: DayWindow(start=start, end=end, days=tuple(on)), clock, clock, days),
    min_size=1,
    max_size=3,
).map(tuple)


@given(
    windows,
    st.sampled_from([BERLIN, NEW_YORK, DUBAI, LORD_HOWE, "America/Santiago", "UTC"]),
    st.sampled_from(list(moments())),
    st.integers(0, 3 * 24 * 60),
)
@example(window("02:30-03:15"), BERLIN, datetime(2026, 3, 29, 0, tzinfo=UTC), 0)
@example(window("02:30-03:00", "sun"), BERLIN, datetime(2026, 3, 28, 0, tzinfo=UTC), 0)
def test_what_is_told_to_open_next_is_open_then_and_not_before(
    kept: tuple[DayWindow, ...], zone: str, around: datetime, minutes: int
) -> None:
    """Hub and device wait for that moment, and the hub counts silence from it."""
    now = around - timedelta(days=2) + minutes * MINUTE
    opens = next_open(kept, zone, now)
    assert opens >= now
    assert is_open(kept, zone, opens)
    if opens > now:
        assert not is_open(kept, zone, opens - timedelta(seconds=1))
        steps = range(0, int((opens - now) / MINUTE), 7)
        assert not any(is_open(kept, zone, now + step * MINUTE) for step in steps)


def test_an_agent_that_knows_no_windows_is_ordered_where_both_kinds_exist() -> None:
    schedule = Schedule(zone=BERLIN, download=window("01:30-02:30"), activate=window("02:15-02:45"))
    before = datetime(2026, 3, 28, 22, tzinfo=UTC)
    opens = next_both_open(schedule, before)
    assert opens is not None
    assert opens.astimezone(ZoneInfo(BERLIN)).isoformat() == "2026-03-29T03:15:00+02:00"


@pytest.fixture
def no_zone_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without time zone data: neither files of the system nor the package."""
    for name in {"tzdata", *(name for name in sys.modules if name.startswith("tzdata."))}:
        monkeypatch.setitem(sys.modules, name, None)
    zoneinfo.reset_tzpath(to=())
    ZoneInfo.clear_cache()
    yield
    zoneinfo.reset_tzpath()
    ZoneInfo.clear_cache()


@pytest.mark.usefixtures("no_zone_data")
def test_a_machine_without_zone_data_says_that_and_not_that_the_zone_is_none() -> None:
    assert "no time zone data" in fault_of_zone(BERLIN)
    assert "tzdata" in fault_of_zone(BERLIN)
    assert fault_of_zone("UTC") == ""
    assert is_open(window("02:15-02:45"), "UTC", datetime(2026, 3, 29, 2, 30, tzinfo=UTC))


@pytest.mark.parametrize("name", ["Mars/Base", "../../etc/passwd", "", "Europe", "europe/berlin\0", "x" * 5000])
def test_what_names_no_zone_is_refused_in_words(name: str) -> None:
    assert "is no IANA time zone" in fault_of_zone(name)
