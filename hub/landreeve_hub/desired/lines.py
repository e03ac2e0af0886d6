"""What the line of a site may carry of artifacts: the site's own rules at the hub, else the fleet's.

A site is the name of one box's enrolment, or the value of the label ``site`` where several boxes stand at one; of two
that apply, the rules under the box's own name count. On the box its own settings hold as well: whichever allows less.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from landreeve.wire.schedule import LineRules, parse_window
from sqlalchemy import Connection, Row, delete, select

from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.tables import devices, line_rules
from landreeve_hub.store.upsert import upsert

SITE_LABEL = "site"
MOST_MB_PER_HOUR = 1_000_000.0


def rules_of(mb_per_hour: float, windows: Sequence[str], zone: str = "") -> LineRules:
    """The rules as people write them; `ValueError` for a window that is none.

    >>> rules_of(2, ["22:00-06:00"]).bytes_per_hour
    2000000
    """
    parsed = tuple(parse_window(text) for text in windows)
    return LineRules(bytes_per_hour=int(mb_per_hour * 1e6), windows=parsed, zone=zone)


def line_of(connection: Connection, device: str, fleet: LineRules | None) -> LineRules | None:
    """The rules in force for a device; ``fleet`` is what the settings say for all. None leaves it to the box."""
    found = _row(connection, device)
    return fleet if found is None else _rules(found)


def shown_of(connection: Connection, device: str) -> dict[str, Any] | None:
    """The rules of the device's site as they were written; None without any."""
    found = _row(connection, device)
    return None if found is None else _shown(found)


def _row(connection: Connection, device: str) -> Row[Any] | None:
    row = connection.execute(select(devices.c.site, devices.c.labels).where(devices.c.id == device)).first()
    for name in _names(row.site, row.labels) if row is not None else ():
        found = connection.execute(select(line_rules).where(line_rules.c.site == name)).first()
        if found is not None:
            return found
    return None


def _shown(row: Row[Any]) -> dict[str, Any]:
    names = ("site", "windows", "zone", "at", "by")
    return {"mb_per_hour": row.bytes_per_hour / 1e6, **{name: getattr(row, name) for name in names}}


def _names(site: str, labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """Where a device may be named, its own name first."""
    place = (labels or {}).get(SITE_LABEL, "")
    return (site, place) if place and place != site else (site,)


def _rules(row: Row[Any]) -> LineRules:
    windows = tuple(parse_window(text) for text in row.windows)
    return LineRules(bytes_per_hour=row.bytes_per_hour, windows=windows, zone=row.zone)


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Every site's rules, by name."""
    return [_shown(row) for row in connection.execute(select(line_rules).order_by(line_rules.c.site))]


def at_site(connection: Connection, site: str) -> set[str]:
    """The devices that stand there."""
    rows = connection.execute(select(devices.c.id, devices.c.site, devices.c.labels).where(~devices.c.revoked))
    return {row.id for row in rows if site in _names(row.site, row.labels)}


def set_line(  # noqa: PLR0917  what is kept
    connection: Connection, site: str, rules: LineRules | None, windows: Sequence[str], by: str, now: datetime
) -> None:
    """Set a site's rules, with their windows as they were written, or forget them with None."""
    if rules is None:
        connection.execute(delete(line_rules).where(line_rules.c.site == site))
        return
    row = {"site": site, "bytes_per_hour": rules.bytes_per_hour, "windows": list(windows), "zone": rules.zone}
    upsert(connection, line_rules, {**row, "at": rfc3339(now), "by": by})
