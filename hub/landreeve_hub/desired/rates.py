"""How many facts a second each device may send: its own rate, else the lowest of its labels', else the fleet's.

A hub under pressure, or a site on a metered line, is helped by asking one device or a group of them for less; their
outboxes hold the rest. 0 sets no limit, and so lifts a wider one.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select

from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.tables import devices, rates
from landreeve_hub.store.upsert import upsert

DEVICE, LABEL = "device", "label"
MAX_FACTS_PER_S = 10_000.0


def choose(own: float | None, of_labels: Iterable[float], fleet: float | None) -> float | None:
    """The rate in force; None sets no limit.

    >>> choose(None, [5.0, 2.0, 0.0], 50.0)
    2.0
    >>> choose(0.0, [5.0], 50.0) is None
    True
    """
    if own is not None:
        return own or None
    given = list(of_labels)
    if given:
        return min((rate for rate in given if rate), default=None)
    return fleet or None


def label_name(key: str, value: str) -> str:
    """A label as the table names it.

    >>> label_name("region", "north")
    'region=north'
    """
    return f"{key}={value}"


def rate_of(connection: Connection, device: str, fleet: float | None) -> float | None:
    """The rate in force for a device; ``fleet`` is what the settings say for all."""
    labels = connection.execute(select(devices.c.labels).where(devices.c.id == device)).scalar() or {}
    return _resolve(device, labels, listed(connection), fleet)


def _resolve(
    device: str, labels: Mapping[str, str], rows: Iterable[dict[str, Any]], fleet: float | None
) -> float | None:
    known = {(row["scope"], row["name"]): row["facts_per_s"] for row in rows}
    names = [(LABEL, label_name(key, value)) for key, value in labels.items()]
    return choose(known.get((DEVICE, device)), [known[name] for name in names if name in known], fleet)


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Every rate that was set, by scope and name."""
    return [dict(row) for row in connection.execute(select(rates).order_by(rates.c.scope, rates.c.name)).mappings()]


def set_rate(
    connection: Connection, target: tuple[str, str], facts_per_s: float | None, by: str, now: datetime
) -> set[str]:
    """Set the rate of a (scope, name), or forget it with None; the devices it may concern."""
    scope, name = target
    if facts_per_s is None:
        connection.execute(delete(rates).where(rates.c.scope == scope, rates.c.name == name))
    else:
        row = {"scope": scope, "name": name, "facts_per_s": facts_per_s, "at": rfc3339(now), "by": by}
        upsert(connection, rates, row)
    if scope == DEVICE:
        return {name}
    rows = connection.execute(select(devices.c.id, devices.c.labels).where(~devices.c.revoked))
    return {row.id for row in rows if name in {label_name(key, value) for key, value in row.labels.items()}}
