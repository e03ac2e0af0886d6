"""Moments as text: RFC 3339 UTC of one width, so that comparing texts compares times."""

from datetime import UTC, datetime


def stamp(moment: datetime) -> str:
    """The text of an aware moment, always with six decimals and ``Z``.

    >>> stamp(datetime(2026, 11, 23, 6, 15, tzinfo=UTC))
    '2026-11-23T06:15:00.000000Z'
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone: pass an aware datetime")
    # isoformat takes a quarter of strftime's time, and every row of a site passes here.
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


def moment(text: str) -> datetime:
    """The aware UTC moment of any RFC 3339 text; ValueError when it is none or lacks a time zone.

    >>> moment("2026-11-23T07:15:00+01:00")
    datetime.datetime(2026, 11, 23, 6, 15, tzinfo=datetime.timezone.utc)
    """
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: write RFC 3339 such as 2026-11-23T06:15:00Z")
    return parsed.astimezone(UTC)
