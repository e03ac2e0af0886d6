"""Moments as the store keeps them: RFC 3339 text in UTC of one fixed width, so text order is time order."""

from datetime import UTC, datetime


def rfc3339(moment: datetime) -> str:
    """The text of an aware moment, to the millisecond.

    >>> rfc3339(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05.000Z'
    """
    if moment.tzinfo is None:
        raise ValueError(f"moment {moment.isoformat()} carries no time zone; use an aware UTC moment")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> datetime:
    """The aware UTC moment in a text; `ValueError` when it is none, carries no offset or lies outside the calendar."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"moment {text[:40]!r} carries no offset; write it as 2026-01-02T03:04:05Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"moment {text[:40]!r} lies outside the calendar") from error
