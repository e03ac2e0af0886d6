"""Numbers and times as people read them: Latin digits in every language, unknown is a dash, never a zero."""

import math
from datetime import UTC, datetime
from typing import Final

UNKNOWN: Final = "\N{EN DASH}"
_THIN: Final = "\N{NO-BREAK SPACE}"


def whole(value: float | None) -> str:
    """``10034`` → ``10,034``."""
    return UNKNOWN if _absent(value) else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A plain figure with at most ``digits`` significant digits: ``0.09``, ``2.14``, ``1,204``."""
    if _absent(value) or value is None:
        return UNKNOWN
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def milliseconds(value: float | None) -> str:
    """Milliseconds with the digits that matter; below 0.1 ms in microseconds."""
    if _absent(value) or value is None:
        return UNKNOWN
    if 0 < value < 0.1:
        return f"{value * 1000:.0f}{_THIN}µs"
    text = f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
    return f"{text}{_THIN}ms"


def percent(value: float | None, digits: int = 0) -> str:
    """``32`` → ``32 %`` (the value is already in percent)."""
    return UNKNOWN if _absent(value) else f"{value:.{digits}f}{_THIN}%"


def short(digest: str | None) -> str:
    """The first twelve characters of a digest without its algorithm."""
    return (digest or UNKNOWN).removeprefix("sha256:")[:12]


def moment(value: str | float | None) -> datetime | None:
    """An RFC 3339 text or unix seconds as an aware time; None where it is neither."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if not value:
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def ago(value: str | float | None, now: datetime) -> tuple[int, str]:
    """How long before ``now``: ``(4, "min")`` with units now, s, min, h, d; ``(0, "never")`` where unknown."""
    then = moment(value)
    if then is None:
        return 0, "never"
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return seconds // size, unit
    return (seconds // 10 * 10, "s") if seconds >= 10 else (0, "now")


def stamp(value: str | float | None) -> str:
    """``2026-11-23 06:15`` in UTC, as logs show it."""
    then = moment(value)
    return UNKNOWN if then is None else then.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _absent(value: float | None) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
