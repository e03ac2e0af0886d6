"""A clock that jumps does not make the hub forget its history."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from landreeve_hub.store.believed import Believed

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FAR = datetime(2090, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_clock_in_2090_moves_it_a_day_an_hour_at_most_and_falls_back_at_once(tmp_path: Path) -> None:
    uptime = [0.0]
    believed = Believed(tmp_path / "reached", lambda: uptime[0])
    assert believed.moment(NOW) == NOW
    for hours in range(1, 6):
        uptime[0] += 3600.0
        assert believed.moment(FAR) == NOW + timedelta(days=hours)
    again = Believed(tmp_path / "reached", lambda: uptime[0])  # the hub was started anew, its clock still wrong
    assert again.moment(FAR) == NOW + timedelta(days=5)
    assert again.moment(NOW + 5 * HOUR) == NOW + 5 * HOUR


def test_a_right_clock_is_followed_and_a_long_absence_made_up_for_in_days(tmp_path: Path) -> None:
    uptime = [0.0]
    believed = Believed(tmp_path / "reached", lambda: uptime[0])
    believed.moment(NOW)
    uptime[0] += 3600.0
    assert believed.moment(NOW + HOUR) == NOW + HOUR
    later = NOW + timedelta(days=60)
    for _ in range(60):
        uptime[0] += 3600.0
        last = believed.moment(later)
    assert last == later


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "reached").write_text("soon")
    assert Believed(tmp_path / "reached").moment(NOW) == NOW
