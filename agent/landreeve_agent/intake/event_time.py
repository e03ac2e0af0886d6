"""When something happened in the world: RFC 3339 in, one sortable text out."""

from landreeve_agent.store.stamps import moment, stamp


class BadTimeError(ValueError):
    """A text that is no moment; it says what is expected."""


def event_time(text: str) -> str:
    """The moment in the store's one form, whose text order is time order.

    >>> event_time("2013-01-01T05:15:00-05:00")
    '2013-01-01T10:15:00.000000Z'
    """
    try:
        return stamp(moment(text))
    except (ValueError, OverflowError) as error:
        raise BadTimeError(
            f"{text[:40]!r} is no time: expected RFC 3339 with a time zone, such as 2026-03-01T12:00:00Z"
        ) from error
