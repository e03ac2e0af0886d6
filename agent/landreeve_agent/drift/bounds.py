"""Windows as numbers: ``window_days`` of event time each, counted from 1970."""

from datetime import UTC, datetime

from landreeve_models.definition import Definition

from landreeve_agent.store.stamps import moment, stamp


def length_s(definition: Definition) -> int:
    """Seconds of event time in one window."""
    return definition.window_days * 86_400


def bounds(definition: Definition, window: int) -> tuple[str, str]:
    """Where a window begins and ends, as the store writes times."""
    length = length_s(definition)
    first, last = (datetime.fromtimestamp(number * length, UTC) for number in (window, window + 1))
    return stamp(first), stamp(last)


def number(definition: Definition, at: str) -> int:
    """The window of a moment."""
    return int(moment(at).timestamp()) // length_s(definition)
